"""No crash loses a finished episode."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from toy_set import FEATURES, FPS, TOP, frame, read_number, record_more, task

from moteur.data import LeRobotSet, LeRobotWriter

TESTS = Path(__file__).parents[2]


RECORDER = """
import os, signal, sys
from pathlib import Path
from toy_set import FEATURES, FPS, record_more
from moteur.data import LeRobotWriter

cut, renames, replace = int(sys.argv[2]), 0, os.replace

def counted(source, target):
    global renames
    renames += 1
    if renames == cut:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = counted
with LeRobotWriter(Path(sys.argv[1]), fps=FPS, features=FEATURES, codec="libx264") as writer:
    for _ in range(1000):
        record_more(writer)
        print(writer.num_episodes, flush=True)
"""


def run_recorder(root: Path, *, cut: int = 0, seconds: float | None = None) -> int:
    """Record until the process is killed, at a rename or after a time; return how many episodes it had finished."""
    child = subprocess.Popen(  # noqa: S603  # our own script
        [sys.executable, "-c", RECORDER, str(root), str(cut)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
        text=True,
    )
    assert child.stdout is not None
    lines = [child.stdout.readline()]  # the first episode: imports are over, recording is under way
    if seconds is not None:
        time.sleep(seconds)
        child.send_signal(signal.SIGKILL)
    lines += child.communicate()[0].split()
    assert child.returncode == -signal.SIGKILL
    return int(lines[-1])


def go_on(root: Path) -> int:
    """Record one more episode into the set that was cut off."""
    with LeRobotWriter(root, fps=FPS, features=FEATURES, codec="libx264", resume=True) as writer:
        record_more(writer)
        return writer.num_episodes


def check_whole(root: Path, finished: int) -> LeRobotSet:
    """Every finished episode opens with all its frames; at most the one being saved may be there as well."""
    dataset = LeRobotSet(root)
    assert finished <= len(dataset.index) <= finished + 1
    for position in range(len(dataset)):
        item, (episode, step) = dataset[position], dataset.locate(position)
        assert read_number(item[TOP]) == (episode % 4, step)
        assert np.array_equal(item["matrix"], frame(episode % 4, step)["matrix"])
        assert item["task"] == task(episode)
    assert [int(length) for length in dataset.index.length] == [4 + n % 3 for n in range(len(dataset.index))]
    return dataset


def check_statistics(root: Path) -> None:
    """`stats.json` counts the frames that are there, each once."""
    dataset = LeRobotSet(root)
    stats = json.loads((root / "meta/stats.json").read_text())["matrix"]
    values = np.concatenate([dataset.column("matrix", episode) for episode in range(len(dataset.index))]).astype(float)
    assert stats["count"] == [len(dataset)]
    for name, expected in {
        "mean": values.mean(0),
        "std": values.std(0),
        "min": values.min(0),
        "max": values.max(0),
    }.items():
        np.testing.assert_allclose(stats[name], expected, rtol=1e-10, atol=1e-12)


# Two renames create the set and six save an episode: these cuts fall before each rename of the second episode.
@pytest.mark.parametrize("cut", range(9, 15))
def test_a_writer_killed_at_any_rename_leaves_every_finished_episode_and_can_go_on(tmp_path: Path, cut: int) -> None:
    assert run_recorder(tmp_path, cut=cut) == 1
    assert len(check_whole(tmp_path, 1).index) == 1
    assert go_on(tmp_path) == 2
    assert len(check_whole(tmp_path, 2).index) == 2
    check_statistics(tmp_path)
    tables = [pq.read_table(path).to_pylist() for path in sorted(tmp_path.glob("meta/episodes/*/*.parquet"))]
    assert [row["episode_index"] for rows in tables for row in rows] == [0, 1]


@pytest.mark.parametrize("seed", range(3))
def test_a_writer_killed_at_a_random_moment_leaves_every_finished_episode(tmp_path: Path, seed: int) -> None:
    finished = run_recorder(tmp_path, seconds=float(np.random.default_rng(seed).uniform(0.0, 0.25)))
    before = len(check_whole(tmp_path, finished).index)
    assert go_on(tmp_path) == before + 1
    check_whole(tmp_path, before + 1)
    check_statistics(tmp_path)


def test_a_writer_killed_while_it_creates_the_set_leaves_a_folder_that_can_be_begun_again(tmp_path: Path) -> None:
    child = subprocess.run(  # noqa: S603  # our own script
        [sys.executable, "-c", RECORDER, str(tmp_path), "2"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
        check=False,
    )
    assert child.returncode == -signal.SIGKILL
    assert (tmp_path / "meta/tasks.parquet").exists()
    assert not (tmp_path / "meta/info.json").exists()
    with LeRobotWriter(tmp_path, fps=FPS, features=FEATURES, codec="libx264") as writer:
        record_more(writer)
    check_whole(tmp_path, 1)
