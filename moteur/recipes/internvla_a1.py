"""InternVLA-A1: understanding, foresight and action in one Mixture-of-Transformers.

Three streams, each with an expert of its own, meet in every layer's attention; information flows one way:

    und (pictures, instruction)  →  gen (latents of t-15 and t)  →  act (state, noisy action chunk)

Training is one joint pass over all three. Acting computes `und` and `gen` once, keeps their keys and values, and
integrates the action velocity over them. Source: InternVLA-A1, arXiv 2601.02456.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar, Unpack

import torch
from einops import repeat
from jaxtyping import Bool, Float, UInt8
from torch import Generator, Tensor, nn

from moteur.data import as_unit_floats
from moteur.flowmatch import ActionHead, Method, StraightPath, flow_loss
from moteur.masks import Layout, Segment, structural_attention
from moteur.mot import Expert, KVCache, MoT, Rotary, rotary_angles
from moteur.recipes.backbones.internvl3 import InternVL3
from moteur.recipes.backbones.qwen3_vl import Qwen3VL
from moteur.recipes.backbones.stream import Stream, continued, understanding_stream
from moteur.recipes.checkpoints.load import BackboneOptions, LoadOptions, load_backbone, load_pretrained
from moteur.recipes.checkpoints.report import LoadingReport
from moteur.recipes.checkpoints.save import push_to_hub, save_pretrained
from moteur.recipes.checkpoints.transforms import Statistics
from moteur.recipes.config import ExpertSize, InternVLAA1Config
from moteur.recipes.cosmos import Foresight
from moteur.recipes.inputs import (
    Inputs,
    Targets,
    check_frames,
    expect_floats,
    expect_mask,
    expect_shape,
    learned_views,
    only,
    real_actions,
)
from moteur.tokenizers import Grid, foresight_loss

Model = TypeVar("Model", bound="InternVLAA1")


class Losses(NamedTuple):
    """What training minimises: `total` = `action` + λ·`foresight`, each a scalar."""

    total: Float[Tensor, ""]
    action: Float[Tensor, ""]
    foresight: Float[Tensor, ""]


@dataclass(frozen=True)
class Joint:
    """One joint pass: the streams that went into the experts, and the output of each expert's final norm."""

    streams: Mapping[str, Stream]
    grid: Grid | None
    hidden: Mapping[str, Tensor]


@dataclass(frozen=True)
class Imagined:
    """The predicted picture of t+15: its latents, and its pixels in [0, 1] where they were asked for."""

    latents: Float[Tensor, "batch view channel rows columns"]
    images: Float[Tensor, "batch view 3 height width"] | None


class InternVLAA1(nn.Module):
    """The InternVLA-A1 policy at the sizes of `config`.

    `forward` is the training loss, so that any trainer can wrap the model; `act` and `imagine` predict.

    Args:
        config: Every size and constant.
        decoder: Hold the Cosmos decoder as well, which only `imagine(..., decode=True)` uses.

    Attributes:
        path: The flow path and its clock. As in the released code, time 1 is noise and time 0 is data.

    Raises:
        ValueError: If the decoder is asked for and the configuration has no foresight.
    """

    def __init__(self, config: InternVLAA1Config, *, decoder: bool = False) -> None:
        super().__init__()
        if decoder and config.gen is None:
            raise ValueError("decoder: expected False for a configuration without foresight (gen=None), got True")
        self.config = config
        self.path = StraightPath(noise_at=1)
        self.backbone = InternVL3(config) if config.variant == "2B" else Qwen3VL(config)
        self.mot = MoT({name: _expert(config, size) for name, size in config.experts.items()})
        self.action = ActionHead(
            dim=config.act.dim,
            state_dim=config.state_dim,
            action_dim=config.action_dim,
            min_period=config.min_period,
            max_period=config.max_period,
        )
        self._freeze_unread()
        self.foresight = None if config.gen is None else Foresight(config, config.gen, decoder=decoder)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which the streams are computed."""
        return self.backbone.text_embedding.weight.dtype

    def _freeze_unread(self) -> None:
        """Freeze the end of `und`, which no loss depends on: data parallelism would wait for its gradients."""
        und = self.mot.expert("und")
        last = und.layer(und.depth - 1)
        for part in (last.attention.query_norm, last.attention.output, last.mlp_norm, last.mlp, und.norm):
            if part is not None:
                part.requires_grad_(requires_grad=False)

    # The streams

    def encode(self, inputs: Inputs) -> Float[Tensor, "batch view 2 channel rows columns"] | None:
        """Cosmos latents of t-15 and t, those of missing cameras zero; None without a generation expert."""
        if self.foresight is None:
            return None
        if inputs.latents is not None:
            return only(inputs.latents, inputs.view_valid)
        return self.encode_frames(inputs.frames[:, :, -2:], inputs.view_valid)

    def encode_frames(
        self,
        frames: UInt8[Tensor, "batch view *time 3 height width"] | Float[Tensor, "batch view *time 3 height width"],
        view_valid: Bool[Tensor, "batch view"] | None,
    ) -> Float[Tensor, "batch view *time channel rows columns"]:
        """Cosmos latents of pictures, zeros for missing cameras; the model must have a generation expert."""
        assert self.foresight is not None
        return only(self.foresight.encode(as_unit_floats(frames)), view_valid)

    def context(
        self, inputs: Inputs, latents: Float[Tensor, "batch view 2 channel rows columns"] | None
    ) -> tuple[dict[str, Stream], Grid | None]:
        """What is known before acting: the `und` stream, the `gen` stream unless it is left out, and its grid."""
        backbone = self.backbone
        und = understanding_stream(
            backbone(only(as_unit_floats(inputs.frames[:, :, -1]), inputs.view_valid)),
            backbone.text_embedding(inputs.instruction) * self.config.text_scale,
            view_valid=inputs.view_valid,
            attention_mask=inputs.attention_mask,
            advance=backbone.advance,
            offsets=backbone.offsets,
        )
        if self.foresight is None or latents is None:
            return {"und": und}, None
        tokens, grid = self.foresight.head.compress(latents.to(self.dtype))
        valid = None
        if inputs.view_valid is not None:
            valid = repeat(inputs.view_valid, "batch view -> batch (view cell)", cell=grid.cells)
        return {"und": und, "gen": continued(tokens, valid, after=und)}, grid

    def layout(self, context: Mapping[str, Stream]) -> Layout:
        """Who may see whom: each segment sees itself and all before; the state token does not see the actions."""
        segments = [Segment(name, stream.tokens.shape[1]) for name, stream in context.items()]
        return Layout(
            [*segments, Segment("state", 1), Segment("action", self.config.chunk)],
            valid={name: stream.valid for name, stream in context.items() if stream.valid is not None},
        )

    def rotary(self, *streams: Stream) -> Rotary:
        """Rotary angles of these streams' tokens, computed once for all layers; float32, float64 in a float64 model."""
        config, sections = self.config, self.config.rope_sections
        batch = max(stream.positions.shape[1] for stream in streams)
        positions = torch.cat([stream.positions.expand(-1, batch, -1) for stream in streams], dim=-1)
        positions = positions[0] if sections is None else positions
        dtype = torch.promote_types(self.dtype, torch.float32)
        return rotary_angles(positions, head_dim=config.head_dim, base=config.rope_base, sections=sections, dtype=dtype)

    # Training: one joint pass

    def joint(
        self,
        inputs: Inputs,
        noisy: Float[Tensor, "batch step action"],
        time: Float[Tensor, " batch"],
        outputs: Collection[str] | None = None,
    ) -> Joint:
        """All streams at once, the actions at flow time `time`."""
        context, grid = self.context(inputs, self.encode(inputs))
        tokens = torch.cat([self.action.embed_state(inputs.state), self.action.embed_actions(noisy, time)], dim=1)
        *_, last = context.values()
        streams = context | {"act": continued(tokens, None, after=last)}
        hidden = self.mot(
            {name: stream.tokens for name, stream in streams.items()},
            attention=partial(structural_attention, layout=self.layout(context)),
            rotary=self.rotary(*streams.values()),
            outputs=outputs,
        )
        return Joint(streams=streams, grid=grid, hidden=hidden)

    def forward(
        self,
        inputs: Inputs,
        targets: Targets,
        *,
        noise: Float[Tensor, "batch step action"] | None = None,
        time: Float[Tensor, " batch"] | None = None,
        generator: Generator | None = None,
    ) -> Losses:
        r"""Training loss: flow matching on the action chunk, and the squared error of the predicted latents of t+15.

        $$L = \lVert v_\theta(a^t, t) - (\varepsilon - a) \rVert^2 + \lambda \lVert \hat z_{t+15} - z_{t+15} \rVert^2$$

        Args:
            inputs: What the policy sees.
            targets: What it learns from; each mask excludes what is not real.
            noise: ε, or None to draw it.
            time: Flow time of each sample in [0, 1], 1 for noise, or None to draw it from `config.time`.
            generator: Draws whatever is not given.

        Returns:
            The three losses; one without a valid element is 0 with a gradient of 0.

        Raises:
            ValueError: If a shape or value does not fit the model; the argument is named.
        """
        inputs.check(self.config)
        targets.check(inputs, self.config)
        data = real_actions(targets)
        noise = self.noise(inputs, noise, generator)
        if time is None:
            time = self.config.time.sample((noise.shape[0],), generator=generator, device=noise.device)
        sample = self.path.sample(noise, data, time)
        joint = self.joint(inputs, sample.point, time, outputs=("gen", "act") if self.foresight else ("act",))
        action = flow_loss(
            self.action.velocity(joint.hidden["act"][:, 1:]),
            sample.velocity,
            valid_steps=targets.valid_steps,
            valid_dims=targets.valid_dims,
            valid_samples=targets.valid_samples,
            reduction=self.config.action_reduction,
        )
        foresight = action.new_zeros(())
        if self.foresight is not None and joint.grid is not None:
            valid, future = learned_views(targets, inputs), targets.future_latents
            if future is None and targets.future_frames is not None:
                future = self.encode_frames(targets.future_frames, valid)
            if future is not None:
                foresight = foresight_loss(self.foresight.head.predict(joint.hidden["gen"], joint.grid), future, valid)
        return Losses(total=action + self.config.foresight_weight * foresight, action=action, foresight=foresight)

    # Acting: the context once, then a few steps over its keys and values

    @torch.no_grad()
    def act(
        self,
        inputs: Inputs,
        *,
        noise: Float[Tensor, "batch step action"] | None = None,
        generator: Generator | None = None,
        steps: int | None = None,
        method: Method = "euler",
        prefix: Float[Tensor, "batch delay action"] | None = None,
    ) -> Float[Tensor, "batch step action"]:
        """A chunk of normalised actions: the flow's ODE integrated from noise to data.

        Args:
            inputs: What the policy sees.
            noise: Where the flow starts, never changed, or None to draw it.
            generator: Draws the noise when it is not given: same seed, same bits.
            steps: Solver steps; None takes the configuration's.
            method: Solver.
            prefix: Normalised actions that the robot will have executed before it can follow this chunk; they come
                out unchanged, and the rest continues them (real-time chunking).

        Raises:
            ValueError: If a shape or value does not fit the model; the argument is named.
        """
        inputs.check(self.config)
        noise = self.noise(inputs, noise, generator)
        return self.denoise(inputs, self.encode(inputs), noise, steps=steps, method=method, prefix=prefix)

    @torch.no_grad()
    def denoise(
        self,
        inputs: Inputs,
        latents: Float[Tensor, "batch view 2 channel rows columns"] | None,
        noise: Float[Tensor, "batch step action"],
        *,
        steps: int | None = None,
        method: Method = "euler",
        prefix: Float[Tensor, "batch delay action"] | None = None,
    ) -> Float[Tensor, "batch step action"]:
        """`act` without its checks, for callers that hold the latents already; nothing in it depends on values."""
        context, _ = self.context(inputs, latents)
        layout = self.layout(context)
        cache, _ = self._read(context, layout, outputs=())
        state = self.action.embed_state(inputs.state)
        *_, last = context.values()
        places = continued(noise.new_zeros(len(noise), 1 + self.config.chunk, 0), None, after=last)
        cos, sin = self.rotary(places)
        attention = partial(structural_attention, layout=layout)

        def velocity(actions: Tensor, time: float) -> Tensor:
            nonlocal cache, state, cos, sin
            tokens = torch.cat([state, self.action.embed_actions(actions, time)], dim=1)
            hidden = self.mot({"act": tokens}, attention=attention, rotary=(cos, sin), cache=cache)["act"]
            # The state token sees no action: from the second step on, its keys and values stay in the cache.
            first = state.shape[1]
            cache, state, cos, sin = cache.extended(first), state[:, first:], cos[:, first:], sin[:, first:]
            return self.action.velocity(hidden[:, first:])

        steps = self.config.steps if steps is None else steps
        return self.path.solve(velocity, noise, steps=steps, method=method, prefix=prefix)

    @torch.no_grad()
    def imagine(self, inputs: Inputs, *, decode: bool = False) -> Imagined:
        """The scene of t+15, predicted in one forward pass.

        Args:
            inputs: What the policy sees. The state plays no part.
            decode: Return pictures as well; the model must hold the decoder.

        Raises:
            ValueError: If the model has no generation expert, or pictures are asked for without a decoder.
        """
        inputs.check(self.config)
        self.check_imagines(decode=decode)
        latents = self.foresee(inputs, self.encode(inputs))
        assert self.foresight is not None
        return Imagined(latents=latents, images=self.foresight.decode(latents) if decode else None)

    @torch.no_grad()
    def foresee(
        self, inputs: Inputs, latents: Float[Tensor, "batch view 2 channel rows columns"] | None
    ) -> Float[Tensor, "batch view channel rows columns"]:
        """The latents that `imagine` predicts, without its checks, for callers that hold those of t-15 and t."""
        context, grid = self.context(inputs, latents)
        assert self.foresight is not None
        assert grid is not None
        _, hidden = self._read(context, self.layout(context), outputs=("gen",))
        return self.foresight.head.predict(hidden["gen"], grid)

    def check_imagines(self, *, decode: bool) -> None:
        """Refuse to imagine with a model that cannot.

        Raises:
            ValueError: If the model has no generation expert, or pictures are asked for without a decoder.
        """
        if self.foresight is None:
            raise ValueError("imagine: expected a model with a generation expert, got config.gen=None")
        if decode and self.foresight.decoder is None:
            raise ValueError("decode: expected a model built with decoder=True, got one without the Cosmos decoder")

    def check_pictures(self, frames: Tensor, view_valid: Tensor | None) -> None:
        """Refuse pictures of one time, (batch, view, 3, side, side), that do not fit the model.

        Raises:
            ValueError: If the shape of pictures or mask is another one, or the pictures are neither uint8 nor floats in
                [0, 1].
        """
        views, side = self.config.views, self.config.frame_size
        expect_shape("frames", frames.shape[1:], (views, 3, side, side))
        expect_mask("view_valid", view_valid, (frames.shape[0], views))
        check_frames("frames", frames, view_valid)

    def noise(
        self, inputs: Inputs, noise: Float[Tensor, "batch step action"] | None, generator: Generator | None
    ) -> Float[Tensor, "batch step action"]:
        """The given noise, or a draw of it.

        Raises:
            ValueError: If the given noise has another shape than (batch, chunk, action_dim), or is not floating point.
        """
        state = inputs.state
        shape = (state.shape[0], self.config.chunk, self.config.action_dim)
        if noise is None:
            return torch.randn(shape, generator=generator, device=state.device, dtype=state.dtype)
        expect_floats("noise", noise, shape, finite=True)
        return noise

    def _read(
        self, context: Mapping[str, Stream], layout: Layout, outputs: Collection[str]
    ) -> tuple[KVCache, dict[str, Tensor]]:
        """Run the context once; return its keys and values, with room for the actions behind them."""
        tokens = context["und"].tokens
        kind = tokens.device.type
        mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if mixed else tokens.dtype
        cache = self.mot.new_cache(batch=tokens.shape[0], capacity=layout.length, device=tokens.device, dtype=dtype)
        hidden = self.mot(
            {name: stream.tokens for name, stream in context.items()},
            attention=partial(structural_attention, layout=layout),
            rotary=self.rotary(*context.values()),
            cache=cache,
            outputs=outputs,
        )
        return cache.extended(layout.span("state").start), hidden

    # Files. The run-time shape checks cannot resolve Self.

    statistics: Statistics = MappingProxyType({})
    loading_report: LoadingReport | None = None

    @classmethod
    def from_pretrained(cls: type[Model], source: str | Path, **options: Unpack[LoadOptions]) -> Model:  # noqa: PYI019
        """Load a model from a folder or a Hub id; the options are those of `load_pretrained`."""
        return load_pretrained(cls, source, **options)

    @classmethod
    def from_backbone(  # noqa: PYI019
        cls: type[Model],
        source: str | Path,
        *,
        config: InternVLAA1Config,
        seed: int,
        cosmos: str | Path | None,
        **options: Unpack[BackboneOptions],
    ) -> Model:
        """Start from a vision-language backbone; the options are those of `load_backbone`."""
        return load_backbone(cls, source, config=config, seed=seed, cosmos=cosmos, **options)

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:  # noqa: ANN401
        """Write the model into a folder; the options are those of `moteur.recipes.checkpoints.save.save_pretrained`."""
        save_pretrained(self, folder, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:  # noqa: ANN401
        """Upload the model; the options are those of `moteur.recipes.checkpoints.save.push_to_hub`."""
        return push_to_hub(self, repo_id, **options)


def _expert(config: InternVLAA1Config, size: ExpertSize) -> Expert:
    return Expert(
        dim=size.dim,
        depth=config.depth,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        mlp_dim=size.mlp_dim,
        activation="swiglu",
        norm="rms",
        eps=config.norm_eps,
        qk_norm=config.qk_norm,
        qkv_bias=config.qkv_bias,
    )
