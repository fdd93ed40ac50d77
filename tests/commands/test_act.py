"""`moteur act`: what a policy commands on a recorded episode, beside what was recorded."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import Result

from moteur.data import LeRobotSet
from moteur.runtime import Policy

JOINTS = ("shoulder", "elbow", "gripper")


def by_hand(every: int) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and recorded chunks of episode 2, from items of the set one by one."""
    policy, dataset = Policy.from_pretrained("checkpoint"), LeRobotSet("sets/cup", episodes=[2])
    items = [dataset[position] for position in range(len(dataset))]
    generator = torch.Generator().manual_seed(5)
    predicted, recorded = [], []
    for step, item in enumerate(items):
        pictures = {name: item[f"observation.images.{name}"] for name in ("front", "wrist")}
        if step % every:
            policy.observe(pictures)
            continue
        predicted.append(policy.act(pictures, item["observation.state"], item["task"], generator=generator).actions)
        later = [later["action"].numpy() for later in items[step : step + 4]]
        recorded.append([*later, *[np.full(3, np.nan)] * (4 - len(later))])
    return np.array(predicted), np.array(recorded)


def test_chunks_are_those_of_the_policy_and_errors_those_of_the_chunks(
    home: Path, moteur: Callable[..., Result]
) -> None:
    given = ("checkpoint", "sets/cup", "--episode", "2", "--every", "2", "--seed", "5", "--out", "p.npz")
    found = moteur("act", *given)
    assert found.exit_code == 0, found.stderr
    predicted, recorded = by_hand(every=2)
    with np.load(home / "p.npz") as stored:
        assert tuple(stored["name"]) == JOINTS
        assert stored["step"].tolist() == [*range(0, 19, 2)]
        np.testing.assert_array_equal(stored["predicted"], predicted)
        np.testing.assert_array_equal(stored["recorded"], recorded.astype(np.float32))
        assert np.isnan(stored["recorded"]).sum() == 3 * (1 + 3)  # steps of the last two chunks beyond the episode
        error = np.abs(stored["predicted"] - stored["recorded"])
    table = [line.split() for line in found.stdout.splitlines()]
    for place, joint in enumerate(JOINTS):
        near, whole = np.nanmean(error[:, :2, place]), np.nanmean(error[..., place])
        assert [joint, f"{near:.4g}", f"{whole:.4g}"] in table
    assert found.stdout.startswith("robot toy, sets/cup, episode 2: 10 chunks, one every 2 control steps\n")
    assert found.stdout.endswith("wrote p.npz: step, predicted, recorded, name\n")


def test_chunks_follow_each_other_unless_asked_otherwise(home: Path, moteur: Callable[..., Result]) -> None:
    found = moteur("act", "checkpoint", "sets/cup", "--episode", "1")
    assert found.stdout.startswith("robot toy, sets/cup, episode 1: 1 chunk, one every 4 control steps\n")
    assert not list(home.glob("*.npz"))


@pytest.mark.usefixtures("home")
def test_a_word_that_the_tokenizer_does_not_know_is_a_warning_in_one_line(moteur: Callable[..., Result]) -> None:
    found = moteur("act", "checkpoint", "sets/cup", "--episode", "1")
    assert "warning: instruction: the tokenizer does not know 'tea'\n" in found.stderr.replace("\r", "\n")
    assert found.exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--episode", "3"), "episode: expected one of the 3 episodes of sets/cup, got 3"),
        (("--episode", "0", "--robot", "aloha"), "robot: expected one of ['toy'] of checkpoint, got 'aloha'"),
        (("--episode", "0", "--out", "p.txt"), "--out: expected a name that ends in .npz, got 'p.txt'"),
        (("--episode", "0", "--out", "no/p.npz"), "--out: expected a file in an existing folder, got no/p.npz"),
        (("--episode", "0", "--tokenizer", "sets"), "sets: expected a text tokenizer, got none"),
    ],
)
def test_what_does_not_fit_is_refused(
    options: tuple[str, ...], message: str, home: Path, moteur: Callable[..., Result]
) -> None:
    before = set(home.iterdir())
    found = moteur("act", "checkpoint", "sets/cup", *options)
    assert found.exit_code == 2
    assert found.stderr.startswith(f"error: {message}")
    assert set(home.iterdir()) == before


@pytest.mark.usefixtures("home")
def test_a_set_of_another_robot_is_refused(moteur: Callable[..., Result]) -> None:
    golden = Path(__file__).parents[1] / "golden" / "lerobot_v30" / "dataset"
    found = moteur("act", "checkpoint", golden, "--episode", "0")
    assert found.stderr.startswith(f"error: {golden}/meta/info.json does not fit robot 'toy': ")
