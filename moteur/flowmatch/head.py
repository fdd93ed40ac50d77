"""Action head: state and noisy actions in as tokens, a velocity out."""

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from moteur.flowmatch.clocks import Clock, check_clock
from moteur.flowmatch.features import check_features, time_features
from moteur.flowmatch.precision import float64_device


class ActionHead(nn.Module):
    r"""Linear doors between robot vectors and the tokens of an action expert.

    In: the state is one token, $W_s q$; action step i is a token of
    $W_2\,\mathrm{SiLU}(W_1[W_a a_i^\tau;\ \phi(t)])$, with $\phi$ the `time_features` of the network's own clock t.
    Out: $v_i = \pm W_o h_i$, always the derivative with respect to tau (data minus noise).

    The sign and the clock are the head's business. A network trained in the noise clock, such as the released
    InternVLA-A1 checkpoint, reads s = 1 - tau and gives noise minus data; with `clock="noise"` the head converts both,
    so that callers only ever see tau and data minus noise.

    Parameters are `state_in`, `action_in`, `fusion_in`, `fusion_out` and `action_out`, each an `nn.Linear` with bias.
    Inputs are cast to the parameters' dtype; `action_out` may be kept in float32 while the rest is bfloat16, and the
    velocity has its dtype.

    Args:
        dim: Width of the tokens, even.
        state_dim: Length of the state vector, padding included.
        action_dim: Length of an action vector, padding included.
        min_period: Shortest period of the time features, in units of time.
        max_period: Longest period.
        clock: The clock that the network was, or will be, trained in.
        device: Where to create the parameters.
        dtype: Their dtype.

    Raises:
        ValueError: A size below 1, an odd `dim`, impossible periods, an unknown clock.

    Source:
        InternVLA-A1 paper; layer sizes and the time clock as measured on its released code.

    Examples:
        >>> head = ActionHead(dim=8, state_dim=3, action_dim=2)
        >>> noisy, tau = torch.randn(4, 5, 2), torch.rand(4)
        >>> tokens = torch.cat([head.embed_state(torch.randn(4, 3)), head.embed_actions(noisy, tau)], dim=1)
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
        clock: Clock = "noise",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("state_dim", state_dim), ("action_dim", action_dim)):
            if size < 1:
                raise ValueError(f"{name}: expected at least 1, got {size}")
        check_features(dim=dim, min_period=min_period, max_period=max_period)
        check_clock(clock)
        self.dim = dim
        self.state_dim = state_dim
        self.action_dim = action_dim
        self.min_period = min_period
        self.max_period = max_period
        self.clock: Clock = clock
        self.state_in = nn.Linear(state_dim, dim, device=device, dtype=dtype)
        self.action_in = nn.Linear(action_dim, dim, device=device, dtype=dtype)
        self.fusion_in = nn.Linear(2 * dim, dim, device=device, dtype=dtype)
        self.fusion_out = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.action_out = nn.Linear(dim, action_dim, device=device, dtype=dtype)

    def embed_state(self, state: Float[Tensor, "batch state_dim"]) -> Float[Tensor, "batch 1 dim"]:
        """One token for the proprioceptive state, in the units that the network was trained with.

        Raises:
            ValueError: A state of another length than `state_dim`.
        """
        _check_last("state", state, self.state_dim, "state_dim")
        return rearrange(self.state_in(state.to(self.state_in.weight.dtype)), "batch dim -> batch 1 dim")

    def embed_actions(
        self, noisy: Float[Tensor, "batch step action_dim"], tau: Float[Tensor, " batch"] | float
    ) -> Float[Tensor, "batch step dim"]:
        """One token for each step of a noisy action chunk.

        Args:
            noisy: Actions somewhere on the path between noise and data.
            tau: Where on the path: 0 is noise, 1 is data; a value for each sample, or one Python float for all. A
                shortest period of 4e-3 turns a rounding of 1e-8 into 1e-5 in the features: hand in float64 where a
                time from the other clock must survive the way 1 - (1 - s) exactly.

        Raises:
            ValueError: Actions of another length than `action_dim`, a tau whose batch is not that of `noisy`, a float
                outside [0, 1].
        """
        _check_last("noisy", noisy, self.action_dim, "action_dim")
        batch, steps, _ = noisy.shape
        if not isinstance(tau, Tensor):
            if not 0 <= tau <= 1:
                raise ValueError(f"tau: expected a number in [0, 1], got {tau}")
            tau = torch.full((batch,), tau, dtype=torch.float64, device=float64_device(noisy.device))
        elif tau.shape != (batch,):
            raise ValueError(
                f"tau: expected one value for each of the {batch} samples, shape ({batch},), got {tuple(tau.shape)}"
            )
        else:
            tau = tau.to(float64_device(tau.device)).to(torch.float64)
        native = tau if self.clock == "data" else 1 - tau
        features = time_features(native, dim=self.dim, min_period=self.min_period, max_period=self.max_period)
        actions = self.action_in(noisy.to(self.action_in.weight.dtype))
        time = repeat(features.to(actions), "batch dim -> batch step dim", step=steps)
        hidden = self.fusion_in(torch.cat([actions, time], dim=-1))
        return self.fusion_out(nn.functional.silu(hidden))

    def velocity(self, tokens: Float[Tensor, "batch step dim"]) -> Float[Tensor, "batch step action_dim"]:
        """Velocity d(action)/d(tau), data minus noise, read from the action expert's output tokens.

        Raises:
            ValueError: Tokens of another width than `dim`.
        """
        _check_last("tokens", tokens, self.dim, "dim")
        native = self.action_out(tokens.to(self.action_out.weight.dtype))
        return native if self.clock == "data" else -native


def _check_last(name: str, tensor: Tensor, size: int, size_name: str) -> None:
    if tensor.shape[-1] != size:
        raise ValueError(
            f"{name}: expected {size_name}={size} numbers on the last axis, got shape {tuple(tensor.shape)}"
        )
