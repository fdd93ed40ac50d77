"""Rotary position angles: plain, or multi-axis (M-RoPE)."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

Rotary: TypeAlias = tuple[Float[Tensor, "#batch seq rotated"], Float[Tensor, "#batch seq rotated"]]
"""Cosines and sines of the rotation angles, the second half of the features repeating the first."""

Rotation: TypeAlias = tuple[Float[Tensor, "#batch seq 1 rotated"], Float[Tensor, "#batch seq 1 rotated"]]
"""The same as `rotate` wants it: an axis for the heads, and the first half of the sines negated."""


def rotary_angles(
    positions: Int[Tensor, "*axes batch seq"],
    *,
    head_dim: int,
    base: float,
    sections: Sequence[int] | None = None,
    interleaved: bool = True,
    dtype: torch.dtype = torch.float32,
) -> tuple[Float[Tensor, "batch seq head_dim"], Float[Tensor, "batch seq head_dim"]]:
    r"""Cosines and sines by which queries and keys are rotated, once for all layers of a call.

    Pair $j$ of a head, made of its features $j$ and $j + d/2$ ($d$ is `head_dim`), turns by

    $$ \theta_j = p_{a(j)} \, b^{-2j/d}, \qquad j = 0 \dots d/2 - 1 $$

    where $b$ is `base` and $p_a$ the position on axis $a$. Plain rotary has one axis. M-RoPE gives each axis
    `sections[a]` of the frequencies: chunked, the first `sections[0]` frequencies go to axis 0, the next to axis 1,
    and so on (Qwen2-VL); interleaved, axes take turns, and axis 0 takes what is left when the others have their
    share (Qwen3-VL: sections 24-20-20 run T H W T H W ... T T T T).

    The result is (cos, sin), each of `head_dim` with the second half repeating the first, the convention of
    `transformers`: what a rotary module from there returns may be given to a `MoT` as well. Angles are computed in
    `dtype`; in float32 they err by about 1e-7 times the position.

    Args:
        positions: (batch, seq), or (axes, batch, seq) with `sections`. A batch of 1 is broadcast by the `MoT`.
        head_dim: size of a head, even; for a `MoT` that rotates only the first features of a head, their number.
        base: the rotary base; it belongs to the checkpoint, so it has no default.
        sections: how many of the `head_dim / 2` frequencies each axis turns; they sum to `head_dim / 2`.
        interleaved: whether axes take turns (Qwen3-VL) or hold contiguous chunks (Qwen2-VL).
        dtype: float32 or float64.

    Raises:
        ValueError: for an odd `head_dim`, a dtype narrower than float32, sections that do not sum to `head_dim / 2` or
            cannot be interleaved, positions whose axes do not match the sections.

    Source: Su et al., "RoFormer", arXiv 2104.09864; Wang et al., "Qwen2-VL", arXiv 2409.12191.

    Examples:
        >>> cos, sin = rotary_angles(torch.arange(3)[None], head_dim=4, base=100.0)
        >>> cos.shape
        torch.Size([1, 3, 4])
        >>> torch.equal(cos[0, 1], torch.tensor([1.0, 0.1, 1.0, 0.1]).cos())
        True
    """
    if head_dim < 2 or head_dim % 2:  # noqa: PLR2004  rotation acts on pairs
        raise ValueError(f"head_dim: expected an even number, got {head_dim}")
    if dtype not in {torch.float32, torch.float64}:
        raise ValueError(f"dtype: expected torch.float32 or torch.float64, got {dtype}")
    exponents = torch.arange(0, head_dim, 2, device=positions.device).to(dtype) / head_dim
    frequencies = 1.0 / base**exponents
    if sections is None:
        turned = positions[..., None].to(dtype)
    else:
        if len(positions) != len(sections):
            raise ValueError(
                f"positions: expected ({len(sections)}, batch, seq) for {len(sections)} sections, "
                f"got shape {tuple(positions.shape)}"
            )
        axis_of = frequency_axes(sections, head_dim=head_dim, interleaved=interleaved)
        turned = torch.stack([positions[axis] for axis in axis_of], dim=-1).to(dtype)
    angles = repeat(turned * frequencies, "batch seq pair -> batch seq (two pair)", two=2)
    return angles.cos(), angles.sin()


def frequency_axes(sections: Sequence[int], *, head_dim: int, interleaved: bool) -> list[int]:
    """Tell which axis turns each of the `head_dim / 2` frequencies.

    Examples:
        >>> frequency_axes([4, 2, 2], head_dim=16, interleaved=True)
        [0, 1, 2, 0, 1, 2, 0, 0]
        >>> frequency_axes([4, 2, 2], head_dim=16, interleaved=False)
        [0, 0, 0, 0, 1, 1, 2, 2]
    """
    pairs, turns = head_dim // 2, len(sections)
    if interleaved:
        axes = [pair % turns if pair // turns < sections[pair % turns] else 0 for pair in range(pairs)]
    else:
        axes = [axis for axis, size in enumerate(sections) for _ in range(size)]
    given = [axes.count(axis) for axis in range(turns)]
    if len(axes) != pairs or given != list(sections):
        raise ValueError(
            f"sections: expected sizes that sum to head_dim / 2 = {pairs}"
            f"{' and that axes taking turns can have' if interleaved else ''}, got {list(sections)}, "
            f"which would become {given}"
        )
    return axes


def prepare_rotation(rotary: Rotary) -> Rotation:
    """Bring the angles of a call into the form that `rotate` uses in every layer."""
    cos, sin = rotary
    low, high = sin.chunk(2, dim=-1)
    return rearrange(cos, "batch seq dim -> batch seq 1 dim"), rearrange(
        torch.cat([-low, high], dim=-1), "batch seq dim -> batch seq 1 dim"
    )


def rotate(
    x: Float[Tensor, "batch seq heads head_dim"], rotation: Rotation
) -> Float[Tensor, "batch seq heads head_dim"]:
    """Turn each pair `(x[j], x[j + rotated / 2])` by its angle, in the precision of the angles, rounding once.

    `rotated` is how many features the angles have; those of a head beyond them stay as they are. With the sines signed
    by `prepare_rotation`, one `roll` stands for "negate the second half and swap the halves".
    """
    cos, sin = rotation
    rotated = cos.shape[-1]
    if rotated < x.shape[-1]:
        return torch.cat([rotate(x[..., :rotated], rotation), x[..., rotated:]], dim=-1)
    wide = x.to(torch.promote_types(x.dtype, cos.dtype))  # once: operations on mixed dtypes are slow on the CPU
    return torch.addcmul(wide * cos, wide.roll(rotated // 2, dims=-1), sin).to(x.dtype)
