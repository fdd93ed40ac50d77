"""What the size of a call depends on: the views that are there, the length of the instruction, the batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from moteur.recipes.backbones.stream import Arrangement
from moteur.recipes.inputs import Inputs


@dataclass(frozen=True)
class Shape:
    """The static sizes of a call; calls of the same shape share tables, buffers and graphs.

    Attributes:
        batch: Samples.
        views: Views that any sample has; the others are never computed.
        grid: Their patches.
        columns: Columns of `input_ids` that are kept: those views', and the text up to the longest instruction.
        ragged: Whether some sample lacks a kept view or token, so that keys need a mask.
    """

    batch: int
    views: tuple[int, ...]
    grid: tuple[tuple[int, int], ...]
    columns: tuple[int, ...]
    ragged: bool


def shape_of(inputs: Inputs, arrangement: Arrangement) -> Shape:
    """Read the shape of a call from its masks; masks on a device are waited for.

    Raises:
        ValueError: If a sample has no valid token, or the views do not fit into the stream.
    """
    tokens, cameras = _rows(inputs.und_valid), _rows(inputs.view_valid)
    if empty := [index for index, row in enumerate(tokens) if not any(row)]:
        raise ValueError(f"und_valid: expected a valid token in every sample, got none in samples {empty}")
    spans = arrangement.spans(inputs.image_grid)
    text = spans[-1].stop if spans else 0
    if len(tokens[0]) < text:
        raise ValueError(f"input_ids: expected at least {text} tokens for the views, got {len(tokens[0])}")
    views, columns = [], []
    for index, span in enumerate(spans):
        seen = any(row[index] for row in cameras) or any(any(row[span.start : span.stop]) for row in tokens)
        if seen:
            views.append(index)
            columns += range(span.start, span.stop)
    length = len(tokens[0])
    last = max((column + 1 for row in tokens for column in range(text, length) if row[column]), default=text)
    columns += range(text, last)
    full = all(row[column] for row in tokens for column in columns) and all(
        row[view] for row in cameras for view in views
    )
    return Shape(
        batch=len(tokens),
        views=tuple(views),
        grid=tuple(inputs.image_grid[view] for view in views),
        columns=tuple(columns),
        ragged=not full,
    )


def _rows(mask: Tensor) -> list[list[bool]]:
    return mask.to(torch.bool).cpu().tolist()
