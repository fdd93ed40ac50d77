"""InternVLA-A1: understanding, foresight and action in one Mixture-of-Transformers.

Three streams, each with an expert of its own, meet in every layer's attention; information flows one way:

    und (images, instruction)  →  gen (latents of t-15 and t)  →  act (state, noisy action chunk)

Training is one joint pass over all three. Acting computes `und` and `gen` once, keeps their keys and values, and
integrates the action velocity over them. Source: InternVLA-A1, arXiv 2601.02456.
"""

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, Unpack

import torch
from einops import repeat
from jaxtyping import Float
from torch import Generator, Tensor, nn

from moteur.flowmatch import ActionHead, BetaTime, Method, flow_loss, interpolate, solve, velocity_target
from moteur.masks import Layout, Segment, structural_attention
from moteur.mot import Expert, KVCache, MoT, Rotary, rotary_angles
from moteur.recipes.backbones import InternVL3, Qwen3VL, Stream
from moteur.recipes.backbones.stream import continued
from moteur.recipes.checkpoints import (
    LoadingReport,
    load_backbone,
    load_pretrained,
    push_to_hub,
    save_pretrained,
)
from moteur.recipes.checkpoints.load import BackboneOptions, LoadOptions
from moteur.recipes.checkpoints.transforms import Statistics
from moteur.recipes.checks import blanked, check_inputs, check_targets, expect_shape, only, real_actions
from moteur.recipes.config import ExpertSize, InternVLAA1Config
from moteur.recipes.foresight import Foresight
from moteur.recipes.inputs import Inputs, Targets
from moteur.recipes.outputs import Imagined, Joint, Losses
from moteur.tokenizers import Grid, foresight_loss

Model = TypeVar("Model", bound="InternVLAA1")


class InternVLAA1(nn.Module):
    """The policy, at the sizes of `config`.

    Args:
        config: Every size and constant.
        decoder: Hold the Cosmos decoder as well, which only `imagine(..., decode=True)` uses.

    Raises:
        ValueError: The decoder is asked for, and the configuration has no foresight.
    """

    def __init__(self, config: InternVLAA1Config, *, decoder: bool = False) -> None:
        super().__init__()
        if decoder and config.gen is None:
            raise ValueError("decoder: expected False for a configuration without foresight (gen=None), got True")
        self.config = config
        sizes = {"und": config.und, "gen": config.gen, "act": config.act}
        self.backbone = InternVL3(config) if config.variant == "2B" else Qwen3VL(config)
        self.mot = MoT({name: _expert(config, size) for name, size in sizes.items() if size is not None})
        self.action = ActionHead(
            dim=config.act.dim,
            state_dim=config.state_dim,
            action_dim=config.action_dim,
            min_period=config.min_period,
            max_period=config.max_period,
            clock="noise",
        )
        self.foresight: Foresight | None = None
        if config.gen is not None:
            self.foresight = Foresight(config, config.gen, decoder=decoder)
        time = config.time
        self.time = BetaTime(alpha=time.alpha, beta=time.beta, scale=time.scale, offset=time.offset, clock=time.clock)

    @property
    def dtype(self) -> torch.dtype:
        """What the streams are computed in."""
        return self.backbone.text_embedding.weight.dtype

    # The three streams

    def context(self, inputs: Inputs) -> tuple[dict[str, Stream], Grid | None]:
        """What is known before acting: the `und` stream, the `gen` stream unless it is left out, and its grid."""
        check_inputs(inputs, self.config)
        inputs = blanked(inputs)
        und = self.backbone(inputs)
        if self.foresight is None:
            return {"und": und}, None
        latents = inputs.latents
        if latents is None:
            assert inputs.frames is not None
            latents = self.foresight.encode(inputs.frames)
        tokens, grid = self.foresight.head.compress(latents.to(self.dtype))
        valid = repeat(inputs.view_valid, "batch view -> batch (view cell)", cell=tokens.shape[1] // grid.views)
        return {"und": und, "gen": continued(tokens, valid, after=und)}, grid

    def acting(
        self, state: Float[Tensor, "batch 1 dim"], actions: Float[Tensor, "batch step dim"], after: Stream
    ) -> Stream:
        """The `act` stream: the state token, then the noisy actions."""
        tokens = torch.cat([state, actions], dim=1)
        return continued(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device), after)

    def layout(self, context: Mapping[str, Stream]) -> Layout:
        """Who may see whom: each segment sees itself and all before; the state token does not see the actions."""
        lengths = {name: stream.tokens.shape[1] for name, stream in context.items()}
        segments = [Segment(name, length) for name, length in lengths.items()]
        return Layout(
            [*segments, Segment("state", 1), Segment("action", self.config.chunk)],
            valid={name: stream.valid for name, stream in context.items()},
        )

    def rotary(self, *streams: Stream) -> Rotary:
        """Rotary angles of these streams' tokens, computed once for all layers."""
        config, sections = self.config, self.config.rope_sections
        positions = torch.cat([stream.positions for stream in streams], dim=-1)
        positions = positions[0] if sections is None else positions
        return rotary_angles(
            positions, head_dim=config.head_dim, base=config.rope_base, sections=sections, interleaved=True
        )

    # Training: one joint pass

    def joint(
        self,
        inputs: Inputs,
        noisy: Float[Tensor, "batch step action"],
        tau: Float[Tensor, " batch"],
        outputs: Collection[str] | None = None,
    ) -> Joint:
        """All streams at once, the actions at flow time `tau`."""
        context, grid = self.context(inputs)
        state, actions = self.action.embed_state(inputs.state), self.action.embed_actions(noisy, tau)
        streams = context | {"act": self.acting(state, actions, after=_last(context))}
        hidden = self.mot(
            {name: stream.tokens for name, stream in streams.items()},
            attention=partial(structural_attention, layout=self.layout(context)),
            rotary=self.rotary(*streams.values()),
            outputs=outputs,
        )
        return Joint(streams=streams, grid=grid, hidden=hidden)

    def loss(
        self,
        inputs: Inputs,
        targets: Targets,
        *,
        noise: Float[Tensor, "batch step action"] | None = None,
        tau: Float[Tensor, " batch"] | None = None,
        generator: Generator | None = None,
    ) -> Losses:
        r"""Flow matching on the action chunk, and the mean squared error of the predicted latents of t+15.

        $$L = \lVert v_\theta(a^\tau, \tau) - (a - \varepsilon) \rVert^2
              + \lambda \lVert \hat z_{t+15} - z_{t+15} \rVert^2$$

        Args:
            inputs: What the policy sees.
            targets: What it learns from; each mask excludes what is not real.
            noise: ε, or None to draw it.
            tau: Flow time of each sample in (0, 1), or None to draw it.
            generator: Draws whatever is not given.

        Returns:
            The three losses; one without a valid element is 0 with a gradient of 0.

        Raises:
            ValueError: If a shape does not fit the configuration.
        """
        check_targets(targets, inputs, self.config)
        data = real_actions(targets)
        noise = self._noise(inputs, noise, generator)
        if tau is None:
            tau = self.time.sample((noise.shape[0],), generator=generator, device=noise.device)
        noisy = interpolate(noise, data, tau)
        joint = self.joint(inputs, noisy, tau, outputs=("gen", "act") if self.foresight else ("act",))
        action = flow_loss(
            self.action.velocity(joint.hidden["act"][:, 1:]),
            velocity_target(noise, data),
            valid_steps=targets.valid_steps,
            valid_dims=targets.valid_dims,
            valid_samples=targets.valid_samples,
            reduction=self.config.action_reduction,
        )
        foresight = action.new_zeros(())
        future = targets.future_latents
        if self.foresight is not None and joint.grid is not None:
            valid = inputs.view_valid if targets.valid_future is None else inputs.view_valid & targets.valid_future
            if future is None and targets.future_frames is not None:
                future = self.foresight.encode(only(targets.future_frames, valid))
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
        """A chunk of normalised actions, from the flow's ODE integrated from noise (τ = 0) to data (τ = 1).

        Args:
            inputs: What the policy sees.
            noise: Where the flow starts, never changed, or None to draw it.
            generator: Draws the noise when it is not given: same seed, same bits.
            steps: Solver steps; None takes the configuration's.
            method: Solver.
            prefix: Normalised actions that the robot will have executed before it can follow this chunk; they come
                out unchanged, and the rest continues them (real-time chunking).

        Raises:
            ValueError: If a shape does not fit the configuration.
        """
        noise = self._noise(inputs, noise, generator)
        context, _ = self.context(inputs)
        layout = self.layout(context)
        cache, _ = self._read(context, layout, outputs=())
        state, after = self.action.embed_state(inputs.state), _last(context)
        rotary = None

        def velocity(actions: Tensor, time: float) -> Tensor:
            nonlocal rotary
            stream = self.acting(state, self.action.embed_actions(actions, time), after)
            rotary = rotary or self.rotary(stream)
            hidden = self.mot(
                {"act": stream.tokens},
                attention=partial(structural_attention, layout=layout),
                rotary=rotary,
                cache=cache,
            )
            return self.action.velocity(hidden["act"][:, 1:])

        steps = self.config.steps if steps is None else steps
        return solve(velocity, noise, steps=steps, method=method, prefix=prefix)

    @torch.no_grad()
    def imagine(self, inputs: Inputs, *, decode: bool = False) -> Imagined:
        """The scene of t+15, predicted in one forward pass.

        Args:
            inputs: What the policy sees. The state and the actions play no part.
            decode: Return images as well; the model must hold the decoder.

        Raises:
            ValueError: If the model has no generation expert, or images are asked for without a decoder.
        """
        if self.foresight is None:
            raise ValueError("imagine: expected a model with a generation expert, got config.gen=None")
        if decode and self.foresight.decoder is None:
            raise ValueError("decode: expected a model built with decoder=True, got one without the Cosmos decoder")
        context, grid = self.context(inputs)
        assert grid is not None
        _, hidden = self._read(context, self.layout(context), outputs=("gen",))
        latents = self.foresight.head.predict(hidden["gen"], grid)
        return Imagined(latents=latents, images=self.foresight.decode(latents) if decode else None)

    def _read(
        self, context: Mapping[str, Stream], layout: Layout, outputs: Collection[str]
    ) -> tuple[KVCache, dict[str, Tensor]]:
        """Run the context once; hand back its keys and values with room for the actions after them."""
        tokens = context["und"].tokens
        kind = tokens.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        cache = self.mot.new_cache(batch=tokens.shape[0], capacity=layout.length, dtype=dtype)
        hidden = self.mot(
            {name: stream.tokens for name, stream in context.items()},
            attention=partial(structural_attention, layout=layout),
            rotary=self.rotary(*context.values()),
            cache=cache,
            outputs=outputs,
        )
        return cache.extended(layout.span("state").start), hidden

    def _noise(self, inputs: Inputs, noise: Tensor | None, generator: Generator | None) -> Tensor:
        shape = (self.config.chunk, self.config.action_dim)
        if noise is None:
            state = inputs.state
            return torch.randn((state.shape[0], *shape), generator=generator, device=state.device, dtype=state.dtype)
        expect_shape("noise", noise.shape, (inputs.state.shape[0], *shape))
        return noise

    # Files, see `moteur.recipes.checkpoints`. The run-time shape checks cannot resolve Self.

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
        """Write the model into a folder; the options are those of `moteur.recipes.checkpoints.save_pretrained`."""
        save_pretrained(self, folder, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:  # noqa: ANN401
        """Upload the model; the options are those of `moteur.recipes.checkpoints.push_to_hub`."""
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


def _last(context: Mapping[str, Stream]) -> Stream:
    return list(context.values())[-1]
