"""Random flow times with a Beta distribution."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from moteur.flowmatch.beta_draws import draw_beta
from moteur.flowmatch.clocks import Clock, check_clock
from moteur.flowmatch.incomplete_beta import incomplete_beta
from moteur.flowmatch.precision import float64_device

_SMALLEST_SHAPE, _LARGEST_SHAPE = 1e-6, 1e4
_ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True)
class BetaTime:
    r"""Flow times for training: $t = \text{scale}\cdot B + \text{offset}$ with $B \sim \mathrm{Beta}(\alpha, \beta)$.

    `clock` says which clock t is written in; what `sample` returns and `cdf` takes is always tau (0 noise, 1 data), so
    tau = t or tau = 1 - t. The paper and the code of InternVLA-A1 differ in just this: `released()` has most times near
    noise, `paper()`, the text taken literally, near data.

    Args:
        alpha: First shape of the Beta distribution, in [1e-6, 1e4].
        beta: Second shape, in [1e-6, 1e4].
        scale: Width of the interval of times.
        offset: Its lower end; times stay in [offset, offset + scale], which must lie in [0, 1].
        clock: The clock of t.

    Raises:
        ValueError: Shapes, scale or offset out of range or not finite, an unknown clock.

    Source:
        InternVLA-A1 paper and released code; the distribution was introduced with pi0, arXiv 2410.24164.

    Examples:
        >>> tau = BetaTime.released().sample((3,), generator=torch.Generator().manual_seed(0))
        >>> tau.shape, bool(((tau > 0) & (tau < 1)).all())
        (torch.Size([3]), True)
        >>> BetaTime.paper().cdf(torch.tensor([0.25]))
        tensor([0.1250], dtype=torch.float64)
    """

    alpha: float
    beta: float
    scale: float = 0.999
    offset: float = 0.001
    clock: Clock = "data"

    def __post_init__(self) -> None:
        for name, shape in (("alpha", self.alpha), ("beta", self.beta)):
            if not _SMALLEST_SHAPE <= shape <= _LARGEST_SHAPE:
                raise ValueError(f"{name}: expected a number in [{_SMALLEST_SHAPE}, {_LARGEST_SHAPE}], got {shape}")
        low, high = self.offset, self.offset + self.scale
        if not (self.scale > 0 and low >= 0 and high <= 1 + _ROUNDING):
            raise ValueError(
                f"scale, offset: expected scale > 0 and times from offset to offset + scale inside [0, 1], "
                f"got scale={self.scale}, offset={self.offset}"
            )
        check_clock(self.clock)

    @classmethod
    def released(cls) -> "BetaTime":
        """What the released code trains with: s = 0.999 Beta(1.5, 1) + 0.001 in the noise clock."""
        return cls(alpha=1.5, beta=1.0, scale=0.999, offset=0.001, clock="noise")

    @classmethod
    def paper(cls) -> "BetaTime":
        """What the paper's text says: tau ~ Beta(1.5, 1)."""
        return cls(alpha=1.5, beta=1.0, scale=1.0, offset=0.0, clock="data")

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "..."]:
        """Draw values of tau, each strictly inside (0, 1).

        Drawn in float64: by inverting the distribution function where a shape is 1 (both presets), else as a ratio of
        two Gamma variables (Marsaglia and Tsang, in log space), which is exact too but asks the device after each round
        whether all draws were accepted. A draw closer to an end than `dtype` can express becomes the last number
        inside.

        Args:
            shape: Shape of the result.
            generator: Source of randomness; the numbers are drawn on its device, then moved. The same generator state
                gives the same times. None: torch's default generator of `device`.
            device: Where the result lives. None: the generator's device, or the CPU.
            dtype: Floating-point dtype of the result.

        Raises:
            ValueError: A `dtype` that is not floating-point, a generator on a device without float64.
        """
        if not dtype.is_floating_point:
            raise ValueError(f"dtype: expected a floating-point dtype, got {dtype}")
        home = torch.device("cpu") if generator is None else generator.device
        target = home if device is None else torch.device(device)
        source = float64_device(target) if generator is None else home
        if generator is not None and float64_device(source) != source:
            raise ValueError(f"generator: expected one on a device that has float64, got {source}")
        draws = draw_beta(self.alpha, self.beta, torch.Size(shape), generator=generator, device=source)
        time = self.scale * draws + self.offset
        tau = time if self.clock == "data" else 1 - time
        info = torch.finfo(dtype)
        return tau.to(dtype).clamp(info.tiny, 1 - info.eps / 2).to(target)

    def cdf(self, tau: Float[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
        """Probability of a time up to `tau`, in float64 (on the CPU where the device has none)."""
        precise = tau.to(float64_device(tau.device)).to(torch.float64)
        time = precise if self.clock == "data" else 1 - precise
        below = incomplete_beta(self.alpha, self.beta, ((time - self.offset) / self.scale).clamp(0, 1))
        return below if self.clock == "data" else 1 - below

    @property
    def mean(self) -> float:
        """Expected tau."""
        time = self.scale * self.alpha / math.fsum((self.alpha, self.beta)) + self.offset
        return time if self.clock == "data" else 1 - time
