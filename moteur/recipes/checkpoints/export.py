"""A model back into the layout of the released checkpoint it came from."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor, nn

from moteur.recipes.checkpoints.files import INDEX, SINGLE, Stored, find_tensors
from moteur.recipes.checkpoints.hub import Pretrained
from moteur.recipes.checkpoints.layouts import is_cosmos, released_variant
from moteur.recipes.checkpoints.load import CONFIG, STATISTICS, read_json
from moteur.recipes.checkpoints.released_config import restated
from moteur.recipes.checkpoints.released_names import TIED, released_name
from moteur.recipes.checkpoints.statistics import check_statistics
from moteur.recipes.checkpoints.whole import whole_folder

_BLOCK = 16 * 2**20


def export_released(model: Pretrained, folder: str | Path, *, original: str | Path) -> tuple[str, ...]:
    """Write a model in the released layout, so that the released code can load it.

    The files are copies of the original's, header included, with the model's values in the places of its tensors, in
    the original's number formats. What the model does not hold (the DeepStack mergers, a decoder that was not asked
    for) is copied from the original. A model loaded from there and not changed gives back files that are the same byte
    for byte. `config.json` states the model's numbers, `stats.json` its statistics.

    Args:
        model: An `InternVLAA1`.
        folder: Where to write; made if needed.
        original: Folder of the released checkpoint, or of one in its layout.

    Returns:
        Tensors that were copied from the original.

    Raises:
        ValueError: The original is not in the released layout or not of this variant and these sizes; the same folder
            is given twice.
    """
    source, target = Path(original), Path(folder)
    if target.resolve() == source.resolve():
        raise ValueError(f"folder: expected another one than the original, got {folder} twice")
    values, files = read_json(source / CONFIG), find_tensors(source)
    variant = released_variant(files)
    if variant is None or variant != model.config.variant:
        raise ValueError(f"original: expected a released {model.config.variant} layout, got {variant} in {original}")
    state = cast("nn.Module", model).state_dict()
    tensors = {released_name(name, variant): (name, tensor) for name, tensor in state.items()}
    for second, first in TIED.items():
        if first in tensors:
            tensors[second] = tensors[first]
    _refuse_misfits(tensors, files, original)
    paths = sorted({stored.path for stored in files.values()})
    with whole_folder(target, last=CONFIG, stale=(STATISTICS, INDEX, SINGLE)) as stage:
        for path in paths:
            _rewrite(
                path,
                stage / path.name,
                {name: stored for name, stored in files.items() if stored.path == path},
                tensors,
            )
        if (source / INDEX).is_file():
            shutil.copyfile(source / INDEX, stage / INDEX)
        _write_json(source, stage, STATISTICS, check_statistics(model.statistics))
        _write_json(source, stage, CONFIG, restated(values, model.config))
    return tuple(name for name in files if name not in tensors)


def _refuse_misfits(
    tensors: Mapping[str, tuple[str, Tensor]], files: Mapping[str, Stored], original: str | Path
) -> None:
    seconds = {**TIED, **{first: second for second, first in TIED.items()}}
    homeless = [
        name
        for name, (ours, _) in tensors.items()
        if name not in files and seconds.get(name) not in files and not is_cosmos(ours)
    ]
    wrong = [
        f"{name} (the model has {tuple(tensor.shape)}, the original {files[name].shape})"
        for name, (_, tensor) in tensors.items()
        if name in files and tuple(tensor.shape) != files[name].shape
    ]
    if homeless or wrong:
        raise ValueError(f"original: {original} has no place for {homeless[:8]}, and another shape for {wrong[:8]}")


def _rewrite(
    source: Path, target: Path, stored: Mapping[str, Stored], tensors: Mapping[str, tuple[str, Tensor]]
) -> None:
    """Copy a safetensors file with some tensors replaced; only one of them is in memory at a time."""
    with source.open("rb") as old, target.open("wb") as new:
        _copy(old, new, min((entry.start for entry in stored.values()), default=source.stat().st_size))
        for name, entry in sorted(stored.items(), key=lambda item: item[1].start):
            if name not in tensors:
                old.seek(entry.start)
                _copy(old, new, entry.size)
                continue
            assert isinstance(entry.dtype, torch.dtype)
            tensor = tensors[name][1].detach().to(device="cpu", dtype=entry.dtype).contiguous()
            new.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _copy(old: IO[bytes], new: IO[bytes], count: int) -> None:
    while count:
        block = old.read(min(count, _BLOCK))
        if not block:
            raise ValueError("original: a file ended before the tensors its header promises, it was whole when checked")
        new.write(block)
        count -= len(block)


def _write_json(source: Path, stage: Path, name: str, values: Mapping[str, Any]) -> None:
    """Write a JSON file, as a copy if nothing in it has changed."""
    if (source / name).is_file() and read_json(source / name) == values:
        shutil.copyfile(source / name, stage / name)
    elif values:
        (stage / name).write_text(json.dumps(values, indent=4) + "\n", encoding="utf-8")
