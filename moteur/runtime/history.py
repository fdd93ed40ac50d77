"""Latents of frames already seen, so that no frame is encoded twice."""

from collections import OrderedDict

from jaxtyping import Float
from torch import Tensor


class LatentHistory:
    """The latents of the last frames of a running episode, by frame number.

    A policy that looks at t-15 and t has encoded the frame of t-15 already, fifteen steps ago. What was encoded once is
    handed back bit for bit. Empty it (`clear`) at the start of every episode: frame numbers then begin anew.

    Args:
        capacity: Frames to keep; the one added longest ago is dropped first. Looking 15 frames back at every step
            takes 16.

    Raises:
        ValueError: A capacity below one.

    >>> import torch
    >>> history = LatentHistory(2)
    >>> for number in range(3):
    ...     history.add(number, torch.full((1,), float(number)))
    >>> history.frames, history.get(1)
    ([1, 2], tensor([1.]))
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity: expected at least 1 frame, got {capacity}")
        self.capacity = capacity
        self._latents: OrderedDict[int, Tensor] = OrderedDict()

    @property
    def frames(self) -> list[int]:
        """Numbers of the frames it holds, the one added longest ago first."""
        return list(self._latents)

    def __contains__(self, frame: int) -> bool:
        return frame in self._latents

    def add(self, frame: int, latents: Float[Tensor, "*shape"]) -> None:
        """Keep the latents of a frame; they must not be written to afterwards.

        Raises:
            ValueError: The frame is there already: two pictures under one number would make one of them a lie.
        """
        if frame in self._latents:
            raise ValueError(f"frame: number {frame} is there already; clear the history when an episode starts")
        self._latents[frame] = latents
        while len(self._latents) > self.capacity:
            self._latents.popitem(last=False)

    def get(self, frame: int) -> Float[Tensor, "*shape"]:
        """Latents of a frame, the tensor that was added.

        Raises:
            KeyError: The frame is not there (any more).
        """
        if frame not in self._latents:
            raise KeyError(f"frame {frame}: not in the history, which holds {self.frames}")
        return self._latents[frame]

    def clear(self) -> None:
        """Forget every frame: a new episode begins."""
        self._latents.clear()
