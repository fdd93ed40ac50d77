"""Which sizes make a Cosmos tokenizer, checked before anything is built."""

from collections.abc import Sequence


def check_sizes(
    *,
    channels: int,
    multipliers: Sequence[int],
    residual_blocks: int,
    patch: int,
    downsamplings: int,
    z_channels: int,
    latent_channels: int,
    image_channels: int,
    groups: int,
) -> None:
    """Raise a `ValueError` naming the argument that no tokenizer can have.

    Raises:
        ValueError: A size below one (`downsamplings`: below zero), no multiplier, a `patch` that is not a power of
            two, more `downsamplings` than levels, or a width that `groups` does not divide.
    """
    sizes = {
        "channels": channels,
        "residual_blocks": residual_blocks,
        "patch": patch,
        "z_channels": z_channels,
        "latent_channels": latent_channels,
        "image_channels": image_channels,
        "groups": groups,
    }
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: must be at least 1, got {size}")
    if not multipliers or min(multipliers) < 1:
        raise ValueError(f"multipliers: must be one or more numbers of at least 1, got {tuple(multipliers)}")
    if patch & (patch - 1):
        raise ValueError(f"patch: must be a power of two (1, 2, 4, ...), got {patch}")
    if not 0 <= downsamplings <= len(multipliers):
        raise ValueError(
            f"downsamplings: must lie between 0 and the number of levels ({len(multipliers)}), got {downsamplings}"
        )
    widths = [channels, *(channels * multiplier for multiplier in multipliers)]
    odd = [width for width in widths if width % groups]
    if odd:
        raise ValueError(f"channels: widths {widths} must be multiples of groups={groups}, got {odd[0]}")
