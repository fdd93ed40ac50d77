"""Action head: embeds the state and noisy actions as tokens, and reads a velocity from tokens."""

import math

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from moteur.flowmatch.solvers import expect_floats
from moteur.flowmatch.time import time_features


class ActionHead(nn.Module):
    r"""Linear projections between robot vectors and the tokens of an action expert.

    - State token: $W_s q$.
    - Token of action step i: $W_2\,\mathrm{SiLU}(W_1[W_a a_i;\ \phi(t)])$, with $\phi$ the sines and then the
      cosines of $2\pi t / p$, for `dim` / 2 periods $p$ in geometric steps from `min_period` to `max_period`.
    - Velocity of step i: $W_o h_i$.

    Time and velocity are in the clock that the network was trained in: use one `StraightPath` for training and solving.
    The released InternVLA-A1 has `noise_at=1`. As in the released code, the network's time is a float32 number; its
    features are computed from that number in float64.

    Inputs are cast to the dtype of the parameters. `action_out` may stay in float32 while the rest is bfloat16; the
    velocity has its dtype.

    Args:
        dim: Width of the tokens, even.
        state_dim: Length of the state vector, padding included.
        action_dim: Length of an action vector, padding included.
        min_period: Shortest period of the time features, in units of time.
        max_period: Longest period.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: `dim` is odd or not positive, or not 0 < `min_period` < `max_period`.

    Source:
        InternVLA-A1, arXiv 2601.02456; layer sizes as measured on its released code.

    Examples:
        >>> head = ActionHead(dim=8, state_dim=3, action_dim=2)
        >>> noisy, time = torch.randn(4, 5, 2), torch.rand(4)
        >>> tokens = torch.cat([head.embed_state(torch.randn(4, 3)), head.embed_actions(noisy, time)], dim=1)
        >>> tokens.shape, head.velocity(tokens[:, 1:]).shape
        (torch.Size([4, 6, 8]), torch.Size([4, 5, 2]))
    """

    def __init__(
        self,
        *,
        dim: int,
        state_dim: int,
        action_dim: int,
        min_period: float = 4e-3,
        max_period: float = 4.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dim < 1 or dim % 2:
            raise ValueError(f"dim: expected a positive even number, got {dim}")
        if not 0 < min_period < max_period < math.inf:
            raise ValueError(
                f"min_period, max_period: expected 0 < min_period < max_period, both finite, "
                f"got min_period={min_period}, max_period={max_period}"
            )
        self.dim = dim
        self.min_period = min_period
        self.max_period = max_period
        self.state_in = nn.Linear(state_dim, dim, device=device, dtype=dtype)
        self.action_in = nn.Linear(action_dim, dim, device=device, dtype=dtype)
        self.fusion_in = nn.Linear(2 * dim, dim, device=device, dtype=dtype)
        self.fusion_out = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.action_out = nn.Linear(dim, action_dim, device=device, dtype=dtype)

    def embed_state(self, state: Float[Tensor, "batch state_dim"]) -> Float[Tensor, "batch 1 dim"]:
        """One token for the proprioceptive state, normalised as in training; it must be floating point."""
        expect_floats(state=state)
        return rearrange(self.state_in(state.to(self.state_in.weight.dtype)), "batch dim -> batch 1 dim")

    def embed_actions(
        self, noisy: Float[Tensor, "batch step action_dim"], time: Float[Tensor, " batch"] | float
    ) -> Float[Tensor, "batch step dim"]:
        """One token for each step of a noisy action chunk.

        Args:
            noisy: Noisy actions, a point of the path.
            time: Flow time in [0, 1], one value per sample or one Python float for the batch; rounded to float32.

        Raises:
            ValueError: A tensor is not floating point.
        """
        if not isinstance(time, Tensor):
            time = torch.full((len(noisy),), time, dtype=torch.float32, device=noisy.device)
        expect_floats(noisy=noisy, time=time)
        features = time_features(
            time.to(torch.float32), dim=self.dim, min_period=self.min_period, max_period=self.max_period
        )
        actions = self.action_in(noisy.to(self.action_in.weight.dtype))
        times = repeat(features.to(actions), "batch dim -> batch step dim", step=noisy.shape[1])
        hidden = self.fusion_in(torch.cat([actions, times], dim=-1))
        return self.fusion_out(nn.functional.silu(hidden))

    def velocity(self, tokens: Float[Tensor, "batch step dim"]) -> Float[Tensor, "batch step action_dim"]:
        """Velocity of the noisy actions, read from the output tokens of the action expert."""
        return self.action_out(tokens.to(self.action_out.weight.dtype))
