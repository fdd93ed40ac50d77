"""Action head: embeds the state and noisy actions as tokens, and reads a velocity from tokens."""

import math
from typing import Literal

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Float32
from torch import Tensor, nn

from moteur.flowmatch.solvers import expect_floats
from moteur.flowmatch.time import Time, time_features


class ActionHead(nn.Module):
    r"""Linear projections between robot vectors and the tokens of an action expert.

    - State token: $W_s q$.
    - Token of action step i, where the time is fused into it (InternVLA-A1, pi0):
      $W_2\,\mathrm{SiLU}(W_1[W_a a_i;\ \phi(t)])$. Otherwise: $W_a a_i$.
    - Condition for the norms of the action expert, where the time is one (pi0.5):
      $\mathrm{SiLU}(W_2\,\mathrm{SiLU}(W_1 \phi(t)))$.
    - Velocity of step i: $W_o h_i$.

    Each $W$ is a linear map with bias. $\phi$ holds the sines and then the cosines of $2\pi t / p$, for `dim` / 2
    periods $p$ in geometric steps from `min_period` to `max_period`. `forward` is `embed_actions`.

    Time and velocity are in the clock that the network was trained in: use one `StraightPath` for training and solving.
    The released InternVLA-A1 has `noise_at=1`. As in the released code, the network's time is a float32 number; its
    features are computed from that number in float64.

    Inputs are cast to the dtype of the parameters. `action_out` may stay in float32 while the rest is bfloat16; the
    velocity has its dtype.

    Args:
        dim: Width of the tokens, even.
        state_dim: Length of the state vector, padding included. None: no state token.
        action_dim: Length of an action vector, padding included.
        state_width: Width of the state token, for a state that another expert reads. None: `dim`.
        time: What becomes of the flow time: `"fused"` into each action token, a `"condition"`, or None if this head has
            no part in it.
        min_period: Shortest period of the time features, in units of time.
        max_period: Longest period.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: `dim` is odd or not positive, or not 0 < `min_period` < `max_period`.

    Source:
        InternVLA-A1, arXiv 2601.02456; layer sizes as measured on its released code. The condition: pi0.5,
        arXiv 2504.16054, and its released code.

    Examples:
        >>> head = ActionHead(dim=8, state_dim=3, action_dim=2)
        >>> noisy, time = torch.randn(4, 5, 2), torch.rand(4)
        >>> tokens = torch.cat([head.embed_state(torch.randn(4, 3)), head.embed_actions(noisy, time)], dim=1)
        >>> tokens.shape, head.velocity(tokens[:, 1:]).shape
        (torch.Size([4, 6, 8]), torch.Size([4, 5, 2]))
        >>> head = ActionHead(dim=8, state_dim=None, action_dim=2, time="condition")
        >>> head(noisy, time).shape, head.condition(time).shape
        (torch.Size([4, 5, 8]), torch.Size([4, 8]))
    """

    def __init__(
        self,
        *,
        dim: int,
        state_dim: int | None,
        action_dim: int,
        state_width: int | None = None,
        time: Literal["fused", "condition"] | None = "fused",
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
        if time not in {"fused", "condition", None}:
            raise ValueError(f"time: expected 'fused', 'condition' or None, got {time!r}")
        if state_dim is None and state_width is not None:
            raise ValueError(
                f"state_width: expected None for a head without a state (state_dim=None), got {state_width}"
            )
        self.dim = dim
        self.min_period = min_period
        self.max_period = max_period

        def linear(inputs: int, outputs: int) -> nn.Linear:
            return nn.Linear(inputs, outputs, device=device, dtype=dtype)

        self.state_in = None if state_dim is None else linear(state_dim, state_width or dim)
        self.action_in = linear(action_dim, dim)
        self.fusion_in, self.fusion_out = (linear(2 * dim, dim), linear(dim, dim)) if time == "fused" else (None, None)
        self.time_in, self.time_out = (linear(dim, dim), linear(dim, dim)) if time == "condition" else (None, None)
        self.action_out = linear(dim, action_dim)

    def forward(self, noisy: Float[Tensor, "batch step action_dim"], time: Time) -> Float[Tensor, "batch step dim"]:
        """`embed_actions`, for what wraps a module: hooks, DDP, FSDP, `functional_call`."""
        return self.embed_actions(noisy, time)

    def embed_state(self, state: Float[Tensor, "batch *more state_dim"]) -> Float[Tensor, "batch token state_width"]:
        """One token for each proprioceptive state of a sample, normalised as in training; it must be floating point.

        Axes between the first and the last become one: (batch, state_dim) gives one token, (batch, time, state_dim) one
        for each time.

        Raises:
            ValueError: The head has no state, or the state is not floating point or has fewer than two axes.
        """
        if self.state_in is None:
            raise ValueError("state: expected none for a head built with state_dim=None, got one")
        expect_floats(state=state)
        if state.ndim < 2:  # noqa: PLR2004
            raise ValueError(f"state: expected at least the axes (batch, state_dim), got shape {tuple(state.shape)}")
        return rearrange(self.state_in(state.to(self.state_in.weight.dtype)), "batch ... dim -> batch (...) dim")

    def embed_actions(
        self, noisy: Float[Tensor, "batch step action_dim"], time: Time
    ) -> Float[Tensor, "batch step dim"]:
        """One token for each step of a noisy action chunk.

        Args:
            noisy: Noisy actions, a point of the path.
            time: Flow time in [0, 1], (batch,) or (batch, step), or one number for all, as a tensor or a Python float;
                rounded to float32. Where it is not fused into the tokens, it changes nothing here.

        Raises:
            ValueError: A tensor is not floating point.
        """
        expect_floats(noisy=noisy)
        actions = self.action_in(noisy.to(self.action_in.weight.dtype))
        if self.fusion_in is None or self.fusion_out is None:
            return actions
        if not isinstance(time, Tensor):
            time = torch.full((len(noisy),), time, dtype=torch.float32, device=noisy.device)
        features = self._features(time.expand(len(noisy)) if time.ndim == 0 else time).to(actions)
        if features.ndim < actions.ndim:
            features = repeat(features, "batch dim -> batch step dim", step=noisy.shape[1])
        hidden = self.fusion_in(torch.cat([actions, features], dim=-1))
        return self.fusion_out(nn.functional.silu(hidden))

    def condition(self, time: Float[Tensor, "*time"] | float) -> Float[Tensor, "*time dim"]:
        """Condition for the norms of the action expert: one vector for each flow time in [0, 1], rounded to float32.

        Raises:
            ValueError: The head was not built with `time="condition"`, or the time is not floating point.
        """
        if self.time_in is None or self.time_out is None:
            raise ValueError('condition: expected a head built with time="condition", got another')
        weight, silu = self.time_in.weight, nn.functional.silu
        if not isinstance(time, Tensor):
            time = torch.full((), time, dtype=torch.float32, device=weight.device)
        return silu(self.time_out(silu(self.time_in(self._features(time).to(weight)))))

    def velocity(self, tokens: Float[Tensor, "batch step dim"]) -> Float[Tensor, "batch step action_dim"]:
        """Velocity of the noisy actions, read from the output tokens of the action expert."""
        return self.action_out(tokens.to(self.action_out.weight.dtype))

    def _features(self, time: Float[Tensor, "*time"]) -> Float32[Tensor, "*time dim"]:
        """Sines and cosines of the network's time, which is a float32 number."""
        expect_floats(time=time)
        return time_features(
            time.to(torch.float32), dim=self.dim, min_period=self.min_period, max_period=self.max_period
        )
