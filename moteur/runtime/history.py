"""Frames of a running episode: pictures by control step, and their latents once they are encoded."""

from collections import OrderedDict
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """The pictures of one control step.

    Attributes:
        pictures: All views, (batch, view, 3, side, side), uint8 or floats in [0, 1].
        views: For each sample, which views are there.
        latents: Cosmos latents of the pictures, zeros for missing views; None until they are encoded.
    """

    pictures: Tensor
    views: tuple[tuple[bool, ...], ...]
    latents: Float[Tensor, "batch view channel rows columns"] | None = None


class FrameHistory:
    """The frames of an episode that later calls may need, by control step.

    A policy that looks at t-15 and t has seen, and often encoded, the frame of t-15 already.

    Args:
        reach: Control steps between the earlier frame and the present one.
    """

    def __init__(self, reach: int) -> None:
        self.reach = reach
        self._frames: OrderedDict[int, Frame] = OrderedDict()

    @property
    def held(self) -> list[int]:
        """Control steps whose frames are held, oldest first."""
        return list(self._frames)

    def next_step(self, step: int | None, frame: Frame) -> int:
        """The control step of a new frame: the one given, or the one after the newest.

        Raises:
            ValueError: If the given step is before the newest frame's, or the frame has another batch size than those
                before.
        """
        newest = next(reversed(self._frames), -1)
        if self._frames and len(self._frames[newest].views) != len(frame.views):
            batch = len(self._frames[newest].views)
            raise ValueError(f"frames: expected a batch of {batch} as in this episode so far, got {len(frame.views)}")
        if step is None:
            return newest + 1
        if step < max(newest, 0):
            raise ValueError(
                f"step: expected {max(newest, 0)} or later, got {step}; call reset() when an episode starts"
            )
        return step

    def recall(self, step: int, frame: Frame) -> Frame:
        """The frame that is held for a step if this one is equal, else this one.

        Pictures are compared in host memory only: on a device that would wait for it.
        """
        held = self._frames.get(step)
        if held is None or held.views != frame.views:
            return frame
        one, other = held.pictures, frame.pictures
        hosted = one.device.type == other.device.type == "cpu"
        return held if hosted and one.dtype == other.dtype and torch.equal(one, other) else frame

    def earlier(self, step: int) -> tuple[int, Frame] | None:
        """The frame that a call at `step` reads as its earlier one: the nearest to `step - reach`.

        In the first steps of an episode that is its first frame, as in training. None means the present frame itself:
        at the first step, and where the nearest earlier frame is more than twice `reach` old.
        """
        nearest = min([*self._frames, step], key=lambda known: (abs(known - (step - self.reach)), known))
        return None if nearest == step else (nearest, self._frames[nearest])

    def keep(self, step: int, frame: Frame) -> None:
        """Keep a frame, and drop those that no later call reads."""
        self._frames[step] = frame
        newest = next(reversed(self._frames))
        while len(self._frames) > 1 and self.held[1] <= newest - self.reach:
            self._frames.popitem(last=False)

    def keep_latents(self, step: int, latents: Float[Tensor, "batch view channel rows columns"]) -> None:
        """Keep the latents of a frame that is held; they must not be written to afterwards."""
        if step in self._frames:
            self._frames[step] = replace(self._frames[step], latents=latents)

    def clear(self) -> None:
        """Forget every frame."""
        self._frames.clear()
