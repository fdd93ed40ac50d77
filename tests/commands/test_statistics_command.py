"""`moteur statistics`: the file and the table are those of `compute_statistics`."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from moteur.data import Robot, RobotStatistics, compute_statistics


def test_file_and_table_hold_the_statistics(home: Path, moteur: Callable[..., Result]) -> None:
    found = moteur("statistics", "sets/cup", "--robot", "robot.yaml", "--out", "s.json", "--chunk", "4")
    expected = RobotStatistics.load(home / "saved.json")
    assert RobotStatistics.load("s.json") == expected
    assert found.stdout.endswith("wrote s.json\n")
    assert expected.action is not None
    row = [f"{getattr(expected.action, name)[1]:.4g}" for name in ("mean", "std", "min", "max")]
    assert ["elbow:", "action[1]", "-", "observation.state[1]", *row] in [
        line.split() for line in found.stdout.splitlines()
    ]


def test_episodes_are_chosen_for_each_set_in_order(home: Path, moteur: Callable[..., Result]) -> None:
    sets = (home / "sets" / "cup", "sets/cup")
    ranges = ("--episodes", "0:1,2", "--episodes", "all")
    found = moteur("statistics", *sets, "--robot", "robot.yaml", "--out", "s.json", *ranges)
    assert found.exit_code == 0, found.stderr
    robot = Robot.load("robot.yaml")
    assert RobotStatistics.load("s.json") == compute_statistics(sets, robot, episodes=[[0, 2], None], progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--episodes", "1-2"), "--episodes: expected ranges such as 0:40,50,60:80, or all, got '1-2'"),
        (("--episodes", "all", "--episodes", "all"), "episodes: expected an entry for each of the 1 sets, got 2"),
        (("--episodes", "3"), "episodes: expected some of the 3 of sets/cup, each once, got [3]"),
        (("--chunk", "0"), "chunk: expected at least 1, got 0"),
        (
            ("--robot", "aloho"),
            "--robot: expected a schema file or a built-in robot (robot: expected one of ['ARX AC One', ",
        ),
        (("--robot", "none.yaml"), "[Errno 2] No such file or directory: 'none.yaml'"),
        (("--robot", "aloha"), "sets/cup/meta/info.json does not fit robot 'aloha': "),
        (("--out", "saved.json"), "--out: expected the name of a new file, got saved.json, which exists"),
        (("--out", "sets"), "--out: expected the name of a new file, got sets, a folder"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(
    options: tuple[str, ...], message: str, home: Path, moteur: Callable[..., Result]
) -> None:
    before = {path.name for path in home.iterdir()}
    given = ("--robot", "robot.yaml", "--out", "s.json", *options)
    found = moteur("statistics", "sets/cup", *given)
    assert found.exit_code == 2
    assert found.stderr.startswith(f"error: {message}")
    assert {path.name for path in home.iterdir()} == before


def test_without_a_robot_the_set_must_name_a_built_in_one(home: Path, moteur: Callable[..., Result]) -> None:
    found = moteur("statistics", "sets/cup", "--out", "s.json")
    assert found.stderr.startswith("error: --robot: expected for sets/cup, which names no built-in robot (")
    golden = Path(__file__).parents[1] / "golden" / "lerobot_v30" / "dataset"
    assert moteur("statistics", golden, "--out", "s.json").exit_code == 0
    assert RobotStatistics.load(home / "s.json").robot == "aloha"
