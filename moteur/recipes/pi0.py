"""π0 and π0.5: pictures and a prompt in one expert, the robot in another, joined in every layer's attention.

    vlm (pictures, prompt)  →  act (state, noisy action chunk)

π0 gives the action expert a token of the state, and fuses the flow time into each action token. π0.5 says the state in
the prompt, and lets the flow time drive the norms of the action expert. Sources: π0, arXiv 2410.24164; π0.5,
arXiv 2504.16054.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, Unpack

import torch
from jaxtyping import Float, Real
from torch import Generator, Tensor, nn

from moteur.data import as_unit_floats
from moteur.flowmatch import ActionHead, Method, StraightPath, flow_loss, mean_count, mean_over
from moteur.masks import Layout, structural_attention
from moteur.mot import Expert, MoT, Rotary, rotary_angles
from moteur.recipes.acting import action_layout, read_context, velocity_over
from moteur.recipes.backbones.siglip import PaliGemma, SigLIP
from moteur.recipes.backbones.stream import Stream, continued, understanding_stream
from moteur.recipes.checkpoints.load import LoadOptions, load_pretrained
from moteur.recipes.checkpoints.report import LoadingReport
from moteur.recipes.checkpoints.save import push_to_hub, save_pretrained
from moteur.recipes.checkpoints.transforms import Statistics
from moteur.recipes.cosmos import Foresight
from moteur.recipes.inputs import Inputs, Targets, only, real_actions
from moteur.recipes.internvla_a1 import Losses
from moteur.recipes.pi0_config import Pi0Config

Model = TypeVar("Model", bound="Pi0")


@dataclass(frozen=True)
class Pi0Joint:
    """One joint pass: the streams that went into the experts, and the output of each expert's final norm."""

    streams: Mapping[str, Stream]
    hidden: Mapping[str, Tensor]


class Pi0(nn.Module):
    """π0 or π0.5 at the sizes of `config`.

    `forward` is the training loss, so that any trainer can wrap the model; `act` predicts. For π0.5 the prompt holds
    the state (`Processor` writes it), and `Inputs.state` plays no part.

    Args:
        config: Every size and constant.

    Attributes:
        path: The flow path and its clock. As in the released code, time 1 is noise and time 0 is data.
        foresight: None: these models predict no pictures.
    """

    foresight: Foresight | None = None

    def __init__(self, config: Pi0Config) -> None:
        super().__init__()
        self.config = config
        self.path = StraightPath(noise_at=1)
        vision, fused = config.vision, config.variant == "pi0"
        tower = SigLIP(
            dim=vision.dim,
            depth=vision.depth,
            heads=vision.heads,
            mlp_dim=vision.mlp_dim,
            patch=vision.patch,
            side=vision.size,
            norm_eps=vision.norm_eps,
        )
        self.backbone = PaliGemma(tower, dim=config.vlm.dim, vocabulary=config.vocabulary)
        expert = partial(
            Expert,
            depth=config.depth,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            activation="geglu_tanh",
            norm="rms_unit_offset",
            eps=config.norm_eps,
        )
        vlm = expert(dim=config.vlm.dim, mlp_dim=config.vlm.mlp_dim)
        condition = None if fused else config.act.dim
        act = expert(dim=config.act.dim, mlp_dim=config.act.mlp_dim, condition=condition, residual_gate=not fused)
        self.mot = MoT({"vlm": vlm, "act": act})
        self.action = ActionHead(
            dim=config.act.dim,
            state_dim=config.state_dim if fused else None,
            action_dim=config.action_dim,
            time="fused" if fused else "condition",
            min_period=config.min_period,
            max_period=config.max_period,
        )
        last = vlm.layer(vlm.depth - 1)  # no loss depends on its end: data parallelism would wait for its gradients
        for part in (last.attention.output, last.mlp_norm, last.mlp, vlm.norm):
            part.requires_grad_(requires_grad=False)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which the streams are computed."""
        return self.backbone.text_embedding.weight.dtype

    # The streams

    def context(self, inputs: Inputs) -> dict[str, Stream]:
        """What is known before acting: the pictures one after another, then the prompt."""
        tokens = self.config.image_tokens
        pictures = self.backbone(only(as_unit_floats(inputs.frames[:, :, -1]), inputs.view_valid))
        ones = torch.ones(tokens, dtype=torch.long, device=pictures.device)
        stream = understanding_stream(
            pictures.to(self.dtype),
            self.backbone.text_embedding(inputs.instruction) * self.config.text_scale,
            view_valid=inputs.view_valid,
            attention_mask=inputs.attention_mask,
            advance=ones,
            offsets=torch.zeros_like(ones)[None],
        )
        return {"vlm": stream}

    def state_tokens(self, inputs: Inputs) -> Float[Tensor, "batch token dim"]:
        """The state as a token; none for π0.5."""
        if self.config.variant == "pi0":
            return self.action.embed_state(inputs.state).to(self.dtype)
        return inputs.state.new_zeros(inputs.state.shape[0], 0, self.config.act.dim, dtype=self.dtype)

    def layout(self, context: Mapping[str, Stream]) -> Layout:
        """Who may see whom: each segment sees itself and all before; the state token does not see the actions."""
        return action_layout(context, state=int(self.config.variant == "pi0"), chunk=self.config.chunk)

    def rotary(self, *streams: Stream) -> Rotary:
        """Rotary angles of these streams' tokens, computed once for all layers; float32, float64 in a float64 model."""
        batch = max(stream.positions.shape[1] for stream in streams)
        positions = torch.cat([stream.positions[0].expand(batch, -1) for stream in streams], dim=-1)
        dtype = torch.promote_types(self.dtype, torch.float32)
        return rotary_angles(positions, head_dim=self.config.head_dim, base=self.config.rope_base, dtype=dtype)

    # Training: one joint pass

    def joint(
        self,
        inputs: Inputs,
        noisy: Float[Tensor, "batch step action"],
        time: Float[Tensor, " batch"],
        outputs: Collection[str] | None = None,
    ) -> Pi0Joint:
        """Both streams at once, the actions at flow time `time`."""
        context = self.context(inputs)
        actions = self.action.embed_actions(noisy, time).to(self.dtype)
        tokens = torch.cat([self.state_tokens(inputs), actions], dim=1)
        streams = context | {"act": continued(tokens, None, after=context["vlm"])}
        hidden = self.mot(
            {name: stream.tokens for name, stream in streams.items()},
            attention=partial(structural_attention, layout=self.layout(context)),
            rotary=self.rotary(*streams.values()),
            outputs=outputs,
            conditions={} if self.config.variant == "pi0" else {"act": self.action.condition(time)},
        )
        return Pi0Joint(streams=streams, hidden=hidden)

    def forward(
        self,
        inputs: Inputs,
        targets: Targets,
        *,
        noise: Float[Tensor, "batch step action"] | None = None,
        time: Float[Tensor, " batch"] | None = None,
        generator: Generator | None = None,
        counts: Real[Tensor, "2"] | None = None,
    ) -> Losses:
        r"""Training loss: flow matching on the action chunk.

        $$L = \lVert v_\theta(a^t, t) - (\varepsilon - a) \rVert^2$$

        Args:
            inputs: What the policy sees.
            targets: What it learns from; each mask excludes what is not real.
            noise: ε, or None to draw it.
            time: Flow time of each sample in [0, 1], 1 for noise, or None to draw it from `config.time`.
            generator: Draws whatever is not given.
            counts: As for `InternVLAA1.forward`.

        Returns:
            The loss, as `total` and as `action`; `foresight` is 0. Over many processes as for `InternVLAA1.forward`.

        Raises:
            ValueError: If a shape or value does not fit the model; the argument is named.
        """
        inputs.check(self.config)
        targets.check(inputs, self.config)
        noise = inputs.noise(self.config, noise, generator)
        if time is None:
            time = self.config.time.sample((noise.shape[0],), generator=generator, device=noise.device)
        sample = self.path.sample(noise, real_actions(targets), time)
        joint = self.joint(inputs, sample.point, time, outputs=("act",))
        if counts is None:
            own = targets.counts(inputs, self.config)
            counts = mean_count(own) if torch.is_grad_enabled() else own.clamp(min=1)
        velocity = self.action.velocity(joint.hidden["act"][:, -self.config.chunk :])
        valid = targets.learned_actions(padding=self.config.action_reduction == "released")
        loss = mean_over(flow_loss(velocity, sample.velocity, valid=valid, reduction="parts"), count=counts[0])
        return Losses(total=loss, action=loss, foresight=loss.new_zeros(()))

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
        noise = inputs.noise(self.config, noise, generator)
        return self.denoise(inputs, None, noise, steps=steps, method=method, prefix=prefix)

    @torch.no_grad()
    def denoise(
        self,
        inputs: Inputs,
        latents: Tensor | None,  # noqa: ARG002  # these models have none
        noise: Float[Tensor, "batch step action"],
        *,
        steps: int | None = None,
        method: Method = "euler",
        prefix: Float[Tensor, "batch delay action"] | None = None,
    ) -> Float[Tensor, "batch step action"]:
        """`act` without its checks; nothing in it depends on values."""
        context = self.context(inputs)
        layout = self.layout(context)
        cache, _ = read_context(self.mot, context, layout, self.rotary(*context.values()))
        state = self.state_tokens(inputs)
        places = noise.new_zeros(len(noise), state.shape[1] + self.config.chunk, 0)
        rotary = self.rotary(continued(places, None, after=context["vlm"]))
        steps = self.config.steps if steps is None else steps
        velocity = velocity_over(
            self.mot,
            self.action,
            cache=cache,
            layout=layout,
            rotary=rotary,
            state=state,
            condition=self._modulations(steps),
        )
        return self.path.solve(velocity, noise, steps=steps, method=method, prefix=prefix)

    def _modulations(self, steps: int) -> Callable[[float], Tensor] | None:
        """Scales, shifts and gates of the action expert's norms by flow time: those of all solver steps, made at once.

        Euler's rule asks at whole steps, the others also between two.
        """
        if self.config.variant == "pi0":
            return None
        times = [place / (2 * steps) for place in range(2 * steps + 1)]
        weight = self.action.action_in.weight
        condition = self.action.condition(torch.tensor(times, dtype=torch.float32, device=weight.device))
        table = self.mot.expert("act").modulation_table(condition.to(self.dtype))
        return lambda time: table[:, (place := times.index(time)) : place + 1]

    # Files. The run-time shape checks cannot resolve Self.

    statistics: Statistics = MappingProxyType({})
    loading_report: LoadingReport | None = None

    @classmethod
    def from_pretrained(cls: type[Model], source: str | Path, **options: Unpack[LoadOptions]) -> Model:  # noqa: PYI019
        """Load a model from a folder or a Hub id; the options are those of `load_pretrained`."""
        return load_pretrained(cls, source, configs=(Pi0Config,), **options)

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:  # noqa: ANN401
        """Write the model into a folder; the options are those of `moteur.recipes.checkpoints.save.save_pretrained`."""
        save_pretrained(self, folder, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:  # noqa: ANN401
        """Upload the model; the options are those of `moteur.recipes.checkpoints.save.push_to_hub`."""
        return push_to_hub(self, repo_id, **options)
