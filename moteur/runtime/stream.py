"""The frames of a running episode: which latents a call may take from before, and which it must encode."""

from collections.abc import Collection

from jaxtyping import Float
from torch import Tensor

from moteur.recipes.inputs import Inputs
from moteur.runtime.history import LatentHistory

Times = tuple[int, int]
"""Frame numbers of t-15 and of t in a running episode."""


class Frames:
    """Latents by frame number, and for which views they hold.

    Args:
        capacity: Frames to keep.
    """

    def __init__(self, *, capacity: int) -> None:
        self.history = LatentHistory(capacity)
        self._views: dict[int, frozenset[int]] = {}
        self._batch: int | None = None

    def clear(self) -> None:
        """Forget every frame: a new episode begins."""
        self.history.clear()
        self._views.clear()
        self._batch = None

    def add(
        self, frame: int, latents: Float[Tensor, "batch view channel rows columns"], *, views: Collection[int]
    ) -> None:
        """Keep the latents of a frame; those of other views than `views` are not to be used.

        Raises:
            ValueError: If the frame is there already or older than the newest, or its batch is another one.
        """
        self._check_batch(latents.shape[0])
        if self.history.frames and frame < self.history.frames[-1]:
            raise ValueError(
                f"frame: expected {self.history.frames[-1]} or later, got {frame}; reset when an episode starts"
            )
        self.history.add(frame, latents)
        self._batch = latents.shape[0]
        self._views[frame] = frozenset(views)
        self._views = {number: self._views[number] for number in self.history.frames}

    def keep(
        self, times: Times, latents: Float[Tensor, "batch view 2 channel rows columns"], *, views: Collection[int]
    ) -> None:
        """Keep what a call encoded; a frame older than the newest one is of no use later."""
        for index, frame in enumerate(times):
            newest = self.history.frames[-1] if self.history.frames else frame
            if frame not in self.history and frame >= newest:
                self.add(frame, latents[:, :, index], views=views)

    def of(self, inputs: Inputs, times: Times | None, *, views: Collection[int]) -> dict[str, Tensor]:
        """Of both times, latents from before where they hold for these views, else what the inputs bring.

        Raises:
            ValueError: If times run backwards, or something is neither held nor given.
        """
        found: dict[str, Tensor] = {}
        if times is not None:
            self._check_batch(inputs.state.shape[0])
            newest = self.history.frames[-1] if self.history.frames else 0
            if not 0 <= times[0] <= times[1] or times[1] < newest:
                raise ValueError(
                    f"times: expected 0 <= before <= now, now not before frame {newest}, got {times}; "
                    "reset when an episode starts"
                )
        for index, time in enumerate(("before", "now")):
            frame = None if times is None else times[index]
            if frame is not None and frame in self.history and self._views[frame] >= set(views):
                found[f"latents_{time}"] = self.history.get(frame)
            elif times is not None and time == "before" and times[0] == times[1]:
                continue  # one picture stands for both
            elif inputs.latents is not None:
                found[f"latents_{time}"] = inputs.latents[:, :, index]
            elif inputs.frames is not None:
                found[f"frames_{time}"] = inputs.frames[:, :, index]
            else:
                held = "" if frame is None else f" (frame {frame} is not in the history, {self.history.frames})"
                raise ValueError(f"inputs: expected frames or latents for the generation expert, got neither{held}")
        return found

    def _check_batch(self, batch: int) -> None:
        if self._batch is not None and batch != self._batch:
            raise ValueError(f"frames: expected a batch of {self._batch} as in this episode so far, got {batch}")
