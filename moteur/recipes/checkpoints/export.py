"""Write a model in the layout of the released checkpoint it came from."""

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor, nn

from moteur.recipes.checkpoints.config_files import read_config, restated, write_json
from moteur.recipes.checkpoints.folder import CONFIG, INDEX, STATISTICS, reading, replacing
from moteur.recipes.checkpoints.keymap import TIED, released_tensors, released_variant
from moteur.recipes.checkpoints.load import Pretrained
from moteur.recipes.checkpoints.pi0_statistics import assets_of, export_statistics, pi0_statistics
from moteur.recipes.checkpoints.tensors import Stored, find_tensors, read
from moteur.recipes.checkpoints.transforms import check_statistics, read_statistics
from moteur.recipes.pi0_config import Pi0Config

_BLOCK = 16 * 2**20
_COSMOS = ("model.cosmos.", "model.cosmos_tokenizer.")


def export_released(
    model: nn.Module, folder: str | Path, *, original: str | Path, robots: Collection[str] | None = None
) -> tuple[str, ...]:
    """Write a model in the released layout, so that the released code can load it.

    The files are copies of the original's with the model's values in place of its tensors, in the original's number
    formats. Tensors that the model does not hold (the DeepStack mergers, a decoder that was not asked for, the output
    matrix of π's action expert) are copied. A model that was loaded from the original and not changed gives the same
    files byte for byte. `config.json` gets the model's numbers, `stats.json` its statistics; for π0 and π0.5, LeRobot's
    processors get them, and openpi's assets are copied.

    Trained weights need the statistics of the robots they were trained on. The model cannot know which these are, so
    weights that differ from the original's, with statistics that are still the original's, are refused unless `robots`
    names the robots.

    Args:
        model: An `InternVLAA1` or a `Pi0`.
        folder: Where to write; made if needed.
        original: Folder of the released checkpoint, or of one in its layout.
        robots: Robots whose statistics are written, or openpi's assets; None writes all of `model.statistics`.

    Returns:
        Keys of the tensors that were copied from the original.

    Raises:
        ValueError: The original is not in the released layout or not of this variant and these sizes; the same folder
            is given twice; the statistics are not known to be those of the weights.
    """
    pretrained, source, target = cast("Pretrained", model), Path(original), Path(folder)
    if target.resolve() == source.resolve():
        raise ValueError(f"folder: expected another one than the original, got {folder} twice")
    with reading(source):
        values, files, config = read_config(source / CONFIG), find_tensors(source), pretrained.config
        pi = config if isinstance(config, Pi0Config) else None
        variant = released_variant(files)
        if variant != config.variant:
            raise ValueError(f"original: expected a released {config.variant} layout, got {variant} in {original}")
        tensors = released_tensors(model.state_dict(), config, files)
        tensors |= {second: tensors[first] for second, first in TIED.items() if first in tensors}
        _refuse_misfits(tensors, files, original)
        statistics = _statistics(pretrained, robots, source, tensors, files)
        with replacing(target) as draft:
            for path in sorted({stored.path for stored in files.values()}):
                here = {name: stored for name, stored in files.items() if stored.path == path}
                _rewrite(path, draft / path.name, here, tensors)
            if (source / INDEX).is_file():
                shutil.copyfile(source / INDEX, draft / INDEX)
            if pi is None:
                _write_json(source, draft, STATISTICS, statistics)
            else:
                export_statistics(source, draft, pi, statistics, robots)
            _write_json(source, draft, CONFIG, restated(values, config))
        return tuple(name for name in files if name not in tensors)


def _statistics(
    model: Pretrained,
    robots: Collection[str] | None,
    source: Path,
    tensors: Mapping[str, Tensor],
    files: Mapping[str, Stored],
) -> Mapping[str, Any]:
    statistics, config = check_statistics(model.statistics), model.config
    if isinstance(config, Pi0Config):
        known, assets = pi0_statistics(source, config)[0], assets_of(source)
    else:
        known, assets = read_statistics(source), ()
    if robots is None:
        if (assets or (statistics and statistics == known)) and not _untouched(tensors, files):
            raise ValueError(
                "robots: the weights are not the original's, but the statistics are, of "
                f"{sorted({*statistics, *assets})}; set model.statistics = dump_transforms(...) for the robots trained "
                "on, or name them with robots="
            )
        return statistics
    if unknown := sorted({*robots} - statistics.keys() - {*assets}):
        raise ValueError(f"robots: expected some of model.statistics, {sorted({*statistics, *assets})}, got {unknown}")
    return {robot: statistics[robot] for robot in statistics if robot in robots}


def _untouched(tensors: Mapping[str, Tensor], files: Mapping[str, Stored]) -> bool:
    """Whether the model's values, in the original's formats, are the original's; stops at the first difference."""
    cpu = torch.device("cpu")
    for name, stored in files.items():
        if name in tensors:
            assert isinstance(stored.dtype, torch.dtype)
            old, new = read((stored,), dtype=stored.dtype, device=cpu), tensors[name].detach().to(cpu, stored.dtype)
            if not torch.equal(_bytes(old), _bytes(new)):
                return False
    return True


def _refuse_misfits(tensors: Mapping[str, Tensor], files: Mapping[str, Stored], original: str | Path) -> None:
    held = {*files, *(second for second, first in TIED.items() if first in files)}
    held |= {first for second, first in TIED.items() if second in files}
    homeless = [name for name in tensors if name not in held and not name.startswith(_COSMOS)]
    wrong = [
        f"{name} (the model has {tuple(tensor.shape)}, the original {files[name].shape})"
        for name, tensor in tensors.items()
        if name in files and tuple(tensor.shape) != files[name].shape
    ]
    if homeless or wrong:
        raise ValueError(f"original: {original} has no place for {homeless[:8]}, and another shape for {wrong[:8]}")


def _rewrite(source: Path, target: Path, stored: Mapping[str, Stored], tensors: Mapping[str, Tensor]) -> None:
    """Copy a safetensors file with some tensors replaced; only one of them is converted at a time."""
    with source.open("rb") as old, target.open("wb") as new:
        _copy(old, new, min((entry.start for entry in stored.values()), default=source.stat().st_size))
        for name, entry in sorted(stored.items(), key=lambda item: item[1].start):
            if name not in tensors:
                old.seek(entry.start)
                _copy(old, new, entry.size)
                continue
            assert isinstance(entry.dtype, torch.dtype)
            new.write(_bytes(tensors[name].detach().to(device="cpu", dtype=entry.dtype)).numpy().data)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _copy(old: IO[bytes], new: IO[bytes], count: int) -> None:
    while count:
        block = old.read(min(count, _BLOCK))
        if not block:
            raise ValueError("original: a file ended before the tensors its header promises, it was whole when checked")
        new.write(block)
        count -= len(block)


def _write_json(source: Path, stage: Path, name: str, values: Mapping[str, Any]) -> None:
    """Write a JSON file, as a copy if nothing in it has changed."""
    if (source / name).is_file() and read_config(source / name) == values:
        shutil.copyfile(source / name, stage / name)
    elif values:
        write_json(stage / name, values, indent=4)
