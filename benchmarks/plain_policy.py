"""InternVLA-A1 acting the plain way: the yardstick that an inference session is held against.

It reads a model's own weights and computes the same actions as `InternVLAA1.act`, as one would write it down first and
as public code for such models is written: eager attention with repeated key heads and a dense additive mask in float32,
a cache that grows by concatenation, every mask, position, rotary angle, time feature and state token made anew at
each step, all frames encoded, padding computed like everything else, every last layer in full. Nothing else is slow on
purpose: the vision tower is the model's own, linear maps, norms and convolutions are PyTorch's.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from moteur.data import as_unit_floats
from moteur.mot import Expert, Rotary
from moteur.recipes import Inputs, InternVLAA1
from moteur.recipes.backbones.stream import Stream, continued
from moteur.recipes.inputs import only

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values of every layer, (batch, kv_heads, seq, head_dim); empty before the first stream."""


class PlainPolicy:
    """A model's weights, used plainly.

    Args:
        model: The model; read, never written.
        compiled: Hand the layers to `torch.compile`.
    """

    def __init__(self, model: InternVLAA1, *, compiled: bool = False) -> None:
        self.model = model
        self._layers = torch.compile(_layers) if compiled else _layers

    @torch.no_grad()
    def act(
        self, inputs: Inputs, *, noise: Float[Tensor, "batch step action"], steps: int | None = None
    ) -> Float[Tensor, "batch step action"]:
        """What `InternVLAA1.act` returns for Euler's method."""
        model, cache = self.model, []
        context, _ = model.context(inputs, None)
        if model.foresight is not None:
            context["gen"] = self._frames(inputs, after=context["und"])
        for name, stream in context.items():
            _, cache = self._carry(name, stream, context, cache)
        actions, steps = noise, model.config.steps if steps is None else steps
        for index in range(steps):
            state = model.action.embed_state(inputs.state)
            tokens = model.action.embed_actions(actions, (steps - index) / steps)
            stream = continued(torch.cat([state, tokens], dim=1), None, after=list(context.values())[-1])
            hidden, _ = self._carry("act", stream, context, cache)
            actions = actions - model.action.velocity(hidden[:, 1:]).to(actions.dtype) / steps
        return actions

    def _frames(self, inputs: Inputs, after: Stream) -> Stream:
        """The generation stream: all frames encoded, then the two convolutions one after the other."""
        foresight = self.model.foresight
        assert foresight is not None
        frames = only(as_unit_floats(inputs.frames[:, :, -2:]), inputs.view_valid)
        latents = only(foresight.encode(frames), inputs.view_valid).to(self.model.dtype)
        views, times = latents.shape[1:3]
        features = foresight.head.downsample(foresight.head.project_in(latents.flatten(0, 2)))
        tokens = rearrange(
            features, "(batch view time) dim row column -> batch (view time row column) dim", view=views, time=times
        )
        valid = None
        if inputs.view_valid is not None:
            valid = repeat(inputs.view_valid, "batch view -> batch (view cell)", cell=tokens.shape[1] // views)
        return continued(tokens, valid, after=after)

    def _carry(
        self, name: str, stream: Stream, context: Mapping[str, Stream], cache: Cache
    ) -> tuple[Float[Tensor, "batch seq dim"], Cache]:
        """One stream through its expert, in sight of what is cached; also the cache with the stream in it."""
        start = cache[0][0].shape[2] if cache else 0
        stop = start + stream.tokens.shape[1]
        visible = self.model.layout(context).dense(range(start, stop), range(stop))
        wide = torch.promote_types(self.model.dtype, torch.float32)
        bias = torch.where(visible, 0.0, torch.finfo(torch.float32).min).to(wide)[:, None]
        return self._layers(self.model.mot.expert(name), stream.tokens, self.model.rotary(stream), bias, cache)


def _layers(
    expert: Expert, x: Tensor, rotary: Rotary, bias: Tensor, cache: Cache
) -> tuple[Float[Tensor, "batch seq dim"], Cache]:
    """All layers and the final norm of an expert."""
    grown: Cache = []
    for index in range(expert.depth):
        layer = expert.layer(index)
        *heads, carried = layer.project(x, None)
        query, key, value = (each.transpose(1, 2) for each in heads)
        query, key = _rotated(query, rotary), _rotated(key, rotary)
        if cache:
            key, value = torch.cat([cache[index][0], key], dim=2), torch.cat([cache[index][1], value], dim=2)
        grown.append((key, value))
        x = layer.finish(x, _attention(query, key, value, bias).transpose(1, 2).contiguous(), carried)
    return expert.norm(x), grown


def _rotated(x: Tensor, rotary: Rotary) -> Tensor:
    cos, sin = (table[:, None] for table in rotary)
    low, high = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-high, low], dim=-1) * sin).to(x.dtype)


def _attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.mT * query.shape[-1] ** -0.5 + bias
    return F.softmax(scores, dim=-1).to(query.dtype) @ value
