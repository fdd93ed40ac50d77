"""Comparing what a file holds with what a model needs, before anything is read."""

from collections.abc import Collection

import torch
from torch import nn

from moteur.recipes.checkpoints.files import Stored, same_content
from moteur.recipes.checkpoints.layouts import Layout, is_cosmos, suggestion
from moteur.recipes.checkpoints.report import LoadingReport, Misfit
from moteur.recipes.precision import released_dtype

_STATED = {
    "model.action_in_proj.weight": "max_action_dim",
    "model.action_out_proj.weight": "max_action_dim",
    "model.action_out_proj.bias": "max_action_dim",
    "model.state_proj.weight": "max_state_dim",
    "model.downsample_conv.weight": "scale_factor",
    "model.upsample_conv.weight": "scale_factor",
}
_FORMATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def match(
    source: str,
    files: dict[str, Stored],
    model: nn.Module,
    layout: Layout,
    *,
    given: Collection[str] = (),
    notes: tuple[str, ...] = (),
) -> tuple[dict[str, Stored], LoadingReport]:
    """Pair every tensor of the model with one of the file, and account for the rest.

    Args:
        source: What to call the files.
        files: What they hold.
        model: What is to be filled.
        layout: Whose names the files use.
        given: Our names of tensors that come from elsewhere.
        notes: For the report.

    Returns:
        Our names with what is stored for them, and the report.

    Raises:
        ValueError: A tensor is stored under two tied names with different contents.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in given}
    second = {first: name for name, first in layout.tied.items()}
    theirs = {name: layout.theirs(name) for name in expected}
    paired: dict[str, str] = {}
    tied: list[str] = []
    for ours, name in theirs.items():
        other = second.get(name)
        if name in files:
            paired[ours] = name
            if other in files:
                if not same_content(files[name], files[other]):
                    raise ValueError(
                        f"{source}: {name} and {other} are one tensor, and the file holds two different ones"
                    )
                tied.append(other)
        elif other in files:
            paired[ours] = other
    misfits = [
        misfit for ours, name in paired.items() if (misfit := _misfit(name, expected[ours], files[name])) is not None
    ]
    wrong = {misfit.name for misfit in misfits}
    rest = [name for name in files if name not in {*paired.values(), *tied}]
    reasons = {name: layout.unused(name) for name in rest}
    wanted = {ours: files[name] for ours, name in paired.items() if name not in wrong}
    return wanted, LoadingReport(
        source=source,
        layout=layout.name,
        loaded=tuple(name for name in paired.values() if name not in wrong),
        tied=tuple(tied),
        unused=tuple((name, reason) for name, reason in reasons.items() if reason is not None),
        missing=tuple(name for ours, name in theirs.items() if ours not in paired),
        unexpected=tuple(name for name, reason in reasons.items() if reason is None),
        wrong_shape=tuple(misfits),
        notes=notes,
    )


def refuse(report: LoadingReport, files: dict[str, Stored]) -> None:
    """Raise unless the report is exact.

    Raises:
        ValueError: With the report and what the file may be.
    """
    if report.exact:
        return
    hints: list[str] = []
    if report.unexpected or (report.missing and not report.loaded):
        hints.append(suggestion(report.unexpected or list(files)))
    if any(".cosmos" in name or is_cosmos(name) for name in report.missing):
        hints.append("the file comes without the Cosmos tokenizer: say with cosmos= where it is")
    wrong = [misfit.name for misfit in report.wrong_shape]
    if wrong and all(name in _STATED for name in wrong):
        fields = dict.fromkeys(_STATED[name] for name in wrong)
        hints.append(f"{', '.join(fields)} in config.json or config= contradicts these tensors")
    elif wrong:
        hints.append("these are not the released sizes, give the model's own with config=")
    raise ValueError("\n".join([f"does not fit: {report}", *(f"  perhaps: {hint}" for hint in hints)]))


def chosen_dtypes(
    wanted: dict[str, Stored], dtype: torch.dtype | str | None, *, as_saved: bool
) -> dict[str, torch.dtype]:
    """What each of our tensors will be held in.

    Args:
        wanted: Our names and what is stored for them.
        dtype: One format for all, "released", or None for the file's own.
        as_saved: With None, keep every format as it is. Otherwise what the released runs hold in float32 is widened to
            it, which is exact, and the rest has to be of one format.

    Raises:
        ValueError: A dtype that weights cannot have, or a file whose formats cannot be computed with as they are.
    """
    if isinstance(dtype, str) and dtype != "released":
        raise ValueError(f"dtype: expected a floating point dtype, 'released' or None, got {dtype!r}")
    if isinstance(dtype, torch.dtype) and dtype not in _FORMATS:
        raise ValueError(f"dtype: expected one of {[str(kind) for kind in _FORMATS]}, 'released' or None, got {dtype}")
    chosen = {name: held_in(name, _format(stored), dtype, as_saved=as_saved) for name, stored in wanted.items()}
    computing = {
        kind for name, kind in chosen.items() if released_dtype(name) is not torch.float32 and not is_cosmos(name)
    }
    if len(computing) > 1 and not as_saved and dtype is None:
        raise ValueError(f"dtype: the file mixes {sorted(map(str, computing))}, choose one with dtype=")
    return chosen


def held_in(name: str, stored: torch.dtype, dtype: torch.dtype | str | None, *, as_saved: bool) -> torch.dtype:
    """What one of our tensors will be held in; see `chosen_dtypes`."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is not None:
        return released_dtype(name)
    if not as_saved and released_dtype(name) is torch.float32:
        return torch.promote_types(stored, torch.float32)
    return stored


def _format(stored: Stored) -> torch.dtype:
    assert isinstance(stored.dtype, torch.dtype)
    return stored.dtype


def _misfit(name: str, expected: tuple[int, ...], stored: Stored) -> Misfit | None:
    if stored.dtype not in _FORMATS:
        return Misfit(name, "floating point of 16 to 64 bits", str(stored.dtype))
    if stored.shape != expected:
        return Misfit(name, str(expected), str(stored.shape))
    return None
