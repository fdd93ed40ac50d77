"""Account of every tensor of a file and of a model, made before any tensor is read."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from moteur.recipes.checkpoints.keymap import KeyMap, is_cosmos, suggestion
from moteur.recipes.checkpoints.tensors import Stored, same_content

_SHOWN = 8
_FORMATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_STATED = {  # keys of released files, which may begin with "model."
    "action_in_proj.weight": "max_action_dim",
    "action_out_proj.weight": "max_action_dim",
    "action_out_proj.bias": "max_action_dim",
    "state_proj.weight": "max_state_dim",
    "downsample_conv.weight": "scale_factor",
    "upsample_conv.weight": "scale_factor",
}


@dataclass(frozen=True)
class LoadingReport:
    """Where every tensor of a file went and every tensor of the model came from.

    Names are keys of the file, except in `elsewhere` and `fresh`. Printing shows the first names of each group and how
    many there are; the attributes hold all of them.

    Attributes:
        source: Folder or Hub id that was read.
        layout: Layout of its keys: "moteur", "released 3B", "released 2B", or a backbone's name.
        loaded: Tensors that the model holds now.
        tied: Second keys of tensors that are loaded under their first one; both hold the same bytes.
        unused: Tensors left out on purpose, and why; they were not read.
        missing: Tensors of the model that the file lacks.
        unexpected: Tensors that the model has no place for.
        wrong_shape: Tensors of another shape or number format than the model's, and how they differ.
        elsewhere: Names in our state dict of tensors from another source, and that source.
        fresh: Names in our state dict of tensors that were drawn from a seed.
        notes: Remarks, such as fields of a configuration that were ignored.

    Examples:
        >>> report = LoadingReport("folder", "released 3B", loaded=("a", "b"), unexpected=("value_head.weight",))
        >>> report.exact
        False
        >>> print(report)
        folder (released 3B layout)
          loaded (2)
          unexpected (1): value_head.weight
    """

    source: str
    layout: str
    loaded: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    unused: tuple[tuple[str, str], ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    wrong_shape: tuple[tuple[str, str], ...] = ()
    elsewhere: tuple[tuple[str, str], ...] = ()
    fresh: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether nothing is missing, left over or of the wrong shape."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    def __str__(self) -> str:
        reasons = [reason for _, reason in self.unused]
        places = [place for _, place in self.elsewhere]
        lines = [
            f"{self.source} ({self.layout} layout)",
            _line("loaded", len(self.loaded)),
            _line("tied", len(self.tied)),
            *(_line(f"unused on purpose, {reason}", reasons.count(reason)) for reason in dict.fromkeys(reasons)),
            _line("missing", len(self.missing), self.missing),
            _line("unexpected", len(self.unexpected), self.unexpected),
            _line("wrong shape", len(self.wrong_shape), [f"{name} ({how})" for name, how in self.wrong_shape]),
            *(_line(f"from {place}", places.count(place)) for place in dict.fromkeys(places)),
            _line("fresh", len(self.fresh), self.fresh),
            *(f"  note: {note}" for note in self.notes),
        ]
        return "\n".join(line for line in lines if line)


def match(
    source: str,
    files: Mapping[str, Stored],
    model: nn.Module,
    keys: KeyMap,
    *,
    given: Collection[str] = (),
    notes: tuple[str, ...] = (),
) -> tuple[dict[str, tuple[Stored, ...]], LoadingReport]:
    """Pair every tensor of the model with the stored tensors that make it, and account for the rest in the report.

    Our names in `given` come from elsewhere.

    Raises:
        ValueError: A tensor is stored under two tied keys with different contents.
    """
    shapes = {
        name: keys.shapes(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items() if name not in given
    }
    expected = {key: shape for parts in shapes.values() for key, shape in parts.items()}
    second = {first: key for key, first in keys.tied.items()}
    either = {key: [name for name in (key, second.get(key)) if name is not None and name in files] for key in expected}
    place = {key: names[0] for key, names in either.items() if names}
    tied = tuple(name for names in either.values() for name in names[1:])
    for other in tied:
        if not same_content(files[keys.tied[other]], files[other]):
            raise ValueError(
                f"{source}: {keys.tied[other]} and {other} are one tensor, and the file holds two different ones"
            )
    wrong = {stored: how for key, stored in place.items() if (how := _misfit(expected[key], files[stored])) is not None}
    fits = {key for key, stored in place.items() if stored not in wrong}
    whole = {name: parts for name, parts in shapes.items() if all(key in fits for key in parts)}
    loaded = {place[key]: None for parts in whole.values() for key in parts}
    torn = [place[key] for parts in shapes.values() for key in parts if key in fits and place[key] not in loaded]
    rest = {key: keys.unused(key) for key in files if key not in {*place.values(), *tied}}
    return {name: tuple(files[place[key]] for key in parts) for name, parts in whole.items()}, LoadingReport(
        source,
        keys.name,
        loaded=tuple(loaded),
        tied=tied,
        unused=(
            *((key, "another part of the joined tensor is missing or does not fit") for key in torn),
            *((key, reason) for key, reason in rest.items() if reason is not None),
        ),
        missing=tuple(key for key in expected if key not in place),
        unexpected=tuple(key for key, reason in rest.items() if reason is None),
        wrong_shape=tuple(wrong.items()),
        notes=notes,
    )


def refuse(report: LoadingReport, files: Collection[str]) -> None:
    """Raise with the report, and a guess at what the file with these keys is, unless the report is exact."""
    if report.exact:
        return
    hints: list[str] = []
    if report.unexpected or (report.missing and not report.loaded):
        hints.append(suggestion(report.unexpected or files))
    if any(".cosmos" in name or is_cosmos(name) for name in report.missing):
        hints.append("the file comes without the Cosmos tokenizer: say with cosmos= where it is")
    wrong = [name.removeprefix("model.") for name, _ in report.wrong_shape]
    if wrong and all(name in _STATED for name in wrong):
        fields = dict.fromkeys(_STATED[name] for name in wrong)
        hints.append(f"{', '.join(fields)} in config.json or config= contradicts these tensors")
    elif wrong:
        hints.append("these are not the released sizes, give the model's own with config=")
    raise ValueError("\n".join([f"does not fit: {report}", *(f"  perhaps: {hint}" for hint in hints)]))


def _misfit(expected: tuple[int, ...], stored: Stored) -> str | None:
    if stored.dtype not in _FORMATS:
        return f"expected floating point of 16 to 64 bits, got {stored.dtype}"
    return None if stored.shape == expected else f"expected {expected}, got {stored.shape}"


def _line(kind: str, count: int, names: Collection[str] = ()) -> str:
    if not count:
        return ""
    shown, left = list(names)[:_SHOWN], max(len(names) - _SHOWN, 0)
    listed = ", ".join([*shown, f"and {left} more"] if left else shown)
    return f"  {kind} ({count}): {listed}" if listed else f"  {kind} ({count})"
