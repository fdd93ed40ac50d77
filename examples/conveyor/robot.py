"""The robot of the demo: its schema, the model's sizes, the words it is told, and the model that nothing has trained.

Everything else is the library's: `InternVLAA1.save_pretrained` writes a checkpoint with tokenizer, schema and
statistics, `InternVLAA1.from_pretrained` loads it to train on, `Policy.from_pretrained` to act.
"""

from dataclasses import replace

import torch
from env import CAMERAS, COLORS, FPS, INSTRUCTIONS
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from moteur.data import Robot, RobotStatistics, RobotTransform, Source
from moteur.recipes import InternVLAA1, InternVLAA1Config, dump_transforms, load_transforms, preset

SPECIAL = ("<pad>", "<start>", "<end>", "<image>", "<unk>")  # where `preset("tiny")` expects them

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


def config() -> InternVLAA1Config:
    """The tiny preset with this robot's four numbers of state and action."""
    return replace(preset("tiny"), state_dim=4, action_dim=4)


def text_tokenizer() -> PreTrainedTokenizerFast:
    """Text tokenizer with one token for each word that an instruction may hold."""
    words = sorted({word for text in INSTRUCTIONS for color in COLORS for word in text.format(color).split()})
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106 - a word, no secret
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")  # noqa: S106 - too


def untrained(statistics: RobotStatistics) -> InternVLAA1:
    """The model with random weights from a fixed seed, image tokenizer included, for data of these statistics."""
    torch.manual_seed(0)
    model = InternVLAA1(config(), decoder=True).eval()
    model.statistics = dump_transforms(model.config.transform(ROBOT, statistics))
    return model


def transform(model: InternVLAA1) -> RobotTransform:
    """This robot's schema and statistics, as the model carries them."""
    return load_transforms(model.statistics)[ROBOT.name]
