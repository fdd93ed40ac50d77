"""What ties the model to this robot: its sizes, its vocabulary, its scales, and the file they are kept in."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from env import CAMERAS, COLORS, INSTRUCTIONS
from jaxtyping import Float, UInt8
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from moteur.recipes import Inputs, InternVLAA1, InternVLAA1Config, Observation, Processor, preset

SIZE = 64  # height and width of every picture
SPECIAL = ("<pad>", "<start>", "<end>", "<image>", "<unk>")  # where `preset("tiny")` expects them
RELATIVE = torch.tensor([True, True, True, False])  # x, y, z are learned relative to the arm, the gap as it is


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


@dataclass(frozen=True)
class Scales:
    """Mean and standard deviation of states and of actions; actions are relative to the state where `RELATIVE`."""

    state_mean: Float[Tensor, "4"]
    state_std: Float[Tensor, "4"]
    action_mean: Float[Tensor, "4"]
    action_std: Float[Tensor, "4"]

    def state(self, state: Float[Tensor, "batch 4"]) -> Float[Tensor, "batch 4"]:
        """What the model sees of a state."""
        return (state - self.state_mean) / (self.state_std + 1e-6)

    def actions(
        self, actions: Float[Tensor, "batch step 4"], state: Float[Tensor, "batch 4"]
    ) -> Float[Tensor, "batch step 4"]:
        """What the model learns of an action chunk."""
        return (actions - RELATIVE * state[:, None] - self.action_mean) / (self.action_std + 1e-6)

    def commands(
        self, actions: Float[Tensor, "batch step 4"], state: Float[Tensor, "batch 4"]
    ) -> Float[Tensor, "batch step 4"]:
        """What the robot is told, from a chunk that the model predicted: the inverse of `actions`, kept in range."""
        return (actions * (self.action_std + 1e-6) + self.action_mean + RELATIVE * state[:, None]).clamp(-1, 1)


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
    """A model with what it needs to be spoken to: the door to its inputs and the scales of its numbers."""

    model: InternVLAA1
    door: Door
    scales: Scales


def save(path: Path, policy: Policy, *, dtype: torch.dtype, notes: dict[str, object]) -> None:
    """Write weights, scales and notes into one safetensors file; a file of that name is complete."""
    tensors = {f"model/{name}": value.to(dtype).contiguous() for name, value in policy.model.state_dict().items()}
    tensors |= {f"scales/{name}": value for name, value in vars(policy.scales).items()}
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
    scales = {name.removeprefix("scales/"): t for name, t in tensors.items() if name.startswith("scales/")}
    return Policy(model.eval(), Door(model.config), Scales(**scales))


def as_tensor(pixels: dict[str, np.ndarray]) -> UInt8[Tensor, "view 3 height width"]:
    """One observation's pictures, channels first."""
    return torch.from_numpy(np.stack([pixels[name] for name in CAMERAS])).permute(0, 3, 1, 2).contiguous()
