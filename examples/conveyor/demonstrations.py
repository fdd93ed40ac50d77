"""Recorded episodes as flat tensors, and the training samples cut from them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from collect import load
from env import CAMERAS
from jaxtyping import Bool, Float, Int, UInt8
from robot import RELATIVE, Door, Policy, Scales
from torch import Tensor
from tqdm import tqdm

from moteur.recipes import Inputs, Targets


@dataclass
class Demonstrations:
    """All episodes one after another. Pictures were drawn every few steps, poses and commands kept at every step.

    Attributes:
        frames: Pictures of the three cameras.
        first: For each picture, the index of the first one of its episode.
        last: For each picture, the index of the last one of its episode.
        step: For each picture, where its step stands in `state` and `action`.
        end: For each picture, where the last step of its episode stands there.
        instruction: For each picture, the number of its instruction in the `Door`'s table.
        state: Measured pose of the gripper, on the action's scale.
        action: What the expert commanded.
        every: Steps from one picture to the next.
        latents: Cosmos latents of all pictures, filled in once the tokenizer is trained.
    """

    frames: UInt8[Tensor, "frame view 3 height width"]
    first: Int[Tensor, " frame"]
    last: Int[Tensor, " frame"]
    step: Int[Tensor, " frame"]
    end: Int[Tensor, " frame"]
    instruction: Int[Tensor, " frame"]
    state: Float[Tensor, "step 4"]
    action: Float[Tensor, "step 4"]
    every: int
    latents: Tensor = field(default_factory=lambda: torch.empty(0))

    @staticmethod
    def read(paths: Sequence[Path], door: Door, *, progress: bool = True) -> "Demonstrations":
        """Load recordings.

        Raises:
            ValueError: If two of them were drawn at different intervals.
        """
        pictures: list[Tensor] = []
        parts: dict[str, list[np.ndarray]] = {}
        frames, steps, intervals = 0, 0, set[int]()
        for path in tqdm(paths, desc="reading", unit="episode", disable=not progress):
            episode = load(path)
            views = np.stack([episode[name] for name in CAMERAS], axis=1)
            pictures.append(torch.from_numpy(np.ascontiguousarray(views.transpose(0, 1, 4, 2, 3))))
            count, length, every = len(views), len(episode["state"]), episode["every"]
            columns = {
                "first": np.full(count, frames),
                "last": np.full(count, frames + count - 1),
                "step": steps + every * np.arange(count),
                "end": np.full(count, steps + length - 1),
                "instruction": np.full(count, door.number(episode["instruction"])),
                "state": episode["state"],
                "action": episode["action"],
            }
            for name, values in columns.items():
                parts.setdefault(name, []).append(values)
            frames, steps = frames + count, steps + length
            intervals.add(every)
        if len(intervals) != 1:
            raise ValueError(f"paths: expected recordings of one interval between pictures, got {sorted(intervals)}")
        columns = {name: torch.from_numpy(np.concatenate(values)) for name, values in parts.items()}
        return Demonstrations(frames=torch.cat(pictures), every=intervals.pop(), **columns)

    def __len__(self) -> int:
        return len(self.frames)

    def chunks(
        self, index: Int[Tensor, " batch"], steps: int
    ) -> tuple[Float[Tensor, "batch step 4"], Bool[Tensor, "batch step"]]:
        """The expert's next `steps` commands, the last one repeated past the end, and which of them are real."""
        ahead = self.step[index][:, None] + torch.arange(steps)
        end = self.end[index][:, None]
        return self.action[torch.minimum(ahead, end)], ahead <= end

    def scales(self, steps: int) -> Scales:
        """Statistics of states, and of the real steps of action chunks as the model learns them."""
        total, square, count = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64), 0
        for index in torch.arange(len(self)).split(4096):
            chunk, valid = self.chunks(index, steps)
            values = (chunk - RELATIVE * self.state[self.step[index]][:, None])[valid].double()
            total, square, count = total + values.sum(0), square + values.square().sum(0), count + len(values)
        mean = total / count
        deviation = (square / count - mean.square()).sqrt()
        return Scales(self.state.mean(0), self.state.std(0), mean.float(), deviation.float())

    def samples(self, index: Int[Tensor, " batch"], policy: Policy) -> tuple[Inputs, Targets]:
        """What the policy sees at these pictures, and what it should learn. The latents must be there."""
        door, scales = policy.door, policy.scales
        pictures = door.config.history // self.every
        before = torch.maximum(index - pictures, self.first[index])
        future, last = index + pictures, self.last[index]
        state = self.state[self.step[index]]
        actions, valid = self.chunks(index, door.config.chunk)
        inputs = door.inputs(
            self.frames[index],
            scales.state(state),
            self.instruction[index],
            latents=torch.stack([self.latents[before], self.latents[index]], dim=2).float(),
        )
        targets = Targets(
            actions=scales.actions(actions, state),
            valid_steps=valid,
            future_latents=self.latents[torch.minimum(future, last)].float(),
            valid_future=(future <= last)[:, None].expand(-1, len(CAMERAS)),
        )
        return inputs, targets
