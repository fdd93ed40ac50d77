"""How a backbone's own processor makes pixels, against how ours are made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moteur.recipes.checkpoints.agreement import Check
from moteur.recipes.checkpoints.load import read_json
from moteur.recipes.config import InternVLAA1Config, Qwen3VLVision

OLD, NEW = "preprocessor_config.json", "processor_config.json"
_BICUBIC = 3  # as Pillow counts


def stated_pixels(folder: Path) -> dict[str, Mapping[str, Any]]:
    """What the files of a folder say about pixels: the image processor's own file, or a part of the whole one's.

    Raises:
        ValueError: A file that is not JSON.
    """
    found: dict[str, Mapping[str, Any]] = {}
    if (folder / OLD).is_file():
        found[OLD] = read_json(folder / OLD)
    if (folder / NEW).is_file():
        part = read_json(folder / NEW).get("image_processor")
        if isinstance(part, Mapping):
            found[NEW] = {"image_processor": part}
    return found


def pixel_checks(config: InternVLAA1Config) -> list[Check]:
    """Everything between a picture and the vision tower; how the 2B variant resizes is the recipe's own."""
    vision = config.vision
    checks = [
        _check("vision.mean", "image_mean", vision.mean),
        _check("vision.std", "image_std", vision.std),
        _check("vision.rescale", "rescale_factor", 1 / 255, unstated=1 / 255),
        _check("vision.rescale", "do_rescale", True, unstated=True),  # noqa: FBT003 -- the field's value
        _check("vision.normalize", "do_normalize", True, unstated=True),  # noqa: FBT003 -- the field's value
    ]
    if isinstance(vision, Qwen3VLVision):
        checks += [
            _check("vision.patch", "patch_size", vision.patch, unstated=vision.patch),
            _check("vision.patch_frames", "temporal_patch_size", vision.patch_frames, unstated=vision.patch_frames),
            _check("vision.merge", "merge_size", vision.merge, unstated=vision.merge),
            _check("vision.min_pixels", "size.shortest_edge", vision.min_pixels, "min_pixels"),
            _check("vision.max_pixels", "size.longest_edge", vision.max_pixels, "max_pixels"),
            _check("vision.resample", "resample", _BICUBIC, unstated=_BICUBIC),
        ]
    return checks


def _check(field: str, path: str, expected: object, *others: str, unstated: object = None) -> Check:
    paths = tuple(f"{part}{name}" for name in (path, *others) for part in ("", "image_processor."))
    return Check(field, paths, expected) if unstated is None else Check(field, paths, expected, unstated)
