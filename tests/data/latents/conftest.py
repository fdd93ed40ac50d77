"""Two robots of different schemas, a set recorded with each, and a model of toy size that fits both."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from toy_model import randomised, toy_config
from transformers import PreTrainedTokenizerFast

from moteur.data import Robot, RobotDataset, RobotTransform, Source, Window, compute_statistics
from moteur.data.lerobot import Feature, SetWriter
from moteur.recipes import InternVLAA1, Processor

TIMES = (-3, 0, 3)
STEPS = 4  # the toy model's chunk


@dataclass(frozen=True)
class Recorded:
    """A set and its robot."""

    root: Path
    robot: Robot

    def prepared(
        self, frames: tuple[int, ...] = TIMES, *, seconds: tuple[float, ...] | None = None, **options: object
    ) -> RobotDataset:
        """Its samples with frames of these times, at the toy model's sizes."""
        statistics = compute_statistics([self.root], self.robot, steps=STEPS, progress=False)
        window = Window(offsets=frames, seconds=seconds, steps=STEPS)
        settings = {"size": 32, "dims": 5, **options}
        return RobotDataset(self.root, RobotTransform(self.robot, statistics, window=window, **settings))  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="session")
def record() -> Callable[[Path, int], Recorded]:
    """Records three episodes of an arm with two cameras as videos."""

    def make(root: Path, seed: int) -> Recorded:
        sizes = {"head": (24, 32, 3), "wrist": (32, 32, 3)}
        features = {camera: Feature("video", size) for camera, size in sizes.items()}
        features |= {name: Feature("float32", (3,)) for name in ("pose", "target")}
        rng = np.random.default_rng(seed)
        with SetWriter(root, fps=10, features=features, robot_type="arm", codec="libx264") as writer:
            for length in (9, 2, 14):
                for _ in range(length):
                    frame = {name: rng.normal(size=3) for name in ("pose", "target")}
                    frame |= {name: rng.integers(0, 256, size=size, dtype=np.uint8) for name, size in sizes.items()}
                    writer.add(frame, "reach far")
                writer.save_episode()
        robot = Robot(
            name="arm",
            state=(Source("pose", 3),),
            action=(Source("target", 3),),
            cameras=("head", None, "wrist"),
            relative=(2, -1),
        )
        return Recorded(root, robot)

    return make


@pytest.fixture(scope="session")
def arm(record: Callable[[Path, int], Recorded], tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Two cameras, the middle one missing; three actions."""
    return record(tmp_path_factory.mktemp("arm") / "set", 0)


@pytest.fixture(scope="session")
def person(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """A video of a person: no actions, one camera in the middle, its pictures in the table."""
    root = tmp_path_factory.mktemp("person") / "set"
    features = {"eyes": Feature("image", (40, 30, 3)), "hands": Feature("float32", (5,))}
    rng = np.random.default_rng(1)
    with SetWriter(root, fps=10, features=features) as writer:
        for _ in range(11):
            picture = rng.integers(0, 256, size=(40, 30, 3), dtype=np.uint8)
            writer.add({"eyes": picture, "hands": rng.normal(size=5)}, "pour")
        writer.save_episode()
    return Recorded(root, Robot("person", (Source("hands", 5),), (), (None, "eyes", None)))


@pytest.fixture(scope="session")
def model() -> InternVLAA1:
    """Takes five numbers of state and of action."""
    return randomised(replace(toy_config(), state_dim=5))


@pytest.fixture(scope="session")
def processor(model: InternVLAA1) -> Processor:
    """The model's door, with a vocabulary of a few words."""
    words = ["<pad>", "<start>", "<end>", "<image>", "<unk>", "reach", "far", "pour"]
    text = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))  # noqa: S106 - a token of text
    text.pre_tokenizer = pre_tokenizers.Whitespace()
    return Processor(model.config, PreTrainedTokenizerFast(tokenizer_object=text))
