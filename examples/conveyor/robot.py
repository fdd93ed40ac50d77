"""What ties the model to this robot: its schema, sizes, vocabulary, statistics, and the file they are kept in."""

import json
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from env import CAMERAS, COLORS, FPS, INSTRUCTIONS
from jaxtyping import Float, UInt8
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from moteur.data import FieldStatistics, Robot, RobotStatistics, RobotTransform, Source, Window
from moteur.recipes import Inputs, InternVLAA1, InternVLAA1Config, Observation, Processor, preset

SIZE = 64  # height and width of every picture
SPECIAL = ("<pad>", "<start>", "<end>", "<image>", "<unk>")  # where `preset("tiny")` expects them


def config() -> InternVLAA1Config:
    """The tiny preset with this robot's four numbers of state and action."""
    return replace(preset("tiny"), state_dim=4, action_dim=4)


def text_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word that an instruction may hold."""
    words = sorted({word for text in INSTRUCTIONS for color in COLORS for word in text.format(color).split()})
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106 - a word, no secret
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


ROBOT = Robot(
    name="conveyor",
    state=(Source("observation.state", 4),),
    action=(Source("action", 4),),
    cameras=tuple(f"observation.images.{name}" for name in CAMERAS),
    relative=(3, -1),  # x, y, z are learned relative to the arm, the gap as it is
    robot_types=("conveyor",),
    joints=("x", "y", "z", "gap"),
    rate=FPS,
)


def preparation(statistics: RobotStatistics, *, frames: tuple[int, ...] = (0,)) -> RobotTransform:
    """How this robot's samples are made: chunks of the tiny preset, pictures as they are."""
    window = Window(offsets=frames, steps=config().chunk)
    return RobotTransform(ROBOT, statistics, window=window, size=SIZE, dims=4)


class Door:
    """Makes the model's inputs fast: each instruction goes through the recipe's `Processor` once, pixels are cut here.

    `Processor` cuts its patches picture by picture on the host; here a whole batch of square pictures of the right size
    is cut at once. A test holds the two equal.
    """

    def __init__(self, config: InternVLAA1Config) -> None:
        self.config = config
        self.texts = [text.format(color) for text in INSTRUCTIONS for color in COLORS]
        blank = torch.zeros(len(self.texts), 2, 3, SIZE, SIZE, dtype=torch.uint8)
        state = torch.zeros(len(self.texts), config.state_dim)
        self._table = Processor(config, text_tokenizer())(Observation([blank] * len(CAMERAS), state, self.texts))

    def number(self, instruction: str) -> int:
        """Where an instruction stands in the table."""
        return self.texts.index(instruction)

    def inputs(
        self,
        now: UInt8[Tensor, "batch view 3 height width"],
        state: Float[Tensor, "batch state"],
        instruction: Tensor,
        *,
        before: UInt8[Tensor, "batch view 3 height width"] | None = None,
        latents: Float[Tensor, "batch view 2 channel rows columns"] | None = None,
    ) -> Inputs:
        """What the model takes: frames of now, and either those of 15 steps before or the latents of both."""
        return Inputs(
            input_ids=self._table.input_ids[instruction],
            und_valid=self._table.und_valid[instruction],
            pixel_values=self.patches(now),
            image_grid=self._table.image_grid,
            view_valid=torch.ones(now.shape[:2], dtype=torch.bool),
            state=state,
            frames=None if before is None else torch.stack([before, now], dim=2).float() / 255,
            latents=latents,
        )

    def patches(self, frames: UInt8[Tensor, "batch view 3 height width"]) -> Float[Tensor, "batch patches values"]:
        """Normalised squares of every view in the order of the Qwen processor: what is merged stands together."""
        vision = self.config.vision
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (vision.mean, vision.std))
        cut = rearrange(
            (frames.float() / 255 - mean) / std,
            "batch view channel (row mr pr) (column mc pc) -> batch (view row column mr mc) channel 1 (pr pc)",
            mr=vision.merge,
            mc=vision.merge,
            pr=vision.patch,
            pc=vision.patch,
        )
        return cut.expand(-1, -1, -1, vision.patch_frames, -1).flatten(2)


@dataclass(frozen=True)
class Policy:
    """A model with what it needs to be spoken to: the door to its inputs and the statistics of its numbers."""

    model: InternVLAA1
    door: Door
    statistics: RobotStatistics

    @cached_property
    def preparation(self) -> RobotTransform:
        """Scales states for the model and its actions for the robot."""
        return preparation(self.statistics)

    @torch.no_grad()
    def act(
        self,
        now: UInt8[Tensor, "batch view 3 height width"],
        before: UInt8[Tensor, "batch view 3 height width"],
        state: Float[Tensor, "batch 4"],
        instruction: Tensor,
        *,
        noise: Float[Tensor, "batch step 4"],
    ) -> Float[Tensor, "batch step 4"]:
        """Commands for the next steps, on the action's scale.

        Args:
            now: What the cameras see.
            before: What they saw 15 steps ago.
            state: The gripper's measured pose.
            instruction: Numbers of the instructions in the door's table.
            noise: Where the flow starts.
        """
        inputs = self.door.inputs(now, self.preparation.state(state), instruction, before=before)
        return self.commands(self.model.act(inputs, noise=noise), state)

    def commands(self, actions: Float[Tensor, "batch step 4"], state: Float[Tensor, "batch 4"]) -> Tensor:
        """Predicted actions as the robot takes them, kept in its range."""
        return self.preparation.commands(actions, state).clamp(-1, 1).float()


def save(path: Path, policy: Policy, *, dtype: torch.dtype, notes: dict[str, object]) -> None:
    """Write weights, means and deviations, and notes into one safetensors file; one of that name is complete."""
    tensors = {f"model/{name}": value.to(dtype).contiguous() for name, value in policy.model.state_dict().items()}
    fields = {"state": policy.statistics.state, "action": policy.statistics.action}
    for name, field in fields.items():
        assert field is not None
        tensors |= {f"scales/{name}_mean": torch.tensor(field.mean), f"scales/{name}_std": torch.tensor(field.std)}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    save_file(tensors, draft, metadata={"notes": json.dumps(notes)})
    draft.chmod(0o644)
    os.replace(draft, path)  # noqa: PTH105 - the same, said plainly


def load(path: Path) -> Policy:
    """Read a file of `save` back, strictly: a missing, unknown or misshapen tensor is an error of `load_state_dict`."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - not a mapping
    model = InternVLAA1(config(), decoder=True)
    model.load_state_dict({name.removeprefix("model/"): t for name, t in tensors.items() if name.startswith("model/")})
    fields: list[FieldStatistics] = []
    for name in ("state", "action"):
        mean, std = tensors[f"scales/{name}_mean"], tensors[f"scales/{name}_std"]
        # The file holds no counts and no extremes, and nothing here needs them: a deviation to each side stands in.
        values = (tuple(value.tolist()) for value in (mean, std, mean - std, mean + std))
        fields.append(FieldStatistics(0, *values))
    statistics = RobotStatistics(ROBOT.name, config().chunk, *fields)
    return Policy(model.eval(), Door(model.config), statistics)


def as_tensor(pixels: dict[str, np.ndarray]) -> UInt8[Tensor, "view 3 height width"]:
    """One observation's pictures, channels first."""
    return torch.from_numpy(np.stack([pixels[name] for name in CAMERAS])).permute(0, 3, 1, 2).contiguous()
