"""How a model acts: its context once, then the flow over the keys and values; and what a session asks of a model."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moteur.flowmatch import ActionHead, Method
from moteur.masks import Layout, Segment, structural_attention
from moteur.mot import KVCache, MoT, Rotary
from moteur.recipes.backbones.stream import Stream
from moteur.recipes.cosmos import Foresight
from moteur.recipes.inputs import Inputs, Sizes, check_frames, expect_mask, expect_shape


@runtime_checkable
class ActingModel(Protocol):
    """A model that a session can hold, and with it a policy.

    Attributes:
        config: Its sizes, see `Sizes`.
        backbone: Holds `text_embedding` and whatever makes tokens of pictures.
        mot: Its experts, `act` among them. Of the first one's last layer nothing but keys and values is read.
        foresight: Tokenizer and head of a generation expert, or None.
        dtype: Dtype in which the streams are computed.
    """

    @property
    def config(self) -> Sizes: ...  # noqa: D102  see above
    @property
    def backbone(self) -> Any: ...  # noqa: ANN401, D102
    @property
    def mot(self) -> MoT: ...  # noqa: D102
    @property
    def foresight(self) -> Foresight | None: ...  # noqa: D102
    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102

    def denoise(
        self,
        inputs: Inputs,
        latents: Tensor | None,
        noise: Tensor,
        *,
        steps: int | None = None,
        method: Method = "euler",
        prefix: Tensor | None = None,
    ) -> Tensor:
        """A chunk of normalised actions, without checks; nothing in it depends on values."""
        ...

    def get_submodule(self, target: str) -> nn.Module: ...  # noqa: D102  of `nn.Module`
    def eval(self) -> Any: ...  # noqa: ANN401, D102


def check_pictures(config: Sizes, frames: Tensor, view_valid: Tensor | None) -> None:
    """Refuse pictures of one time, (batch, view, 3, side, side), that do not fit a model.

    Raises:
        ValueError: If the shape of pictures or mask is another one, or the pictures are neither uint8 nor floats in
            [0, 1].
    """
    expect_shape("frames", frames.shape[1:], (config.views, 3, config.frame_size, config.frame_size))
    expect_mask("view_valid", view_valid, (frames.shape[0], config.views))
    check_frames("frames", frames, view_valid)


def check_imagines(foresight: Foresight | None, *, decode: bool) -> None:
    """Refuse to imagine with a model that cannot.

    Raises:
        ValueError: If the model has no generation expert, or pictures are asked for without a decoder.
    """
    if foresight is None:
        raise ValueError("imagine: expected a model with a generation expert, got one without")
    if decode and foresight.decoder is None:
        raise ValueError("decode: expected a model built with decoder=True, got one without the Cosmos decoder")


def action_layout(context: Mapping[str, Stream], *, state: int, chunk: int) -> Layout:
    """Who may see whom: each segment sees itself and all before; the state does not see the actions.

    Args:
        context: What is known before acting, a segment each.
        state: Tokens of the state.
        chunk: Tokens of the actions.
    """
    own = [Segment("state", state)] if state else []
    return Layout(
        [*(Segment(name, stream.tokens.shape[1]) for name, stream in context.items()), *own, Segment("action", chunk)],
        valid={name: stream.valid for name, stream in context.items() if stream.valid is not None},
    )


def read_context(
    mot: MoT, context: Mapping[str, Stream], layout: Layout, rotary: Rotary, *, outputs: Collection[str] = ()
) -> tuple[KVCache, dict[str, Tensor]]:
    """Run what is known before acting, once.

    Args:
        mot: The experts.
        context: The streams, by expert.
        layout: Who may see whom, the actions included.
        rotary: Rotary angles of these streams.
        outputs: Streams whose result is wanted.

    Returns:
        Keys and values, with room for the actions behind them; and the results.
    """
    first = next(iter(context.values())).tokens
    kind = first.device.type
    mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if mixed else first.dtype
    cache = mot.new_cache(batch=first.shape[0], capacity=layout.length, device=first.device, dtype=dtype)
    hidden = mot(
        {name: stream.tokens for name, stream in context.items()},
        attention=partial(structural_attention, layout=layout),
        rotary=rotary,
        cache=cache,
        outputs=outputs,
    )
    return cache.extended(sum(stream.tokens.shape[1] for stream in context.values())), hidden


def velocity_over(
    mot: MoT,
    head: ActionHead,
    *,
    cache: KVCache,
    layout: Layout,
    rotary: Rotary,
    state: Float[Tensor, "batch token dim"],
    condition: Callable[[float], Tensor] | None = None,
) -> Callable[[Tensor, float], Tensor]:
    """The velocity of a noisy chunk, over the keys and values of what is known; each solver step calls it.

    Args:
        mot: The experts; `act` is the one that acts.
        head: Embeds actions, reads velocities.
        cache: Keys and values of the context.
        layout: Who may see whom.
        rotary: Rotary angles of state and actions.
        state: Tokens of the state. They see no action, so from the second step on their keys and values are cached.
        condition: Condition of the action expert's norms at a flow time.
    """
    cos, sin = rotary
    attention = partial(structural_attention, layout=layout)

    def velocity(actions: Tensor, time: float) -> Tensor:
        nonlocal cache, state, cos, sin
        tokens = torch.cat([state, head.embed_actions(actions, time).to(state.dtype)], dim=1)
        conditions = {} if condition is None else {"act": condition(time)}
        hidden = mot({"act": tokens}, attention=attention, rotary=(cos, sin), cache=cache, conditions=conditions)["act"]
        first = state.shape[1]
        cache, state, cos, sin = cache.extended(first), state[:, first:], cos[:, first:], sin[:, first:]
        return head.velocity(hidden[:, first:])

    return velocity
