"""π0 and π0.5 at toy size on the conveyor: recorded demonstrations, steps of fine-tuning, an episode in closed loop."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "conveyor"))  # the example's files are no package

from collect import collect
from env import FPS
from robot import ROBOT, text_tokenizer
from rollouts import rollouts

from moteur.data import RobotDataset, compute_statistics
from moteur.recipes import Collator, Pi0, Processor, dump_transforms, preset
from moteur.recipes.training import adamw, train_step
from moteur.runtime import Policy


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conveyor")
    collect(folder, 2, progress=False)
    return folder


def digits(text: str) -> list[int]:
    """The prompt of π0.5 holds numbers, which the demo's own tokenizer has no words for."""
    return [ord(letter) for letter in text]


@pytest.mark.parametrize("variant", ["pi0", "pi05"])
def test_a_model_learns_from_recorded_episodes_and_acts_through_one(
    variant: Literal["pi0", "pi05"], root: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = replace(preset(f"tiny-{variant}"), text_length=64 if variant == "pi0" else 128)
    words = digits if variant == "pi05" else text_tokenizer()
    statistics = compute_statistics([root], ROBOT, chunk=config.chunk, progress=False)
    transform = config.transform(ROBOT, statistics)
    data, collate = RobotDataset(root, transform), Collator(Processor(config, words))
    model = Pi0(config).train()
    model.statistics = dump_transforms(transform)
    optimizer = adamw(model, rate=1e-3)
    own = np.random.default_rng(0)
    losses: list[float] = []
    for step in range(20):
        batch = collate([data[int(place)] for place in own.integers(len(data), size=4)])
        assert batch.inputs.frames.shape[2] == 1
        inputs, targets = batch.to("cpu")
        generator = torch.Generator().manual_seed(step)
        loss = model(inputs, targets, generator=generator).total
        train_step(optimizer, loss, rate=1e-3)
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    model.save_pretrained(tmp_path / "pi")
    policy = Policy.from_pretrained(tmp_path / "pi", tokenizer=words)
    assert policy.robot == ROBOT
    assert policy.robot.rate == FPS
    (episode,) = rollouts(policy, [7], together=1, progress=False)
    assert episode.outcome is not None
    assert episode.steps > 0
