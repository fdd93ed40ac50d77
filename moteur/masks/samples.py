"""What differs between the samples of a batch, checked once: validity and documents."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from moteur.masks.segment import Segment


def checked_batch(
    segments: Sequence[Segment],
    valid: Mapping[str, Bool[Tensor, "#batch _"]],
    documents: Int[Tensor, "#batch seq"] | None,
) -> int:
    """The batch size that validity and documents have in common, 1 if nothing is per sample.

    Raises:
        ValueError: if a name is unknown, a shape or dtype is wrong, or batch sizes (other than 1) disagree.
    """
    lengths = {segment.name: segment.length for segment in segments}
    batches: dict[str, int] = {}
    for name, flags in valid.items():
        if name not in lengths:
            raise ValueError(f"valid must name segments of {', '.join(map(repr, lengths))}, got {name!r}")
        _check(f"valid[{name!r}]", flags, lengths[name], boolean=True)
        batches[f"valid[{name!r}]"] = flags.shape[0]
    if documents is not None:
        _check("documents", documents, sum(lengths.values()), boolean=False)
        batches["documents"] = documents.shape[0]
    if len(set(batches.values()) - {1}) > 1:
        raise ValueError(f"valid and documents must agree on the batch size or have 1, got {batches}")
    return max(batches.values(), default=1)


def _check(name: str, held: Tensor, length: int, *, boolean: bool) -> None:
    integer = not (held.is_floating_point() or held.is_complex() or held.dtype == torch.bool)
    matches = held.dtype == torch.bool if boolean else integer
    if not matches or held.ndim != 2 or held.shape[1] != length or held.shape[0] < 1:  # noqa: PLR2004  # batch, length
        raise ValueError(
            f"{name} must be {'boolean' if boolean else 'integer'} of shape (batch, {length}), "
            f"got {held.dtype} of shape {tuple(held.shape)}"
        )
