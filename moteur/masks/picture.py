"""A layout as text: one character for each pair of segments, however long they are."""

import torch

from moteur.masks.rule import Blocks, visible_blocks


def picture(segments: list[tuple[str, int]], ranks: tuple[list[int], list[int]]) -> list[str]:
    r"""Lines of a square table: `#` sees all of it, `\` sees up to itself, `.` sees nothing.

    Args:
        segments: name and length of each segment.
        ranks: least and greatest rank of each segment.

    Example:
        >>> print("\n".join(picture([("prefix", 3), ("text", 2)], ([0, 3], [0, 4]))))
                   0 1
        0 prefix 3 # .
        1 text   2 # \
    """
    low, high = torch.tensor(ranks[0]), torch.tensor(ranks[1])
    exists = torch.ones_like(low, dtype=torch.bool)
    rows = Blocks((low[:, None], high[:, None]), None, exists[:, None], exists[:, None])
    columns = Blocks((low[None, :], high[None, :]), None, exists[None, :], exists[None, :])
    full, partial = visible_blocks(rows, columns)
    marks = [
        [".\\#"[2 * entire + some] for entire, some in zip(*row, strict=True)]
        for row in zip(full.tolist(), partial.tolist(), strict=True)
    ]
    numbers = [str(index) for index in range(len(segments))]
    wide = len(numbers[-1])
    names, lengths = max(len(name) for name, _ in segments), max(len(str(length)) for _, length in segments)
    head = " " * (wide + names + lengths + 2)
    lines = ["".join([head, *(f" {number:>{wide}}" for number in numbers)])]
    for number, (name, length), row in zip(numbers, segments, marks, strict=True):
        label = f"{number:>{wide}} {name:<{names}} {length:>{lengths}}"
        lines.append("".join([label, *(f" {mark:>{wide}}" for mark in row)]))
    return lines
