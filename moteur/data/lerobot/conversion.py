"""Numbers into the type of a column: rounded where that type has fractions, never changed otherwise."""

import numpy as np


def converted(values: np.ndarray, dtype: str) -> np.ndarray:
    """Convert numbers or booleans to a column's type.

    Raises:
        OverflowError: The type cannot hold one of them; the message is that number.

    Example:
        >>> converted(np.array([1, 255]), "uint8")
        array([  1, 255], dtype=uint8)
        >>> converted(np.array([1, 256]), "uint8")
        Traceback (most recent call last):
        OverflowError: 256
    """
    with np.errstate(over="ignore", invalid="ignore"):  # looked for below
        stored = values.astype(dtype)
    held = np.isfinite(stored) | ~np.isfinite(values) if stored.dtype.kind == "f" else stored == values
    if not held.all():
        raise OverflowError(repr(values[~held].reshape(-1)[0].item()))
    return stored
