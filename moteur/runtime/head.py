"""The action head with everything that does not depend on the actions computed beforehand."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from moteur.flowmatch import ActionHead, time_features
from moteur.runtime.choice import Linears


class FusedHead:
    r"""Actions in, increments out, for a fixed number of solver steps.

    With $W_1 = [W_x\;W_t]$ the first layer over actions and time features: $W_1[W_a a + b_a;\,\phi] + b_1 =
    (W_x W_a) a + c_k$, where $c_k = W_x b_a + W_t \phi(t_k) + b_1$ is one row of a table for each time the solver
    stops at. The read-out gives velocity times the width of a step, the gain of the final norm folded in.

    Args:
        head: The trained head; read, never written.
        linears: Builds the maps.
        steps: Steps of the solver.
        chunk: Actions of a chunk.
        gain: What the read-out must be multiplied by, see `FusedExpert`.
    """

    def __init__(
        self, head: ActionHead, linears: Linears, *, steps: int, chunk: int, gain: Float[Tensor, " dim"] | float
    ) -> None:
        self.dtype = linears.dtype
        joined, bias = head.fusion_in.weight.double(), head.fusion_in.bias.double()
        for_actions, for_time = joined.split(head.dim, dim=1)
        positions = torch.arange(2 * steps + 1, dtype=torch.float64, device=joined.device) / 2
        native = positions / steps if head.clock == "data" else (steps - positions) / steps
        features = time_features(native, dim=head.dim, min_period=head.min_period, max_period=head.max_period)
        table = features.double() @ for_time.mT + for_actions @ head.action_in.bias.double() + bias
        self.table = table.to(linears.device, linears.dtype)
        self.enter = linears.linear(for_actions @ head.action_in.weight.double(), rows=chunk)
        self.fuse = linears.linear(head.fusion_out.weight, head.fusion_out.bias, rows=chunk)
        self.state = linears.linear(head.state_in.weight, head.state_in.bias, rows=1)
        width = (1 if head.clock == "data" else -1) / steps
        kind = head.action_out.weight.dtype
        exact = kind if linears.dtype != torch.float64 and kind == torch.float32 else linears.dtype
        self.weight = (head.action_out.weight.double() * gain * width).to(linears.device, exact)
        self.bias = (head.action_out.bias.double() * width).to(linears.device, exact)

    def embed_state(self, state: Float[Tensor, "batch state"]) -> Float[Tensor, "batch 1 dim"]:
        """The token of the proprioceptive state."""
        return self.state(state.to(self.dtype))[:, None]

    def embed_actions(
        self, actions: Float[Tensor, "batch step action"], position: float
    ) -> Float[Tensor, "batch step dim"]:
        """The tokens of noisy actions, at a position counted in solver steps (multiples of a half)."""
        hidden = self.enter(actions.to(self.dtype)) + self.table[int(2 * position)]
        return self.fuse(F.silu(hidden))

    def increment(self, tokens: Float[Tensor, "batch step dim"]) -> Float[Tensor, "batch step action"]:
        """Velocity times the width of a step, from the action expert's output."""
        return F.linear(tokens.to(self.weight.dtype), self.weight, self.bias)
