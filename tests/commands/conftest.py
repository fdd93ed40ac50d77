"""A folder as users have it: sets, a robot's schema and statistics, a checkpoint of toy size."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from toy_model import randomised, toy_config
from toy_torchscript import save_torchscript
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

from moteur.commands.app import app
from moteur.data import Feature, LeRobotWriter, Robot, compute_statistics
from moteur.recipes import dump_transforms
from moteur.tokenizers import CosmosEncoder

JOINTS = ["shoulder", "elbow", "gripper"]
CAMERAS = {"observation.images.front": (24, 32, 3), "observation.images.wrist": (32, 32, 3)}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder; tests that write use `home`."""
    root = tmp_path_factory.mktemp("commands")
    features = {camera: Feature("video", size) for camera, size in CAMERAS.items()}
    features |= {name: Feature("float32", (3,), JOINTS) for name in ("observation.state", "action")}
    picture = np.random.default_rng(0)
    with LeRobotWriter(root / "sets" / "cup", fps=30, features=features, robot_type="toy", codec="libx264") as writer:
        for length, thing in ((9, "cup"), (2, "tea"), (19, "cup")):
            for step in range(length):
                state = np.array([math.sin(step / 5), math.cos(step / 5), step % 2])
                frame = {name: picture.integers(0, 256, size, np.uint8) for name, size in CAMERAS.items()}
                writer.add(frame | {"observation.state": state, "action": state + 0.1}, f"reach the {thing}")
            writer.save_episode()
    cameras = ("observation.images.front", "observation.images.wrist", None)
    robot = Robot.from_info(root / "sets" / "cup", cameras=cameras, relative=(2, -1))
    robot.save(root / "robot.yaml")
    model = randomised(toy_config())
    statistics = compute_statistics(root / "sets" / "cup", robot, chunk=model.config.chunk, progress=False)
    statistics.save(root / "saved.json")
    model.statistics = dump_transforms(model.config.transform(robot, statistics))
    model.save_pretrained(root / "checkpoint", tokenizer=words("reach", "the", "cup"))
    (root / "cosmos").mkdir()
    save_torchscript(CosmosEncoder(model.config.cosmos).state_dict(), root / "cosmos" / "encoder.jit")
    return root


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of a test, with links to what was made."""
    for path in made.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def moteur() -> Callable[..., Result]:
    """Run the command in this process."""
    return lambda *arguments: CliRunner().invoke(app, [str(part) for part in arguments], prog_name="moteur")


def words(*vocabulary: str) -> PreTrainedTokenizerFast:
    """A text tokenizer with one token for each word."""
    known = {word: index for index, word in enumerate(("<pad>", "<unk>", *vocabulary))}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))  # noqa: S106  # a word, no secret
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")  # noqa: S106
