"""A model from a folder: exactly, or not at all."""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moteur.recipes.checkpoints.config_json import OWN_TYPE, config_from_json
from moteur.recipes.checkpoints.cosmos import Cosmos
from moteur.recipes.checkpoints.files import Stored, find_tensors, read_all
from moteur.recipes.checkpoints.fresh import initialise
from moteur.recipes.checkpoints.layouts import (
    Layout,
    is_cosmos,
    own_layout,
    released_layout,
    released_variant,
    suggestion,
    without_decoder,
)
from moteur.recipes.checkpoints.matching import chosen_dtypes, held_in, match, refuse
from moteur.recipes.checkpoints.meta import build_weightless
from moteur.recipes.checkpoints.released_config import read_released_config
from moteur.recipes.checkpoints.report import LoadingReport
from moteur.recipes.checkpoints.source import Hub, Place
from moteur.recipes.checkpoints.statistics import Statistics, check_statistics
from moteur.recipes.config import InternVLAA1Config

CONFIG = "config.json"
STATISTICS = "stats.json"


@dataclass(frozen=True)
class Loaded:
    """A model, how it was filled, and what its data look like."""

    model: nn.Module
    report: LoadingReport
    statistics: Statistics


@dataclass(frozen=True)
class Options:
    """How a model is wanted; see `from_pretrained`."""

    config: InternVLAA1Config | None
    decoder: bool | None
    cosmos: Place | None
    hub: Hub
    dtype: torch.dtype | str | None
    device: torch.device
    strict: bool
    seed: int
    mapped: bool


def load_folder(make: Callable[..., Any], folder: Path, options: Options) -> Loaded:
    """Build and fill a model from a folder of our own or the released layout.

    Everything that can be checked without reading tensors is checked first, and the model comes into being last.

    Raises:
        ValueError: See `from_pretrained`.
    """
    before = _changed(folder / CONFIG)
    values = read_json(folder / CONFIG)
    files = find_tensors(folder)
    own = values.get("type") == OWN_TYPE
    layout, config, notes = _own(values, options) if own else _released(folder, values, files, options)
    decoder = options.decoder
    if decoder is None:
        decoder = own and any(name.startswith("foresight.decoder.") for name in files)
    model = build_weightless(make, config, decoder=decoder)
    layout = without_decoder(layout, config, model.state_dict())
    report = fill(str(folder), files, model, layout, options, notes=notes, as_saved=own)
    statistics = _statistics(folder)
    if _changed(folder / CONFIG) != before:  # a save takes it away first and puts it back last
        raise ValueError(f"{folder / CONFIG}: changed while the folder was read, by a save perhaps; load it again")
    return Loaded(model, report, statistics)


def fill(
    source: str,
    files: dict[str, Stored],
    model: nn.Module,
    layout: Layout,
    options: Options,
    *,
    notes: tuple[str, ...] = (),
    as_saved: bool = False,
    fresh: Callable[[str], bool] = lambda _: False,
) -> LoadingReport:
    """Give every parameter of a model on the meta device its value: from the files, from Cosmos, or from the seed.

    Args:
        source: What to call the files in messages.
        files: What they hold.
        model: Built without memory.
        layout: Whose names the files use.
        options: What was asked for.
        notes: For the report.
        as_saved: Hold each tensor in the format it is stored in, whatever it is.
        fresh: Tells which of our names are meant to be initialised.

    Raises:
        ValueError: Nothing fits, or not everything; the model must then be thrown away.
    """
    cosmos = Cosmos.plan(options.cosmos, model, files, layout)
    given = {*cosmos.names, *(name for name in model.state_dict() if fresh(name))}
    wanted, report = match(source, files, model, layout, given=given, notes=notes)
    absent: list[str] = []
    if not options.strict and not report.wrong_shape:
        absent = [name for name in model.state_dict() if name not in wanted and name not in given]
        if lost := [name for name in absent if is_cosmos(name)]:
            raise ValueError(
                f"cosmos: expected where the tokenizer is, the file lacks {', '.join(lost)}; it is frozen, and drawn "
                "from a seed it would stay noise"
            )
        if absent or report.unexpected:
            warnings.warn(f"strict=False: {report}", stacklevel=7)
    if options.strict or report.wrong_shape:
        refuse(report, files)
    dtypes = chosen_dtypes(wanted, options.dtype, as_saved=as_saved)
    computing = dtypes.get("backbone.text_embedding.weight", torch.float32)

    def hold(name: str, drawn: Tensor) -> Tensor:
        return drawn.to(options.device, held_in(name, computing, options.dtype, as_saved=as_saved))

    state = initialise(
        model, {*absent, *(name for name in given if name not in cosmos.names)}, seed=options.seed, hold=hold
    )
    drawn = tuple(state)
    state |= cosmos.read(options.device, options.dtype, computing)
    state |= read_all(wanted, dtypes, options.device, mapped=options.mapped)
    model.load_state_dict(state, strict=True, assign=True)
    model.to(options.device)  # what is left are buffers that were computed
    model.eval()
    return replace(
        report,
        fresh=drawn,
        elsewhere=tuple((name, str(options.cosmos)) for name in cosmos.names),
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ValueError: There is no such file, or something else in it; it is named.
    """
    if not path.is_file():
        hint = ""
        if (path.parent / "adapter_config.json").is_file():
            hint = "; it looks like a LoRA adapter: merge it into its base model first"
        raise ValueError(f"{path.parent}: expected a {path.name} in it, got none{hint}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON, truncated or damaged ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values


def _own(values: dict[str, Any], options: Options) -> tuple[Layout, InternVLAA1Config, tuple[str, ...]]:
    stored = config_from_json(values)
    if options.config in {None, stored}:
        return own_layout(), stored, ()
    assert options.config is not None
    return own_layout(), options.config, ("the configuration is the one asked for, not the one that was saved",)


def _released(
    folder: Path, values: dict[str, Any], files: dict[str, Stored], options: Options
) -> tuple[Layout, InternVLAA1Config, tuple[str, ...]]:
    variant = released_variant(files)
    if variant is None:
        raise ValueError(
            f"{folder}: neither our own layout nor a released InternVLA-A1: config.json has type "
            f"{values.get('type')!r}, model_type {values.get('model_type')!r}, and of the tensors "
            f"{suggestion(files)}; they start {sorted(files)[:4]}"
        )
    read = read_released_config(values, variant, config=options.config)
    layout = released_layout(variant)
    stored = files.get(layout.theirs("backbone.text_embedding.weight"))
    notes = read.notes
    if options.dtype is None and stored is not None and str(stored.dtype) != f"torch.{read.dtype}":
        notes += (f"config.json says {read.dtype}, the file holds {stored.dtype} and is kept so; choose with dtype=",)
    return layout, read.config, notes


def _statistics(folder: Path) -> Statistics:
    path = folder / STATISTICS
    if not path.is_file():
        return {}
    try:
        return check_statistics(read_json(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _changed(path: Path) -> tuple[int, ...] | None:
    """What tells a file from the one that takes its place; None where there is none."""
    if not path.is_file():
        return None
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
