"""GR00T's `modality.json` and fetching from the Hub."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RevisionNotFoundError

from moteur.data import LeRobotSet, Robot
from moteur.data.lerobot.info import Camera, Modality, Part

MODALITY = {
    "state": {"arm": {"start": 0, "end": 6}, "gripper": {"start": 6, "end": 7}},
    "action": {"arm": {"original_key": "action", "start": 0, "end": 6}},
    "video": {"ego": {"original_key": "observation.images.top"}, "im": {}},
    "annotation": {"human.task": {"original_key": "task_index"}},
}


def with_modality(root: Path, content: Any) -> Path:  # noqa: ANN401
    (root / "meta/modality.json").write_text(json.dumps(content))
    return root


def test_modality_names_slices_and_cameras(golden: Path, copy_of: Callable[[Path], Path]) -> None:
    root = with_modality(copy_of(golden / "lerobot_v21/dataset"), MODALITY)
    assert Modality.load(root) == Modality(
        state={"arm": Part(0, 6), "gripper": Part(6, 7)},
        action={"arm": Part(0, 6, "action")},
        video={"ego": Camera("observation.images.top"), "im": Camera()},
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r"modality.json: expected a mapping of fields, got \[\]"),
        ({"state": 3}, "modality.json: state: expected a mapping of fields, got 3"),
        ({"state": {"arm": {"start": 3, "end": 3}}}, r"modality.json: state.arm: expected start < end, got 3 and 3"),
        ({"state": {"arm": {"start": -1, "end": 3}}}, r"modality.json: state.arm.start: expected at least 0, got -1"),
        ({"action": {"arm": {"start": 3}}}, r"action.arm.end: expected a value, got none"),
    ],
)
def test_a_damaged_file_is_named(golden: Path, copy_of: Callable[[Path], Path], content: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Modality.load(with_modality(copy_of(golden / "lerobot_v21/dataset"), content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state": {"arm": {"start": 3, "end": 9}}}, r"observation.state'\].shape: expected \(9,\) for the state"),
        (
            {"action": {"a": {"original_key": "force", "start": 0, "end": 1}}},
            r"expected numeric columns \['force'\] for the action",
        ),
        ({"video": {"ego": {}}}, r"expected cameras \['observation.images.ego'\], got"),
    ],
)
def test_a_file_that_names_what_is_not_in_the_set_makes_no_robot(
    golden: Path, copy_of: Callable[[Path], Path], changes: dict[str, Any], message: str
) -> None:
    root = with_modality(copy_of(golden / "lerobot_v21/dataset"), MODALITY | changes)
    with pytest.raises(ValueError, match=message):
        Robot.from_modality(root)


def test_the_hub_is_asked_for_the_newest_known_version_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    available: set[str] = set()

    def download(repo_id: str, *, repo_type: str, revision: str, cache_dir: Path | None) -> str:
        assert (repo_id, repo_type, cache_dir) == ("lerobot/pusht", "dataset", None)
        asked.append(revision)
        if revision in available:
            return str(tmp_path)
        raise RevisionNotFoundError.__new__(RevisionNotFoundError)

    monkeypatch.setattr("moteur.data.lerobot.dataset.snapshot_download", download)
    for offered, expected in (
        ({"v3.0", "main"}, ["v3.0"]),
        ({"v2.1", "main"}, ["v3.0", "v2.1"]),
        ({"main"}, ["v3.0", "v2.1", "main"]),
    ):
        asked.clear()
        available.clear()
        available.update(offered)
        assert LeRobotSet.download("lerobot/pusht") == tmp_path
        assert asked == expected
    with pytest.raises(ValueError, match=r"repo_id: expected a set with one of the revisions v9, got 'lerobot/pusht'"):
        LeRobotSet.download("lerobot/pusht", revision="v9")


def test_without_a_network_an_older_version_in_the_cache_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repo_id: str, *, repo_type: str, revision: str, cache_dir: Path | None) -> str:
        assert (repo_id, repo_type, cache_dir) == ("lerobot/pusht", "dataset", None)
        if revision == "v2.1":
            return str(tmp_path)
        raise LocalEntryNotFoundError(f"{revision} is not in the cache")

    monkeypatch.setattr("moteur.data.lerobot.dataset.snapshot_download", download)
    assert LeRobotSet.download("lerobot/pusht") == tmp_path
    with pytest.raises(FileNotFoundError, match=r"^v3\.0 is not in the cache"):
        LeRobotSet.download("lerobot/pusht", revision="v3.0")
