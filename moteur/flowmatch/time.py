"""Flow time: random times for training, times in buckets, and sinusoidal features of a time."""

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

Time = Float[Tensor, ""] | Float[Tensor, " batch"] | Float[Tensor, "batch step"] | float
"""Flow time of a batch: one for each sample, one for each action step, or one for all."""

_SMALLEST_SHAPE, _LARGEST_SHAPE = 1e-6, 1e4
_ROUNDING = 1e-12


@dataclass(frozen=True)
class BetaTime:
    r"""Beta-distributed flow times for training.

    $$t = \text{scale}\cdot B + \text{offset},\qquad B \sim \mathrm{Beta}(\alpha, \beta)$$

    Times are in the clock of the path they are used with. `released()` and `paper()` are meant for
    `StraightPath(noise_at=1)`: the first draws most times near noise, the second near data. The paper and the released
    code of InternVLA-A1 disagree here. `groot()` is meant for `StraightPath(noise_at=0)`.

    Args:
        alpha: First shape of the Beta distribution, in [1e-6, 1e4].
        beta: Second shape, in [1e-6, 1e4].
        scale: Width of the interval of times.
        offset: Lower end of the interval; [offset, offset + scale] must lie in [0, 1].
        reverse: Use 1 - t instead of t, which is the same distribution in the other clock.
        clip: Let the interval leave [0, 1]; draws outside move to the nearest time inside.

    Raises:
        ValueError: A shape, the scale or the offset is out of range.

    Source:
        InternVLA-A1, arXiv 2601.02456, and its released code; first used by pi0, arXiv 2410.24164. GR00T N1,
        arXiv 2503.14734.

    Examples:
        >>> t = BetaTime.released().sample((3,), generator=torch.Generator().manual_seed(0))
        >>> t.shape, bool(((t > 0) & (t < 1)).all())
        (torch.Size([3]), True)
    """

    alpha: float
    beta: float
    _: KW_ONLY
    scale: float = 0.999
    offset: float = 0.001
    reverse: bool = False
    clip: bool = False

    def __post_init__(self) -> None:
        for name, shape in (("alpha", self.alpha), ("beta", self.beta)):
            if not _SMALLEST_SHAPE <= shape <= _LARGEST_SHAPE:
                raise ValueError(f"{name}: expected a number in [{_SMALLEST_SHAPE}, {_LARGEST_SHAPE}], got {shape}")
        inside = self.offset >= 0 and self.offset + self.scale <= 1 + _ROUNDING
        if not (0 < self.scale < math.inf and (inside or (self.clip and math.isfinite(self.offset)))):
            raise ValueError(
                f"scale, offset: expected scale > 0 and [offset, offset + scale] inside [0, 1], "
                f"got scale={self.scale}, offset={self.offset}"
            )

    @classmethod
    def released(cls) -> "BetaTime":
        """Times of the released code: t = 0.999 Beta(1.5, 1) + 0.001 where 1 is noise."""
        return cls(alpha=1.5, beta=1.0, scale=0.999, offset=0.001)

    @classmethod
    def paper(cls) -> "BetaTime":
        """Times as the paper's text defines them: 1 - t = Beta(1.5, 1) where t = 1 is noise."""
        return cls(alpha=1.5, beta=1.0, scale=1.0, offset=0.0, reverse=True)

    @classmethod
    def groot(cls) -> "BetaTime":
        """Times of GR00T: t = (0.999 - Beta(1.5, 1)) / 0.999 where t = 1 is data; what would be negative is 0."""
        return cls(alpha=1.5, beta=1.0, scale=1 / 0.999, offset=0.0, reverse=True, clip=True)

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "..."]:
        """Draw times strictly inside (0, 1).

        Times are drawn in float64 and rounded to `dtype`; one that would round to 0 or 1 becomes the nearest number
        inside. No value is read back from the device.

        Args:
            shape: Shape of the result.
            generator: Source of randomness; times are drawn on its device, then moved. None: torch's default generator
                of `device`.
            device: Device of the result. None: that of the generator, or the CPU.
            dtype: Floating-point dtype of the result.
        """

        def draw(size: torch.Size, source: torch.device) -> Tensor:
            time = self.scale * self._draw(size, generator, source) + self.offset
            return 1 - time if self.reverse else time

        return _inside(draw, shape, generator, device, dtype)

    def _draw(
        self, size: torch.Size, generator: torch.Generator | None, device: torch.device
    ) -> Float64[Tensor, "..."]:
        """Draw Beta(alpha, beta) in float64; rounding may give exactly 0 or 1."""

        def uniform() -> Tensor:  # on (0, 1], so that its logarithm is finite
            return 1 - torch.rand(size, dtype=torch.float64, generator=generator, device=device)

        def log_gamma(shape: float) -> Tensor:
            # Gamma(shape) = Gamma(shape + 1) U^(1 / shape), which does not underflow in log space for small shapes.
            larger = torch.full(size, shape + 1, dtype=torch.float64, device=device)
            larger = torch._standard_gamma(larger, generator=generator)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage] -- torch.distributions takes no generator
            return larger.log() + uniform().log() / shape

        if self.beta == 1:  # inverse distribution function
            return uniform() ** (1 / self.alpha)
        if self.alpha == 1:  # 1 - U^(1/beta), written so that values near 0 keep their digits
            return -torch.expm1(uniform().log() / self.beta)
        return torch.sigmoid(log_gamma(self.alpha) - log_gamma(self.beta))


@dataclass(frozen=True)
class LogitNormalTime:
    r"""Logit-normal flow times for training, most of them in the middle of the path.

    $$t = \frac{1}{1 + e^{-z}},\qquad z \sim \mathcal N(\mu, \sigma^2)$$

    In the other clock it is the same distribution with the opposite mean. A time shift by s, which takes t to
    s t / (1 + (s - 1) t), adds log(s) to the mean.

    Args:
        mean: Mean $\mu$ of the logit.
        std: Standard deviation $\sigma$ of the logit.

    Raises:
        ValueError: The mean is not finite, or `std` is not a positive finite number.

    Source:
        Stable Diffusion 3, Esser et al., arXiv 2403.03206.

    Examples:
        >>> LogitNormalTime(0.0, 1.0).sample((2, 3), generator=torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3])
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise ValueError(
                f"mean, std: expected a finite mean and a positive finite std, got mean={self.mean}, std={self.std}"
            )

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "..."]:
        """Draw times strictly inside (0, 1); the arguments are those of `BetaTime.sample`."""

        def draw(size: torch.Size, source: torch.device) -> Tensor:
            normal = torch.randn(size, dtype=torch.float64, generator=generator, device=source)
            return torch.sigmoid(self.mean + self.std * normal)

        return _inside(draw, shape, generator, device, dtype)


def discretised(time: Float[Tensor, "*shape"], buckets: int) -> Float[Tensor, "*shape"]:
    """Each time rounded down to a multiple of 1 / `buckets`, for networks that know only so many times.

    GR00T's network sees the number of the bucket, the path the time itself; schedulers with a table of times, as those
    of diffusers, use the rounded time for both.

    Args:
        time: Flow times in [0, 1].
        buckets: Number of buckets of equal width.

    Raises:
        ValueError: `buckets` is below 1.

    Examples:
        >>> discretised(torch.tensor([0.0, 0.13, 0.99]), buckets=4)
        tensor([0.0000, 0.0000, 0.7500])
    """
    if buckets < 1:
        raise ValueError(f"buckets: expected at least 1, got {buckets}")
    return (time * buckets).floor() / buckets


def time_features(
    time: Float[Tensor, "*shape"], *, dim: int, min_period: float, max_period: float
) -> Float32[Tensor, "*shape {dim}"]:
    r"""Sinusoidal features of each time: `dim` / 2 sines, then `dim` / 2 cosines.

    $$\sin\frac{2\pi t}{p_i},\quad \cos\frac{2\pi t}{p_i},\qquad
    p_i = p_{\min}\left(\frac{p_{\max}}{p_{\min}}\right)^{i/(n-1)},\quad i = 0,\dots,n-1,\quad n = \text{dim}/2$$

    Angles reach 2 pi / 4e-3 = 1,571 rad, where float32 has lost five digits. They are computed in float64 (on the CPU
    for backends without float64, such as MPS), and only the features are rounded to float32.

    Source:
        The released code of InternVLA-A1; the scheme is that of Vaswani et al., arXiv 1706.03762.

    Examples:
        >>> time_features(torch.tensor([0.0, 1.0]), dim=4, min_period=1.0, max_period=4.0).round(decimals=4).abs()
        tensor([[0., 0., 1., 1.],
                [0., 1., 1., 0.]])
    """
    precise = time.to(_float64_device(time.device)).to(torch.float64)
    fraction = torch.linspace(0, 1, dim // 2, dtype=torch.float64, device=precise.device)
    period = min_period * (max_period / min_period) ** fraction
    angle = 2 * math.pi * precise[..., None] / period
    return torch.cat([angle.sin(), angle.cos()], dim=-1).to(torch.float32).to(time.device)


def _inside(
    draw: Callable[[torch.Size, torch.device], Tensor],
    shape: Sequence[int],
    generator: torch.Generator | None,
    device: torch.device | str | None,
    dtype: torch.dtype,
) -> Float[Tensor, "..."]:
    """Draw in float64 on the generator's device, round, and keep strictly inside (0, 1)."""
    limits = torch.finfo(dtype)
    home = torch.device("cpu") if generator is None else generator.device
    target = home if device is None else torch.device(device)
    source = _float64_device(target) if generator is None else home
    return draw(torch.Size(shape), source).to(dtype).clamp(limits.tiny, 1 - limits.eps / 2).to(target)


def _float64_device(device: torch.device) -> torch.device:
    """The device itself, or the CPU for a backend without float64."""
    return torch.device("cpu") if device.type == "mps" else device
