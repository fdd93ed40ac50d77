"""Statistics over chosen episodes, and how often a set is opened for them."""

import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from moteur.data import Feature, LeRobotSet, LeRobotWriter, Robot, RobotStatistics, Source, compute_statistics
from moteur.data.compute_statistics import main
from moteur.data import episodes

LENGTHS = [1 + 3 * number % 8 for number in range(40)]
STEPS = 4
ARM = Robot("arm", (Source("pose", 2),), (Source("target", 2),), ("eye",), relative=(1, -1))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short episodes: more than one task of any process."""
    root, rng = tmp_path_factory.mktemp("many") / "set", np.random.default_rng(0)
    features = {key: Feature("float32", (2,)) for key in ("pose", "target")} | {"eye": Feature("image", (4, 4, 3))}
    with LeRobotWriter(root, fps=10, features=features) as writer:
        for length in LENGTHS:
            for _ in range(length):
                numbers = {key: rng.normal(size=2) for key in ("pose", "target")}
                writer.add(numbers | {"eye": np.zeros((4, 4, 3), dtype=np.uint8)}, "reach")
            writer.save_episode()
    return root


def brute_force(root: Path, numbers: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """States and real steps of every chunk of these episodes, frame by frame."""
    items = [item for item in LeRobotSet(root, keys=["pose", "target"]) if int(item["episode_index"]) in numbers]
    states = np.array([item["pose"].double().numpy() for item in items])
    actions = [
        (later["target"].double() - now["pose"].double() * now["pose"].new_tensor([1.0, 0.0])).numpy()
        for place, now in enumerate(items)
        for later in items[place : place + STEPS]
        if later["episode_index"] == now["episode_index"]
    ]
    return states, np.array(actions)


def check(found: RobotStatistics, expected: tuple[np.ndarray, np.ndarray]) -> None:
    assert found.action is not None
    for field, rows in zip((found.state, found.action), expected, strict=True):
        assert field.count == len(rows)
        for name in ("mean", "std", "min", "max"):
            np.testing.assert_allclose(getattr(field, name), getattr(rows, name)(axis=0), rtol=1e-10, atol=1e-10)
        for name, point in {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}.items():
            np.testing.assert_allclose(getattr(field, name), np.quantile(rows, point, axis=0), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("limit", [5, 65_536])
@pytest.mark.parametrize("chosen", [[3], list(range(32)), [39, 0, 17, 18]])
def test_statistics_of_chosen_episodes_are_those_of_a_brute_force_pass_over_them(
    many: Path, chosen: list[int], limit: int
) -> None:
    found = compute_statistics([many], ARM, episodes=[chosen], steps=STEPS, limit=limit, progress=False)
    check(found, brute_force(many, chosen))


def test_each_set_has_its_own_choice_and_none_is_all_of_it(many: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").symlink_to(many)
    found = compute_statistics(
        [many, tmp_path / "copy"], ARM, episodes=[None, range(5)], steps=STEPS, limit=20, progress=False
    )
    parts = brute_force(many, list(range(40))), brute_force(many, list(range(5)))
    states, actions = (np.concatenate(pair) for pair in zip(*parts, strict=True))
    check(found, (states, actions))


def test_the_command_takes_the_same_choice(many: Path, tmp_path: Path) -> None:
    ARM.save(tmp_path / "arm.json")
    named = ["--robot", str(tmp_path / "arm.json"), "--steps", str(STEPS), "--out", str(tmp_path / "found.json")]
    main([str(many), *named, "--episodes", "0:30,35"])
    expected = compute_statistics([many], ARM, episodes=[[*range(30), 35]], steps=STEPS, progress=False)
    assert RobotStatistics.load(tmp_path / "found.json") == expected
    main([str(many), *named, "--episodes", "all"])
    assert RobotStatistics.load(tmp_path / "found.json").state.count == sum(LENGTHS)


@pytest.mark.parametrize("text", ["0-80", "a:3", ":", "1,", "-1"])
def test_a_choice_that_is_none_is_refused_by_the_command(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["set", "--out", "x.json", f"--episodes={text}"])
    assert f"expected ranges such as 0:40,50,60:80 or all, got '{text}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([[0, 40, -1]], r"episodes: expected numbers of the 40 episodes of .*set, got \[-1, 40\]"),
        ([[4, 5, 4]], r"episodes: expected each episode of .*set once, got \[4\] more than once"),
        ([[1], [2]], "episodes: expected an entry for each of the 1 sets, got 2"),
        ([[]], "sets must hold at least one episode, got "),
    ],
)
def test_a_choice_that_the_sets_do_not_hold_is_named(many: Path, chosen: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compute_statistics([many], ARM, episodes=chosen, progress=False)


def test_a_robot_without_state_and_actions_is_refused_and_one_without_a_state_is_not(many: Path) -> None:
    with pytest.raises(ValueError, match="robot: expected columns of a state or an action, got none in 'arm'"):
        compute_statistics([many], replace(ARM, state=(), action=(), relative=()), progress=False)
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        compute_statistics([many], ARM, steps=0, progress=False)
    blind = replace(ARM, state=(), relative=())
    found = compute_statistics([many], blind, steps=STEPS, progress=False)
    assert found.state.dims == 0
    assert found.action is not None
    assert found.action.dims == 2
    assert RobotStatistics.from_dict(found.to_dict()) == found


class Opens:
    """Counts sets that are opened, and files of their episode index that are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sets, self.tables = 0, 0
        opened, read = collect.LeRobotSet, episodes.read_table

        def open_set(*arguments: object, **named: object) -> LeRobotSet:
            self.sets += 1
            return opened(*arguments, **named)  # pyright: ignore[reportArgumentType]

        def read_table(*arguments: object) -> object:
            self.tables += 1
            return read(*arguments)  # pyright: ignore[reportArgumentType]

        monkeypatch.setattr(collect, "LeRobotSet", open_set)
        monkeypatch.setattr(episodes, "read_table", read_table)


def test_a_set_is_opened_once_however_many_episodes_it_has(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opens = Opens(monkeypatch)
    compute_statistics([many], ARM, steps=STEPS, limit=5, progress=False)  # two passes
    assert opens.sets == 1
    assert opens.tables == len(list(many.glob("meta/episodes/*/*.parquet"))) + 1  # each file once, and the tasks


def test_of_several_sets_each_is_opened_once_a_pass(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "copy").symlink_to(many)
    opens = Opens(monkeypatch)
    compute_statistics([many, tmp_path / "copy"], ARM, steps=STEPS, limit=5, progress=False)
    assert opens.sets == 2 * 3  # to divide the work, for the numbers, for the quantiles


def test_a_worker_process_opens_a_set_once_for_all_its_tasks(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opens = Opens(monkeypatch)
    collect._opened.cache_clear()
    work = partial(collect._survey, robot=ARM, steps=STEPS, limit=5)
    for first in range(0, 40, 8):  # as a worker gets its tasks: the work comes pickled anew with each of them
        sent = pickle.loads(pickle.dumps((work, many, tuple(range(first, first + 8)))))  # noqa: S301 - our own
        sent[0](*sent[1:])
    assert opens.sets == 1


def test_a_set_that_has_grown_is_opened_anew(tmp_path: Path) -> None:
    features = {key: Feature("float32", (2,)) for key in ("pose", "target")} | {"eye": Feature("image", (4, 4, 3))}
    for count in (3, 6):
        with LeRobotWriter(tmp_path / "set", fps=10, features=features, resume=count > 3) as writer:
            for _ in range(3):
                writer.add({"pose": [0.0, 1.0], "target": [1.0, 2.0], "eye": np.zeros((4, 4, 3), np.uint8)}, "reach")
            writer.save_episode()
        assert compute_statistics([tmp_path / "set"], ARM, progress=False).state.count == count
