"""What `before_after.py` asks of moteur, in the words of this checkout; `version_before.py` has the same names."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moteur.data import Loader, Robot, RobotDataset, RobotTransform, compute_statistics
from moteur.recipes import Collator, Inputs, InternVLAA1, InternVLAA1Config, Processor, TrainingBatch
from moteur.runtime import InferenceSession
from moteur.sampling import DatasetPool, EpochOrder, Sampler


def make_inputs(config: InternVLAA1Config, words: Any, frames: Tensor, state: Tensor) -> Inputs:  # noqa: ANN401
    """Inputs of one observation; frames are (1, view, 2, 3, side, side), uint8."""
    views = [frames[:, view] for view in range(frames.shape[1])]
    return Processor(config, words)(views, state, ["x"])


class Session:
    """A session in a running episode; every call but `stateless` is 15 control steps after the last."""

    def __init__(self, model: InternVLAA1, inputs: Inputs, *, dtype: torch.dtype, alone: bool) -> None:
        self.inputs, self.step = inputs, 15
        self.present = replace(inputs, frames=inputs.frames[:, :, 1:])
        self.session = InferenceSession(model, dtype=dtype, take_over=alone)
        self.computes_in = self.session.dtype

    def stateless(self, noise: Tensor) -> Tensor:
        """Both frames are encoded."""
        return self.session.act(self.inputs, noise=noise)

    def begin(self, noise: Tensor) -> None:
        """A first call, so that the history holds the frame of t-15 from now on."""
        self.session.observe(self.inputs.frames[:, :, 0], step=0)
        self.session.act(self.present, noise=noise, step=15)

    def steady(self, noise: Tensor) -> Tensor:
        """The frame of t is encoded."""
        self.step += 15
        return self.session.act(self.present, noise=noise, step=self.step)

    def push(self) -> None:
        """Encode a frame as it arrives."""
        self.step += 15
        self.session.observe(self.inputs.frames[:, :, 1], step=self.step, encode=True)

    def pushed(self, noise: Tensor) -> Tensor:
        """No frame is encoded."""
        return self.session.act(self.present, noise=noise, step=self.step)


def statistics_of(sets: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Statistics of recorded sets, as plain values."""
    return compute_statistics(list(sets), Robot.known("aloha"), progress=False).to_dict()


class Loading:
    """Loader and collator over a recorded set."""

    def __init__(self, root: Path, config: InternVLAA1Config, words: Any, *, batch: int) -> None:  # noqa: ANN401
        robot = Robot.known("aloha")
        self.dataset = RobotDataset(root, RobotTransform(robot, compute_statistics([root], robot, progress=False)))
        self.collate, self.batch = Collator(Processor(config, words)), batch

    def batches(self) -> Iterator[TrainingBatch]:
        """Training batches of one epoch, read in this process."""
        sampler = Sampler(EpochOrder({"aloha": len(self.dataset)}))
        pool = DatasetPool({"aloha": self.dataset}.__getitem__)
        return iter(Loader(pool, sampler, batch_size=self.batch, workers=0, collate=self.collate))

    @staticmethod
    def tensors(batch: TrainingBatch) -> dict[str, Tensor]:
        """Every tensor that travels from a worker to the device."""
        halves = {"inputs": batch.inputs, "targets": batch.targets}
        found = {f"{half}.{name}": value for half, values in halves.items() for name, value in vars(values).items()}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    @staticmethod
    def pictures(batch: TrainingBatch) -> Tensor:
        """The frames of t-15, t and t+15 as they travel."""
        assert batch.targets.future_frames is not None
        return torch.cat([batch.inputs.frames, batch.targets.future_frames[:, :, None]], dim=2)
