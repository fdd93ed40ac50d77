"""Resizing as matrices in float64: what a line of pixels becomes, weight by weight."""

import numpy as np

# A float32 coordinate up to 640 errs by 640·2⁻²⁴ pixels a rounding, and is rounded a few times; neighbouring pixels
# differ by 1 at most.
ROUNDING = 4 * 640 * 2**-24


def linear(distance: float) -> float:
    return max(0.0, 1 - abs(distance))


def cubic(distance: float) -> float:
    """Keys' kernel with a = -1/2, as every antialiasing library has it."""
    d = abs(distance)
    if d < 1:
        return 1.5 * d**3 - 2.5 * d**2 + 1
    return -0.5 * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def bilinear_weights(old: int, new: int) -> np.ndarray:
    """A resized line from a line: two neighbours of each centre, the last pixel repeated at the ends."""
    weights = np.zeros((new, old))
    for row in range(new):
        centre = max((row + 0.5) * old / new - 0.5, 0.0)
        for pixel in range(int(centre), int(centre) + 2):
            weights[row, min(pixel, old - 1)] += linear(centre - pixel)
    return weights


def bicubic_weights(old: int, new: int) -> np.ndarray:
    """The same with antialiasing: the kernel widens as the image shrinks, and weights inside the image sum to one."""
    stretch = max(old / new, 1.0)
    weights = np.array(
        [[cubic((pixel + 0.5 - (row + 0.5) * old / new) / stretch) for pixel in range(old)] for row in range(new)]
    )
    return weights / weights.sum(axis=1, keepdims=True)


def padded(image: np.ndarray, size: int) -> np.ndarray:
    """A picture fitted into a black square, its aspect ratio kept."""
    height, width = image.shape[-2:]
    rows, columns = round(height * size / max(height, width)), round(width * size / max(height, width))
    small = bilinear_weights(height, rows) @ image @ bilinear_weights(width, columns).T
    out = np.zeros((3, size, size))
    top, left = (size - rows) // 2, (size - columns) // 2
    out[:, top : top + rows, left : left + columns] = small
    return out
