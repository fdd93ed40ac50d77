"""Inference session: a model that only acts, on fast kernels, with the frames of the running episode."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial, wraps
from pathlib import Path
from threading import Lock
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar, cast

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from moteur.flowmatch import Method
from moteur.recipes import (
    ActingModel,
    Imagined,
    Inputs,
    InternVLAA1,
    check_imagines,
    check_pictures,
    load_model,
    read_dtype,
)
from moteur.runtime.graphs import Recorded
from moteur.runtime.history import Frame, FrameHistory
from moteur.runtime.kernels import Kernel, fastest_dtype, optimise

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class _Call:
    """The tensors of a call, trimmed to what some sample has; and what is needed to keep its frame.

    Attributes:
        tensors: By name, as `InferenceSession._known` reads them.
        kept: Views that are computed; None for all.
        step: Control step; None for inputs that bring the earlier frame themselves.
        frame: Pictures of the present.
        earlier: Control step of the earlier frame, if it comes out of the episode.
    """

    tensors: dict[str, Tensor]
    kept: list[int] | None
    step: int | None
    frame: Frame
    earlier: int | None


def _alone(call: Callable[Concatenate["InferenceSession", P], T]) -> Callable[Concatenate["InferenceSession", P], T]:
    """Refuse a call while another one runs: buffers and the episode are shared, so both would answer wrongly."""

    @wraps(call)
    def guarded(session: "InferenceSession", *args: P.args, **kwargs: P.kwargs) -> T:
        if not session._busy.acquire(blocking=False):  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            raise RuntimeError(
                "InferenceSession: expected one call at a time, got one while another thread's runs; hold a lock "
                "around calls, or make a session for each thread"
            )
        try:
            return call(session, *args, **kwargs)
        finally:
            session._busy.release()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]

    return guarded


class InferenceSession:
    """A policy ready to act: the answers of `InternVLAA1.act`, computed faster.

    The session holds a copy of the model, changed by `optimise`: linear maps on the fastest kernels, what nobody reads
    left out. Views that no sample has and padding of the instruction are never computed. On CUDA, layers are compiled
    and a whole call is one graph. Masks in host memory, as a `Processor` makes them, are read once per call; inside a
    call nothing is read back from the device.

    With frames of the present alone (one time in `Inputs.frames`), the session takes the frame of t-15 from the
    episode: every call of `act` or `observe` brings the frame of one control step. Call `reset` when an episode starts.
    A frame is encoded once. A second call for the same control step uses its latents again if the pictures of both are
    in host memory and equal; pictures on a device are encoded again.

    A session is frozen: it shares nothing with the model unless it took the model over, and what the model learns later
    does not reach it. It works in its own dtype, whatever autocast says. It serves one caller at a time: a call during
    another thread's is a RuntimeError. It cannot be copied or pickled.

    Args:
        model: The trained model.
        kernel: How linear maps are computed on the CPU: "measured" (each shape by what is faster here), "aten" or
            "onednn".
        dtype: What to compute in. None takes the model's own, but float32 for a bfloat16 model on a CPU that is
            measured to multiply float32 faster.
        float8: Hold the action expert's maps in 8-bit floats, where the chip has them; not exact.
        graphs: Record calls as CUDA graphs. None: on CUDA.
        compiled: Compile the layers with `torch.compile` (needs a C++ compiler on the CPU). None: on CUDA.
        shapes: How many graphs to keep, one for each shape of call.
        batch: How many samples a call usually brings. Any number may come; kernels are chosen for this one.
        take_over: Change the model itself instead of a copy, so that its weights are in memory once. The model must
            not be used afterwards.

    Raises:
        ValueError: For arguments that do not fit the model or the device.
    """

    def __init__(
        self,
        model: ActingModel,
        *,
        kernel: Kernel = "measured",
        dtype: torch.dtype | str | None = None,
        float8: bool = False,
        graphs: bool | None = None,
        compiled: bool | None = None,
        shapes: int = 8,
        batch: int = 1,
        take_over: bool = False,
    ) -> None:
        self._busy = Lock()
        device = model.backbone.text_embedding.weight.device
        cuda = device.type == "cuda"
        self.graphs = cuda if graphs is None else graphs
        compiled = cuda if compiled is None else compiled
        if self.graphs and not cuda:
            raise ValueError(f"graphs: expected a model on CUDA, got one on {device.type}")
        if compiled and kernel == "onednn":
            raise ValueError("kernel: expected 'aten' or 'measured' with compiled=True, got 'onednn'")
        for name, count in (("shapes", shapes), ("batch", batch)):
            if count < 1:
                raise ValueError(f"{name}: expected at least 1, got {count}")
        kernel = "aten" if compiled and kernel == "measured" else kernel
        dtype = read_dtype(dtype)
        dtype = torch.bfloat16 if dtype == "released" else dtype
        if dtype is None:
            dtype = fastest_dtype(model, batch=batch) if kernel == "measured" else model.dtype
        self.config, self.device, self.dtype, self._shapes = model.config, device, dtype, shapes
        self.model = model if take_over else copy.deepcopy(model)
        self.model.eval()
        optimise(self.model, kernel=kernel, dtype=dtype, float8=float8, batch=batch)
        if compiled:
            self.compile()
        self.history = FrameHistory(getattr(self.config, "history", 0))
        self._recorded: OrderedDict[tuple[object, ...], Recorded] = OrderedDict()

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        session: Mapping[str, Any] | None = None,
        **options: Any,  # noqa: ANN401  # handed on
    ) -> "InferenceSession":
        """Load a model and make a session of it; the weights are in memory once.

        Args:
            source: Folder or Hub id.
            session: Arguments of the session.
            **options: Arguments of `load_model`.
        """
        return cls(load_model(source, **options), take_over=True, **(session or {}))

    def __repr__(self) -> str:
        return (
            f"InferenceSession({self.config.variant}, {self.dtype}, {self.device}, "
            f"graphs={self.graphs}, steps held={self.history.held})"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "InferenceSession: cannot be copied or pickled, packed weights and graphs belong to the process that made "
            "them; make another one of the model or its checkpoint"
        )

    def compile(self, backend: str = "inductor") -> None:
        """Compile the layers: one graph for each width, whatever the lengths."""
        self.model.mot.compile_layers(backend=backend)
        if self.device.type == "cuda" and self.model.foresight is not None:
            self.model.backbone.vision.compile(fullgraph=True, backend=backend)
            self.model.foresight.encoder.compile(fullgraph=True, backend=backend)

    @_alone
    def reset(self) -> None:
        """Forget the frames of the episode: a new one starts, and control steps count from 0 again."""
        self.history.clear()

    @_alone
    @torch.no_grad()
    def observe(
        self,
        frames: Tensor,
        *,
        view_valid: Bool[Tensor, "batch view"] | None = None,
        step: int | None = None,
        encode: bool = False,
    ) -> None:
        """Give the session the pictures of a control step in which it does not act.

        Args:
            frames: All views, (batch, view, 3, side, side), uint8 or floats in [0, 1].
            view_valid: False where a camera is missing, whose pixels then do not matter; None: all are there.
            step: Control step within the episode; None: the one after the last.
            encode: Encode them now, so that no later call has to wait for it.

        Raises:
            ValueError: If the model has no generation expert, pictures do not fit in shape, dtype or range, or the step
                lies before the last.
        """
        if self.model.foresight is None:
            raise ValueError("observe: expected a model with a generation expert, got one without")
        check_pictures(self.config, frames, view_valid)
        frame = self._frame(frames.clone(), view_valid)
        step = self.history.next_step(step, frame)
        if encode:
            with self._own_precision():
                valid = None if view_valid is None else view_valid.to(self.device)
                frame = replace(frame, latents=self.model.foresight.encode_views(frames.to(self.device), valid))
        self.history.keep(step, frame)

    @_alone
    @torch.no_grad()
    def act(
        self,
        inputs: Inputs,
        *,
        step: int | None = None,
        noise: Float[Tensor, "batch step action"] | None = None,
        generator: Generator | None = None,
        steps: int | None = None,
        method: Method = "euler",
        prefix: Float[Tensor, "batch delay action"] | None = None,
    ) -> Float[Tensor, "batch step action"]:
        """A chunk of normalised actions: what `InternVLAA1.act` computes, with its arguments and one more.

        With one time in `inputs.frames`, the earlier one comes from the episode, and `step` is the control step of
        these frames within it; None: the one after the last.

        Raises:
            ValueError: If a shape or value does not fit the model, or the step lies before the last.
        """
        call = self._arrived(inputs, step)
        call.tensors["noise"] = inputs.noise(self.config, noise, generator)
        if prefix is not None and prefix.shape[1]:
            call.tensors["prefix"] = prefix
        run = partial(self._act, steps=steps, method=method)
        with self._own_precision():
            actions, *latents = (
                self._replay(run, call.tensors, (steps, method)) if self.graphs else run(self._here(call))
            )
        self._keep(call, latents)
        assert actions is not None
        return actions

    @_alone
    @torch.no_grad()
    def imagine(self, inputs: Inputs, *, decode: bool = False, step: int | None = None, keep: bool = True) -> Imagined:
        """The scene of t+15; what `InternVLAA1.imagine` computes. Views that no sample has are zeros.

        Args:
            inputs: What the policy sees. The state plays no part.
            decode: Return pictures as well; the model must hold the decoder.
            step: As for `act`.
            keep: Keep the frame in the episode, as `act` does.

        Raises:
            ValueError: If the model has no generation expert, or pictures are asked for without a decoder.
        """
        check_imagines(self.model.foresight, decode=decode)
        call = self._arrived(inputs, step)
        with self._own_precision():
            tensors = self._here(call)
            inputs, latents, *encoded = self._known(tensors)
            predicted = self._spread(cast("InternVLAA1", self.model).foresee(inputs, latents), call.kept)
            assert self.model.foresight is not None
            images = self.model.foresight.decode(predicted) if decode else None
        if keep:
            self._keep(call, encoded)
        return Imagined(latents=predicted, images=images)

    # Inside a call: functions of tensors, nothing depends on what they hold

    def _act(self, tensors: Mapping[str, Tensor], *, steps: int | None, method: Method) -> tuple[Tensor | None, ...]:
        inputs, latents, now, before = self._known(tensors)
        actions = self.model.denoise(
            inputs, latents, tensors["noise"], steps=steps, method=method, prefix=tensors.get("prefix")
        )
        return actions, now, before

    def _known(self, tensors: Mapping[str, Tensor]) -> tuple[Inputs, Tensor | None, Tensor | None, Tensor | None]:
        """The inputs, the latents of both times, and those of them that were encoded in this call: now, before."""
        valid = tensors.get("view_valid")
        inputs = Inputs(
            frames=tensors["frames"][:, :, None],
            instruction=tensors["instruction"],
            attention_mask=tensors.get("attention_mask"),
            view_valid=valid,
            state=tensors["state"],
        )
        if self.model.foresight is None:
            return inputs, None, None, None
        now = before = None
        if "latents" not in tensors:
            now = self.model.foresight.encode_views(tensors["frames"], valid)
        if "frames_before" in tensors:
            before = self.model.foresight.encode_views(tensors["frames_before"], valid)
        present = tensors["latents"] if now is None else now
        earlier = tensors.get("latents_before", present if before is None else before)
        if "valid_before" in tensors:  # a camera came back: its present picture stands for the one that is missing
            earlier = torch.where(tensors["valid_before"][:, :, None, None, None], earlier, present)
        latents = torch.stack([earlier, present], dim=2)
        if valid is not None:
            latents = torch.where(valid[:, :, None, None, None, None], latents, 0)
        return inputs, latents, now, before

    # Around a call

    def _arrived(self, inputs: Inputs, step: int | None) -> _Call:
        """Check the inputs, trim them, and find the earlier frame."""
        follows = self.model.foresight is not None and inputs.latents is None and inputs.frames.shape[2] == 1
        inputs.check(self.config, known_times=int(follows))
        if not follows and step is not None:
            raise ValueError(f"step: expected None for inputs that bring the earlier frame themselves, got {step}")
        frame = self._frame(inputs.frames[:, :, -1], inputs.view_valid)
        every = range(self.config.views)
        seen = [view for view in every if any(row[view] for row in frame.views)] or list(every)
        kept = None if len(seen) == len(every) else seen
        words = () if inputs.attention_mask is None else _rows(inputs.attention_mask)
        length = max(
            (place + 1 for row in words for place, there in enumerate(row) if there),
            default=inputs.instruction.shape[1],
        )
        tensors = {
            "frames": _chosen(frame.pictures, kept),
            "instruction": inputs.instruction[:, :length],
            "state": inputs.state,
        }
        if inputs.attention_mask is not None and not all(all(row[:length]) for row in words):
            tensors["attention_mask"] = inputs.attention_mask[:, :length]
        if inputs.view_valid is not None and not all(row[view] for row in frame.views for view in seen):
            tensors["view_valid"] = _chosen(inputs.view_valid, kept)
        earlier: int | None = None
        if inputs.latents is not None:
            latents = _chosen(inputs.latents, kept)
            tensors |= {"latents_before": latents[:, :, 0], "latents": latents[:, :, 1]}
        elif follows:
            step = self.history.next_step(step, frame)
            frame = self.history.recall(step, frame)
            if frame.latents is not None:  # asked again about a step that was encoded
                tensors["latents"] = _chosen(frame.latents, kept)
            earlier = self._add_earlier(tensors, frame, step, kept)
        elif self.model.foresight is not None:
            tensors["frames_before"] = _chosen(inputs.frames[:, :, -2], kept)
        return _Call(tensors, kept, step if follows else None, frame, earlier)

    def _add_earlier(self, tensors: dict[str, Tensor], frame: Frame, step: int, kept: list[int] | None) -> int | None:
        """The earlier frame out of the episode: its latents if they are known, else its pictures."""
        found = self.history.earlier(step)
        if found is None:  # the present picture stands for both
            return None
        number, before = found
        pairs = zip(before.views, frame.views, strict=True)
        if any(has and not had for old, new in pairs for had, has in zip(old, new, strict=True)):
            tensors["valid_before"] = _chosen(torch.tensor(before.views), kept)
        if before.latents is not None:
            tensors["latents_before"] = _chosen(before.latents, kept)
        else:
            tensors["frames_before"] = _chosen(before.pictures, kept)
        return number

    def _keep(self, call: _Call, encoded: list[Tensor | None]) -> None:
        """Keep the frame of a call, and what was encoded in it."""
        if call.step is None:
            return
        now, before = encoded
        latents = call.frame.latents if now is None else self._spread(now, call.kept)
        self.history.keep(call.step, replace(call.frame, pictures=call.frame.pictures.clone(), latents=latents))
        if call.earlier is not None and before is not None:
            self.history.keep_latents(call.earlier, self._spread(before, call.kept))

    def _frame(self, pictures: Tensor, view_valid: Tensor | None) -> Frame:
        every = ((True,) * self.config.views,) * pictures.shape[0]
        return Frame(pictures, every if view_valid is None else _rows(view_valid))

    def _spread(self, values: Tensor, kept: list[int] | None) -> Tensor:
        """All views again, zeros for those that were left out."""
        if kept is None:
            return values
        full = values.new_zeros(values.shape[0], self.config.views, *values.shape[2:])
        full[:, kept] = values
        return full

    def _replay(
        self, run: "partial[tuple[Tensor | None, ...]]", tensors: dict[str, Tensor], options: tuple[object, ...]
    ) -> tuple[Tensor | None, ...]:
        """The call as a graph, recorded when a shape of call and its options are seen first."""
        sizes = tuple((name, tuple(value.shape), value.dtype, value.device.type) for name, value in tensors.items())
        key = (sizes, options)
        if key not in self._recorded:
            self._recorded[key] = Recorded(run, tensors, device=self.device)
        self._recorded.move_to_end(key)
        while len(self._recorded) > self._shapes:
            self._recorded.popitem(last=False)
        return self._recorded[key](tensors)

    def _here(self, call: _Call) -> dict[str, Tensor]:
        return {name: value.to(self.device) for name, value in call.tensors.items()}

    def _own_precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, enabled=False)


def _rows(mask: Tensor) -> tuple[tuple[bool, ...], ...]:
    return tuple(tuple(row) for row in mask.tolist())


def _chosen(values: Tensor, kept: list[int] | None) -> Tensor:
    """Some views of a tensor of shape (batch, view, ...); all of them for None."""
    return values if kept is None else values[:, kept]
