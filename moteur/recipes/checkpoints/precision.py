"""Number formats of weights: what a file holds, what is asked for, and what the released runs use."""

import re
from collections.abc import Mapping
from functools import reduce
from typing import Literal, Protocol, TypeAlias, TypeVar, cast

import torch
from torch import nn

from moteur.recipes.checkpoints.keymap import Config, is_cosmos
from moteur.recipes.checkpoints.tensors import Stored
from moteur.recipes.config import InternVLAA1Config
from moteur.recipes.pi0_config import Pi0Config

Dtype: TypeAlias = torch.dtype | Literal["released"] | None
"""One number format for all weights, that of the released runs, or None for what the file holds."""

Model = TypeVar("Model", bound=nn.Module)


class _Sized(Protocol):
    config: Config


_FORMATS = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}
_LAYER_NORMS = r"mot\.experts\.\w+\.layers\.\d+\.(attention_norm|mlp_norm)\."
_FLOAT32: Mapping[type[Config], re.Pattern[str]] = {
    InternVLAA1Config: re.compile(rf"{_LAYER_NORMS}|mot\.experts\.und\.norm\.|action\.action_out\."),
    Pi0Config: re.compile(
        rf"{_LAYER_NORMS}|mot\.experts\.\w+\.norm\.|action\.|backbone\.vision\.(patches|positions)\."
    ),
}


def released_dtype(name: str, config: Config) -> torch.dtype:
    """Number format that the released runs hold one of our parameters in; for π0 and π0.5, those of openpi."""
    wide = _FLOAT32.get(type(config))
    return torch.float32 if wide is not None and wide.match(name) else torch.bfloat16


def use_released_precision(model: Model, dtype: torch.dtype | str = "released") -> Model:
    """Convert a model's weights to one number format, float32 for the few that the released runs hold in float32.

    The layer norms of every expert, the final norm of `und` and the action read-out are never narrower than float32;
    in π0 and π0.5 all norms of the experts, the action head, and the embeddings of patches and their positions. Buffers
    stay as they are.

    Args:
        model: An `InternVLAA1` or a `Pi0`, changed in place. Of another model no weight is an exception.
        dtype: Number format of all other weights, or its name; "released" is bfloat16.

    Returns:
        The same model.

    Raises:
        ValueError: It is no format that weights can have.
    """
    chosen = read_dtype(dtype)
    plain = chosen if isinstance(chosen, torch.dtype) else torch.bfloat16
    for name, parameter in model.named_parameters():
        wide = released_dtype(name, cast("_Sized", model).config) is torch.float32
        parameter.data = parameter.data.to(torch.promote_types(plain, torch.float32) if wide else plain)
    return model


def read_dtype(dtype: object) -> Dtype:
    """Number format of a `dtype=` argument, which may be a name such as "bfloat16".

    Raises:
        ValueError: It is no format that weights can have.
    """
    chosen = _FORMATS.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen == "released" or chosen in _FORMATS.values():
        return cast("Dtype", chosen)
    raise ValueError(
        f"dtype: expected one of {sorted(_FORMATS)} or that dtype of torch, 'released' or None, got {dtype!r}"
    )


def chosen_dtypes(
    wanted: Mapping[str, tuple[Stored, ...]], config: Config, dtype: Dtype, *, as_saved: bool
) -> dict[str, torch.dtype]:
    """Number format of each of our tensors, by `held_in`, from those of the stored tensors that make it.

    Raises:
        ValueError: The file mixes formats that the model cannot compute with together.
    """
    formats = {
        name: [part.dtype for part in parts if isinstance(part.dtype, torch.dtype)] for name, parts in wanted.items()
    }
    mixed = {
        str(stored)
        for name, found in formats.items()
        if released_dtype(name, config) is not torch.float32 and not is_cosmos(name)
        for stored in found
    }
    if len(mixed) > 1 and not as_saved and dtype is None:
        raise ValueError(f"dtype: the file mixes {sorted(mixed)}, choose one with dtype=")
    joint = {name: reduce(torch.promote_types, found) for name, found in formats.items()}  # holds all parts exactly
    return {name: held_in(name, stored, config, dtype, as_saved=as_saved) for name, stored in joint.items()}


def held_in(name: str, stored: torch.dtype, config: Config, dtype: Dtype, *, as_saved: bool) -> torch.dtype:
    """Number format that one of our tensors is held in.

    With a `dtype` of None it is the stored one; unless `as_saved`, tensors that the released runs hold in float32 are
    widened to it, which is exact.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    usual = released_dtype(name, config)
    if dtype is not None:
        return usual
    return torch.promote_types(stored, usual) if usual is torch.float32 and not as_saved else stored
