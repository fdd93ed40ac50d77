"""The whole call as one function of tensors: nothing in it depends on what they hold, only on their shapes."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moteur.flowmatch import integrate
from moteur.flowmatch.steps import Method
from moteur.mot import rotary_angles
from moteur.recipes.checks import only
from moteur.runtime.experts import FusedExpert
from moteur.runtime.layer import Angles, Rows, Slots
from moteur.runtime.parts import Parts
from moteur.runtime.shape import Shape
from moteur.tokenizers import Grid

Tensors = Mapping[str, Tensor]
"""What a call brings, by name: `input_ids`, `und_valid`, `view_valid`, `pixel_values`, `state`, `noise`; of the two
times `before` and `now`, latents (`latents_before`) or frames to be encoded (`frames_before`); perhaps `prefix`."""


@dataclass(frozen=True)
class Solver:
    """How the flow is integrated."""

    steps: int
    method: Method


@dataclass(frozen=True)
class Places:
    """Rotary angles of every stream of a call, and which keys may be seen (None: all)."""

    angles: Mapping[str, Angles]
    visible: Bool[Tensor, "batch 1 1 key"] | None


class Program:
    """What a shape of call computes.

    Args:
        parts: The model's weights, rearranged.
        shape: Sizes of the call.
    """

    def __init__(self, parts: Parts, shape: Shape) -> None:
        self.parts, self.shape = parts, shape
        config, device, dtype = parts.config, parts.device, parts.dtype
        side = config.foresight_size // parts.compression // config.foresight_cell if parts.gen is not None else 0
        self.cells = 2 * side * side
        self.lengths = {"und": len(shape.columns), "gen": self.cells * len(shape.views)}
        self.prefix = sum(self.lengths.values())
        capacity = self.prefix + 1 + config.chunk
        sizes = (config.depth, shape.batch, capacity, config.kv_heads, config.head_dim)
        self.keys, self.values = (torch.zeros(sizes, device=device, dtype=dtype) for _ in range(2))
        self.columns = torch.tensor(shape.columns, device=device, dtype=torch.long)
        owners = [view for view, (rows, columns) in enumerate(parts.grid) for _ in range(rows * columns)]
        kept = [index for index, view in enumerate(owners) if view in shape.views]
        self.patches = torch.tensor(kept, device=device, dtype=torch.long)
        self.views = torch.tensor(shape.views, device=device, dtype=torch.long)
        self.owners = torch.tensor(
            [shape.views.index(owners[index]) for index in kept], device=device, dtype=torch.long
        )
        self.all_patches = len(kept) == len(owners)
        self.all_views = len(shape.views) == len(parts.grid)
        self.steps = parts.understanding.arrangement.steps(shape.grid, length=len(shape.columns), device=device)
        self.places: Places | None = None
        if not shape.ragged:
            real = partial(torch.ones, dtype=torch.bool, device=device)
            self.places = self._places(real(1, self.lengths["und"]), real(1, len(shape.views)), masked=False)

    # Before acting

    def latents(self, tensors: Tensors) -> Float[Tensor, "batch view 2 channel rows columns"] | None:
        """Latents of both times, of the kept views; frames among them are encoded, each time by itself."""
        if self.parts.gen is None or not self.shape.views:
            return None
        seen = self._kept(tensors["view_valid"])
        times: dict[str, Tensor] = {}
        for time in ("now", "before"):
            if f"latents_{time}" in tensors:
                times[time] = self._kept(tensors[f"latents_{time}"])
            elif f"frames_{time}" in tensors:
                frames = self._kept(tensors[f"frames_{time}"])
                times[time] = self.parts.encode(only(frames, seen) if self.shape.ragged else frames)
            else:  # an episode's first frame stands for both
                times[time] = times["now"]
        latents = torch.stack([times["before"], times["now"]], dim=2)
        return only(latents, seen) if self.shape.ragged else latents

    def read(
        self, tensors: Tensors, latents: Tensor | None, *, foresight: bool = False
    ) -> tuple[Places, Float[Tensor, "batch seq dim"] | None]:
        """Fill the cache with the understanding stream, then the generation stream.

        Args:
            tensors: What the call brings.
            latents: From `latents`.
            foresight: Return the output of the generation expert, for its read-out.
        """
        parts = self.parts
        ids = tensors["input_ids"].index_select(1, self.columns)
        valid = tensors["und_valid"].index_select(1, self.columns)
        seen = self._kept(tensors["view_valid"])
        places = self.places or self._places(valid, seen, masked=True)
        pixels = tensors["pixel_values"]
        pixels = pixels if self.all_patches else pixels.index_select(1, self.patches)
        if self.shape.ragged:
            pixels = only(pixels, seen.index_select(1, self.owners))
        x = parts.understanding(ids, pixels, self.shape.grid)
        self._walk(parts.und, x, "und", places, 0)
        if parts.gen is None or latents is None:
            return places, None
        assert parts.kernel is not None
        frames = rearrange(latents.to(parts.dtype), "batch view time ... -> (batch view time) ...")
        features = F.conv2d(frames, parts.kernel, parts.kernel_bias, stride=parts.config.foresight_cell)
        x = rearrange(
            features,
            "(batch view time) dim row column -> batch (view time row column) dim",
            batch=self.shape.batch,
            time=2,
        )
        x = self._walk(parts.gen, x, "gen", places, self.lengths["und"], read=foresight)
        return places, parts.gen.norm(x) if foresight else None

    def _walk(
        self, expert: FusedExpert, x: Tensor, name: str, places: Places, start: int, *, read: bool = False
    ) -> Tensor:
        """One stream through its expert, in sight of all that came before it."""
        angles, rows = places.angles[name], (Rows(x.shape[1], start + x.shape[1]),)
        parts, last = self.parts, self.parts.config.depth - 1
        for index in range(last + 1 if read else last):
            x = parts.run(expert.layers[index], x, angles, self._slots(index, start), rows, places.visible)
        if not read:
            expert.closing(x, angles, self._slots(last, start))
        return x

    # Acting

    def act(
        self, tensors: Tensors, solver: Solver
    ) -> tuple[Float[Tensor, "batch step action"], Float[Tensor, "batch kept 2 channel rows columns"] | None]:
        """A chunk of actions, and the latents it was based on."""
        parts, chunk = self.parts, self.parts.config.chunk
        latents = self.latents(tensors)
        places, _ = self.read(tensors, latents)
        head = parts.head(solver.steps)
        state, total = head.embed_state(tensors["state"]), self.prefix + 1 + chunk
        first = True

        def increment(actions: Tensor, position: float) -> Tensor:
            nonlocal first
            x = head.embed_actions(actions, position)
            name, rows, start = "action", [Rows(chunk, total)], self.prefix + 1
            if first:  # the state token sees no action: its keys and values stay
                x = torch.cat([state, x], dim=1)
                name, rows, start = "act", [Rows(1, self.prefix + 1), *rows], self.prefix
            first = False
            for index, layer in enumerate(parts.act.layers):
                x = parts.run(layer, x, places.angles[name], self._slots(index, start), rows, places.visible)
            return head.increment(parts.act.norm(x[:, -chunk:])).to(actions.dtype)

        actions = integrate(
            increment, tensors["noise"], steps=solver.steps, method=solver.method, prefix=tensors.get("prefix")
        )
        return actions, latents

    def imagine(
        self, tensors: Tensors
    ) -> tuple[
        Float[Tensor, "batch view channel rows columns"], Float[Tensor, "batch kept 2 channel rows columns"] | None
    ]:
        """Latents of t+15, zeros for views that were left out, and the latents they were based on."""
        config, foresight, latents = self.parts.config, self.parts.foresight, self.latents(tensors)
        assert foresight is not None
        if latents is None:  # no camera at all
            side = config.foresight_size // self.parts.compression
            return tensors["state"].new_zeros(
                self.shape.batch, config.views, config.cosmos.latent_channels, side, side
            ), None
        _, hidden = self.read(tensors, latents, foresight=True)
        assert hidden is not None
        cell = config.foresight_cell
        grid = Grid(len(self.shape.views), 2, latents.shape[-2] // cell, latents.shape[-1] // cell)
        own = foresight.head.project_out.weight.dtype
        predicted = foresight.head.predict((hidden * self.parts.gen_gain).to(own), grid)
        if self.all_views:
            return predicted, latents
        full = predicted.new_zeros(predicted.shape[0], len(self.parts.grid), *predicted.shape[2:])
        return full.index_copy(1, self.views, predicted), latents

    # Places

    def _slots(self, layer: int, start: int) -> Slots:
        return Slots(keys=self.keys[layer], values=self.values[layer], start=start)

    def _kept(self, values: Tensor) -> Tensor:
        return values if self.all_views else values.index_select(1, self.views)

    def _places(self, valid: Bool[Tensor, "batch und"], seen: Bool[Tensor, "batch view"], *, masked: bool) -> Places:
        """Where every token stands: valid ones count, streams follow each other."""
        chunk = self.parts.config.chunk
        positions, following = self.steps.positions(valid)
        later = torch.cat(
            [
                repeat(seen, "batch view -> batch (view cell)", cell=self.cells),
                torch.ones(valid.shape[0], 1 + chunk, dtype=torch.bool, device=valid.device),
            ],
            dim=1,
        )
        counted = following[:, None] + torch.cumsum(later.long(), dim=1) - later.long()
        angles = self._angles(torch.cat([positions, counted.expand(positions.shape[0], -1, -1)], dim=-1))
        und, gen = self.lengths["und"], self.lengths["gen"]
        ranges = {"und": (0, und), "gen": (und, und + gen), "act": (und + gen, None), "action": (und + gen + 1, None)}
        visible = torch.cat([valid, later], dim=1)[:, None, None] if masked else None
        return Places(
            angles={
                name: Angles(cos=angles.cos[:, start:stop], sin=angles.sin[:, start:stop])
                for name, (start, stop) in ranges.items()
            },
            visible=visible,
        )

    def _angles(self, positions: Int[Tensor, "axes batch seq"]) -> Angles:
        config = self.parts.config
        sections = config.rope_sections
        cos, sin = rotary_angles(
            positions[0] if sections is None else positions,
            head_dim=config.head_dim,
            base=config.rope_base,
            sections=sections,
            interleaved=True,
            dtype=torch.promote_types(self.parts.dtype, torch.float32),
        )
        low, high = sin.chunk(2, dim=-1)
        return Angles(cos=cos[:, :, None], sin=torch.cat([-low, high], dim=-1)[:, :, None])
