"""Ranges of positions, checked once where they enter."""


def checked_range(name: str, positions: range | None, length: int) -> range:
    """Return `positions`, or all of them for `None`, if they lie within a sequence of `length`.

    Raises:
        ValueError: if the range is empty, has a step, or reaches outside `[0, length)`.

    Example:
        >>> checked_range("keys", None, 4), checked_range("keys", range(1, 3), 4)
        (range(0, 4), range(1, 3))
    """
    if positions is None:
        return range(length)
    if positions.step != 1 or not 0 <= positions.start < positions.stop <= length:
        raise ValueError(f"{name} must be a non-empty range of step 1 within range(0, {length}), got {positions}")
    return positions
