"""The fastest way from an observation to actions: an inference session."""

from collections import OrderedDict
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from moteur.flowmatch.steps import Method
from moteur.recipes.checks import expect_shape
from moteur.recipes.inputs import Inputs
from moteur.recipes.internvla_a1 import InternVLAA1
from moteur.recipes.outputs import Imagined
from moteur.runtime.choice import Kernel
from moteur.runtime.door import check_call, check_frames, check_options
from moteur.runtime.graphs import Recorded
from moteur.runtime.parts import Parts, fuse_for_inference
from moteur.runtime.program import Program, Solver
from moteur.runtime.shape import Shape, shape_of
from moteur.runtime.stream import Frames, Times


class InferenceSession:
    """A policy ready to act: the same answers as `InternVLAA1.act`, computed with far less work.

    Views that no sample has and text padding are never computed. Sizes are static for each shape of call (views,
    length of the instruction, batch): buffers, positions and rotary tables are made once and kept for the last
    `shapes` shapes; on CUDA a whole call is recorded as a graph and replayed. With masks in host memory, as a
    `Processor` makes them, nothing is read back from the device inside a call.

    Frames of a running episode need encoding only once: give their numbers as `times`, call `reset` when an episode
    starts, and, if frames arrive between calls, hand each to `push`.

    The weights are copied into another form when the session is made (`fuse_for_inference`); the model can go on
    training, and what it learns later does not reach the session. Shared with the model are the text embedding and the
    foresight head and decoder, which only `imagine` reads. To save memory, delete the model.

    A session works in its own dtype, whatever autocast says. It serves one caller at a time: calls from several
    threads need a lock around them, or a session each.

    Args:
        model: The trained model.
        grid: Patches of each view, as `Inputs.image_grid`.
        kernel: How linear maps are computed on the CPU: "measured" (each shape by what is faster here), "aten" or
            "onednn".
        dtype: What to compute in, see `fuse_for_inference`.
        float8: Hold the action expert's large maps in 8-bit floats, where the chip has them.
        still: Images reach Qwen3-VL's tower as equal frames, as its processor hands them over; only one is read.
        graphs: Record calls as CUDA graphs. None: on CUDA.
        compiled: Compile the layers with `torch.compile` (needs a C++ compiler on the CPU). None: on CUDA.
        shapes: How many shapes of call, and how many graphs, to keep.
        batch: How many samples a call usually brings. Any number may come; kernels are chosen for this one.

    Raises:
        ValueError: For arguments that do not fit the model or the device.
    """

    def __init__(
        self,
        model: InternVLAA1,
        grid: tuple[tuple[int, int], ...],
        *,
        kernel: Kernel = "measured",
        dtype: torch.dtype | None = None,
        float8: bool = False,
        still: bool = True,
        graphs: bool | None = None,
        compiled: bool | None = None,
        shapes: int = 8,
        batch: int = 1,
    ) -> None:
        device = model.backbone.text_embedding.weight.device
        self.graphs = device.type == "cuda" if graphs is None else graphs
        compiled = device.type == "cuda" if compiled is None else compiled
        if self.graphs and device.type != "cuda":
            raise ValueError(f"graphs: expected a model on CUDA, got one on {device.type}")
        if compiled and kernel == "onednn":
            raise ValueError("kernel: expected 'aten' or 'measured' with compiled=True, got 'onednn'")
        if shapes < 1:
            raise ValueError(f"shapes: expected at least 1, got {shapes}")
        self.config, self.still, self._room = model.config, still, shapes
        self.parts: Parts = fuse_for_inference(
            model, grid, kernel="aten" if compiled else kernel, dtype=dtype, float8=float8, still=still, batch=batch
        )
        if compiled:
            self.parts.compile()
        self.frames = Frames(capacity=2 * self.config.history + 2)
        self._programs: OrderedDict[Shape, Program] = OrderedDict()
        self._recorded: OrderedDict[tuple[object, ...], Recorded] = OrderedDict()

    def reset(self) -> None:
        """Forget the frames of the episode: a new one starts, and frame numbers begin anew."""
        self.frames.clear()

    @torch.no_grad()
    def push(
        self,
        frame: int,
        frames: Float[Tensor, "batch view 3 height width"],
        *,
        view_valid: Bool[Tensor, "batch view"] | None = None,
    ) -> None:
        """Encode a frame as it arrives, so that no call has to wait for it.

        Args:
            frame: Its number in the episode.
            frames: All views, in [0, 1].
            view_valid: False where a camera is missing, whose pixels then do not matter; None: all are there.

        Raises:
            ValueError: If the model has no generation expert, the frame is there already or older than one that is, or
                frames do not fit in shape, dtype or range.
        """
        if self.parts.gen is None:
            raise ValueError("push: expected a model with a generation expert, got config.gen=None")
        expect_shape("frames", frames.shape[1:3], (self.config.views, 3))
        check_frames("frames", frames, view_valid)
        if view_valid is not None:
            frames = torch.where(view_valid[:, :, None, None, None], frames, 0)
        with self._own_precision():
            latents = self.parts.encode(frames.to(self.parts.device))
        everywhere = range(self.config.views) if view_valid is None else _always(view_valid)
        self.frames.add(frame, latents, views=everywhere)

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
        times: Times | None = None,
    ) -> Float[Tensor, "batch step action"]:
        """A chunk of normalised actions; what `InternVLAA1.act` computes, with the same arguments.

        Args:
            inputs: What the policy sees. With `times`, frames may be missing whose latents the history holds.
            noise: Where the flow starts, never changed, or None to draw it.
            generator: Draws the noise when it is not given.
            steps: Solver steps; None takes the configuration's.
            method: Solver.
            prefix: Normalised actions that the robot will have executed before it can follow this chunk.
            times: Frame numbers of t-15 and t (of the first frame where the episode is younger). What the history
                holds is not encoded again; what is encoded is kept. Numbers never go back within an episode.

        Raises:
            ValueError: If a shape or value does not fit the model, or times run backwards.
        """
        solver = Solver(steps=self.config.steps if steps is None else steps, method=method)
        check_options(inputs, self.config, steps=solver.steps, method=method, noise=noise, prefix=prefix)
        program, tensors = self._arrived(inputs, times)
        if noise is None:
            shape, state = (inputs.state.shape[0], self.config.chunk, self.config.action_dim), inputs.state
            noise = torch.randn(shape, generator=generator, device=state.device, dtype=state.dtype)
        tensors["noise"] = noise
        if prefix is not None and prefix.shape[1]:
            tensors["prefix"] = prefix
        with self._own_precision():
            if self.graphs:
                actions, latents = self._replay(program, tensors, solver)
            else:
                actions, latents = program.act(self._here(tensors), solver)
        self._remember(times, latents, program.shape)
        return actions

    @torch.no_grad()
    def imagine(self, inputs: Inputs, *, decode: bool = False, times: Times | None = None) -> Imagined:
        """The scene of t+15; what `InternVLAA1.imagine` computes. Views that no sample has are zeros.

        Args:
            inputs: What the policy sees. The state plays no part.
            decode: Return images as well; the model must hold the decoder.
            times: As for `act`.

        Raises:
            ValueError: If the model has no generation expert, or images are asked for without a decoder.
        """
        foresight = self.parts.foresight
        if foresight is None:
            raise ValueError("imagine: expected a model with a generation expert, got config.gen=None")
        if decode and foresight.decoder is None:
            raise ValueError("decode: expected a model built with decoder=True, got one without the Cosmos decoder")
        program, tensors = self._arrived(inputs, times)
        with self._own_precision():
            predicted, latents = program.imagine(self._here(tensors))
            images = foresight.decode(predicted) if decode else None
        self._remember(times, latents, program.shape)
        return Imagined(latents=predicted, images=images)

    # What a call brings

    def _arrived(self, inputs: Inputs, times: Times | None) -> tuple[Program, dict[str, Tensor]]:
        """The program of this shape of call, and the tensors it reads, wherever they are."""
        check_call(inputs, self.config, self.parts.grid, still=self.still)
        program = self._program(inputs)
        names = ("input_ids", "und_valid", "view_valid", "pixel_values", "state")
        tensors: dict[str, Tensor] = {name: getattr(inputs, name) for name in names}
        if self.parts.gen is not None:
            tensors |= self.frames.of(inputs, times, views=program.shape.views)
        return program, tensors

    def _remember(self, times: Times | None, latents: Tensor | None, shape: Shape) -> None:
        """Keep what was encoded, unless some sample lacked a view."""
        if times is None or latents is None or shape.ragged:
            return
        full = latents.new_zeros(latents.shape[0], self.config.views, *latents.shape[2:])
        full[:, list(shape.views)] = latents
        self.frames.keep(times, full, views=shape.views)

    def _program(self, inputs: Inputs) -> Program:
        shape = shape_of(inputs, self.parts.understanding.arrangement)
        if shape not in self._programs:
            self._programs[shape] = Program(self.parts, shape)
        self._programs.move_to_end(shape)
        if len(self._programs) > self._room:
            dropped, _ = self._programs.popitem(last=False)
            for key in [key for key in self._recorded if key[0] == dropped]:
                del self._recorded[key]
        return self._programs[shape]

    def _replay(self, program: Program, tensors: dict[str, Tensor], solver: Solver) -> tuple[Tensor, Tensor | None]:
        """The call as a graph, recorded when a shape of call and its options are seen first."""
        sizes = tuple((name, tuple(value.shape), value.dtype, value.device.type) for name, value in tensors.items())
        key = (program.shape, solver, sizes)
        if key not in self._recorded:
            self._recorded[key] = Recorded(partial(program.act, solver=solver), tensors, device=self.parts.device)
        self._recorded.move_to_end(key)
        while len(self._recorded) > self._room:
            self._recorded.popitem(last=False)
        actions, latents = self._recorded[key](tensors)
        assert actions is not None
        return actions, latents

    def _here(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.parts.device) for name, value in tensors.items()}

    def _own_precision(self) -> torch.autocast:
        return torch.autocast(self.parts.device.type, enabled=False)


def _always(view_valid: Bool[Tensor, "batch view"]) -> list[int]:
    """Views that every sample has."""
    rows: list[list[bool]] = view_valid.cpu().tolist()
    return [view for view in range(len(rows[0])) if all(row[view] for row in rows)]
