"""What `before_after.py` asks of moteur, in the words of commit 941df50."""

# isort: skip_file
# Only that commit has these modules.

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moteur.recipes import InternVLAA1, InternVLAA1Config, Observation, Processor
from moteur.recipes.inference import InferenceSession
from moteur.recipes.loading import Loader
from moteur.recipes.robots import ROBOTS, Collator, Preparation, RobotDataset, compute_statistics
from moteur.sampling import EpochOrder, Pool, Sampler


def make_inputs(config: InternVLAA1Config, words: Any, frames: Tensor, state: Tensor) -> Any:  # noqa: ANN401
    """Inputs of one observation; frames are (1, view, 2, 3, side, side), uint8."""
    views = [frames[:, view] for view in range(frames.shape[1])]
    return Processor(config, words)(Observation(views, state, ["x"]))


class Session:
    """A session in a running episode; every call but `stateless` is 15 control steps after the last."""

    def __init__(self, model: InternVLAA1, inputs: Any, *, dtype: torch.dtype, alone: bool) -> None:  # noqa: ANN401
        del alone  # a session cannot take a model over here
        self.inputs, self.step = inputs, 15
        self.session = InferenceSession(model, inputs.image_grid, dtype=dtype)
        self.computes_in = self.session.parts.dtype

    def stateless(self, noise: Tensor) -> Tensor:
        """Both frames are encoded."""
        return self.session.act(self.inputs, noise=noise)

    def begin(self, noise: Tensor) -> None:
        """A first call, so that the history holds the frame of t-15 from now on."""
        self.session.act(self.inputs, noise=noise, times=(0, 15))

    def steady(self, noise: Tensor) -> Tensor:
        """The frame of t is encoded."""
        self.step += 15
        return self.session.act(self.inputs, noise=noise, times=(self.step - 15, self.step))

    def push(self) -> None:
        """Encode a frame as it arrives."""
        self.step += 15
        self.session.push(self.step, self.inputs.frames[:, :, 1])

    def pushed(self, noise: Tensor) -> Tensor:
        """No frame is encoded."""
        return self.session.act(self.inputs, noise=noise, times=(self.step - 15, self.step))


def statistics_of(sets: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Statistics of recorded sets, as plain values."""
    return compute_statistics(list(sets), ROBOTS["aloha"], progress=False).to_dict()


class Loading:
    """Loader and collator over a recorded set."""

    def __init__(self, root: Path, config: InternVLAA1Config, words: Any, *, batch: int) -> None:  # noqa: ANN401
        robot = ROBOTS["aloha"]
        self.dataset = RobotDataset(root, Preparation(robot, compute_statistics([root], robot, progress=False)))
        self.collate, self.batch = Collator(Processor(config, words)), batch

    def batches(self) -> Iterator[Any]:
        """Training batches of one epoch, read in this process."""
        sampler = Sampler(EpochOrder({"aloha": len(self.dataset)}))
        pool = Pool({"aloha": self.dataset}.__getitem__)
        return iter(Loader(pool, sampler, batch_size=self.batch, workers=0, collate=self.collate))

    @staticmethod
    def tensors(batch: Any) -> dict[str, Tensor]:  # noqa: ANN401
        """Every tensor that travels from a worker to the device."""
        halves = {"inputs": batch.inputs, "targets": batch.targets}
        found = {f"{half}.{name}": value for half, values in halves.items() for name, value in vars(values).items()}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)} | {"images": batch.images}

    @staticmethod
    def pictures(batch: Any) -> Tensor:  # noqa: ANN401
        """The frames of t-15, t and t+15 as they travel."""
        return batch.images
