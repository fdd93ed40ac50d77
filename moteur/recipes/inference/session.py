"""The fastest way from an observation to actions: an inference session."""

from collections import OrderedDict

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from moteur.flowmatch.steps import Method
from moteur.recipes.checks import check_shapes, expect_shape
from moteur.recipes.config import InternVLAA1Config, Qwen3VLVision
from moteur.recipes.inference.choice import Kernel
from moteur.recipes.inference.graphs import Recorded
from moteur.recipes.inference.parts import Parts, fuse_for_inference
from moteur.recipes.inference.program import Program, Solver
from moteur.recipes.inference.shape import Shape, shape_of
from moteur.recipes.inputs import Inputs
from moteur.recipes.internvla_a1 import InternVLAA1
from moteur.recipes.outputs import Imagined
from moteur.tokenizers import LatentHistory

Times = tuple[int, int]
"""Frame numbers of t-15 and of t in a running episode."""


class InferenceSession:
    """A policy ready to act: the same answers as `InternVLAA1.act`, computed with far less work.

    Views that no sample has and text padding are never computed. Sizes are static for each shape of call (views,
    length of the instruction, batch): buffers, positions and rotary tables are made once and kept for the last
    `shapes` shapes; on CUDA a whole call is recorded as a graph and replayed. Nothing is read back from the device
    inside a call.

    Frames of a running episode need encoding only once: give their numbers as `times`, call `reset` when an episode
    starts, and, if frames arrive between calls, hand each to `push`.

    The weights are copied into another form when the session is made (`fuse_for_inference`); the model can go on
    training, and what it learns later does not reach the session. To save memory, delete the model.

    Args:
        model: The trained model. The text embedding and the foresight read-out are shared with it.
        grid: Patches of each view, as `Inputs.image_grid`.
        kernel: How linear maps are computed on the CPU: "measured" (each shape by what is faster here), "aten" or
            "onednn".
        dtype: What to compute in, see `fuse_for_inference`.
        float8: Hold the action expert's large maps in 8-bit floats, where the chip has them.
        still: Images reach Qwen3-VL's tower as equal frames, as its processor hands them over; only one is read.
        graphs: Record calls as CUDA graphs. None: on CUDA.
        compiled: Compile the layers with `torch.compile` (needs a C++ compiler on the CPU). None: on CUDA.
        shapes: How many shapes of call to keep.

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
    ) -> None:
        self.config = model.config
        self.parts: Parts = fuse_for_inference(model, grid, kernel=kernel, dtype=dtype, float8=float8, still=still)
        self.still = still
        on_cuda = self.parts.device.type == "cuda"
        self.graphs = on_cuda if graphs is None else graphs
        if self.graphs and not on_cuda:
            raise ValueError(f"graphs: expected a model on CUDA, got one on {self.parts.device.type}")
        if on_cuda if compiled is None else compiled:
            self.parts.compile()
        self.history = LatentHistory(2 * self.config.history + 2)
        self._programs: OrderedDict[Shape, Program] = OrderedDict()
        self._recorded: dict[Shape, dict[tuple[object, ...], Recorded]] = {}
        if shapes < 1:
            raise ValueError(f"shapes: expected at least 1, got {shapes}")
        self._room = shapes

    def reset(self) -> None:
        """Forget the frames of the episode: a new one starts, and frame numbers begin anew."""
        self.history.clear()

    @torch.inference_mode()
    def push(self, frame: int, frames: Float[Tensor, "batch view 3 height width"]) -> None:
        """Encode a frame as it arrives, so that no call has to wait for it.

        Args:
            frame: Its number in the episode.
            frames: All views, in [0, 1]; what a missing camera holds does not matter.

        Raises:
            ValueError: If the model has no generation expert, the frame is there already, or a shape does not fit.
        """
        if self.parts.gen is None:
            raise ValueError("push: expected a model with a generation expert, got config.gen=None")
        expect_shape("frames", frames.shape[1:3], (self.config.views, 3))
        self.history.add(frame, self.parts.encode(torch.nan_to_num(frames.to(self.parts.device))))

    @torch.inference_mode()
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
                holds is not encoded again; what is encoded is kept.

        Raises:
            ValueError: If a shape or value does not fit the model.
        """
        tensors = self._arrived(inputs, times)
        tensors["noise"] = self._noise(inputs, noise, generator)
        if prefix is not None and prefix.shape[1]:
            tensors["prefix"] = prefix
        program = self._program(inputs)
        solver = Solver(steps=self.config.steps if steps is None else steps, method=method)
        if self.graphs:
            actions, latents = self._replay(program, tensors, solver)
        else:
            tensors = {name: value.to(self.parts.device) for name, value in tensors.items()}
            actions, latents = program.act(tensors, solver)
        self._remember(times, latents, program.shape)
        return actions

    @torch.inference_mode()
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
        tensors = self._arrived(inputs, times)
        program = self._program(inputs)
        predicted, latents = program.imagine({name: value.to(self.parts.device) for name, value in tensors.items()})
        self._remember(times, latents, program.shape)
        return Imagined(latents=predicted, images=foresight.decode(predicted) if decode else None)

    # What a call brings

    def _arrived(self, inputs: Inputs, times: Times | None) -> dict[str, Tensor]:
        check_shapes(inputs, self.config)
        if inputs.image_grid != self.parts.grid:
            raise ValueError(
                f"image_grid: expected {self.parts.grid} as the session was made for, got {inputs.image_grid}"
            )
        _check_values(inputs, self.config, still=self.still)
        names = ("input_ids", "und_valid", "view_valid", "pixel_values", "state")
        tensors: dict[str, Tensor] = {name: getattr(inputs, name) for name in names}
        if self.parts.gen is None:
            return tensors
        for index, time in enumerate(("before", "now")):
            if times is not None and times[index] in self.history:
                tensors[f"latents_{time}"] = self.history.get(times[index])
            elif inputs.latents is not None:
                tensors[f"latents_{time}"] = inputs.latents[:, :, index]
            elif inputs.frames is not None:
                tensors[f"frames_{time}"] = inputs.frames[:, :, index]
            else:
                held = "" if times is None else f" (frame {times[index]} is not in the history, {self.history.frames})"
                raise ValueError(f"inputs: expected frames or latents for the generation expert, got neither{held}")
        return tensors

    def _noise(self, inputs: Inputs, noise: Tensor | None, generator: Generator | None) -> Tensor:
        shape = (inputs.state.shape[0], self.config.chunk, self.config.action_dim)
        if noise is None:
            return torch.randn(shape, generator=generator, device=inputs.state.device, dtype=inputs.state.dtype)
        expect_shape("noise", noise.shape, shape)
        return noise

    def _remember(self, times: Times | None, latents: Tensor | None, shape: Shape) -> None:
        """Keep what was encoded; of views that were left out, zeros."""
        if times is None or latents is None:
            return
        for index, frame in enumerate(times):
            if frame not in self.history:
                full = latents.new_zeros(latents.shape[0], self.config.views, *latents.shape[3:])
                full[:, list(shape.views)] = latents[:, :, index]
                self.history.add(frame, full)

    # Programs of the shapes seen last

    def _program(self, inputs: Inputs) -> Program:
        shape = shape_of(inputs, self.parts.understanding.backbone)
        if shape not in self._programs:
            self._programs[shape] = Program(self.parts, shape)
        self._programs.move_to_end(shape)
        while len(self._programs) > self._room:
            dropped, _ = self._programs.popitem(last=False)
            self._recorded.pop(dropped, None)
        return self._programs[shape]

    def _replay(self, program: Program, tensors: dict[str, Tensor], solver: Solver) -> tuple[Tensor, Tensor | None]:
        """The call as a graph, recorded when a shape of call and its options are seen first."""
        sizes = tuple((name, tuple(value.shape), value.dtype) for name, value in tensors.items())
        kept = self._recorded.setdefault(program.shape, {})
        key = (solver, sizes)
        if key not in kept:
            kept[key] = Recorded(lambda given: program.act(given, solver), tensors, device=self.parts.device)
        actions, latents = kept[key](tensors)
        assert actions is not None
        return actions, latents


def _check_values(inputs: Inputs, config: InternVLAA1Config, *, still: bool) -> None:
    """Refuse values that cannot be right, where looking is free. By numpy: a recorded call has no such operation."""
    if inputs.state.device.type == "cpu" and not np.isfinite(inputs.state.float().numpy()).all():
        raise ValueError("state: expected finite values, got some that are not")
    if still and isinstance(config.vision, Qwen3VLVision) and inputs.pixel_values.device.type == "cpu":
        frames = (
            inputs.pixel_values.float()
            .numpy()
            .reshape(*inputs.pixel_values.shape[:2], 3, config.vision.patch_frames, -1)
        )
        if not np.array_equal(frames, np.broadcast_to(frames[..., :1, :], frames.shape), equal_nan=True):
            raise ValueError(
                "pixel_values: expected still images, each frame of a patch equal, got others: give still=False"
            )
