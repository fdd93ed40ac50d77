"""GR00T's `modality.json` and fetching from the Hub."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RevisionNotFoundError

from moteur.data import LeRobotSet, download_set
from moteur.data.lerobot.info import Modality, Slice

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
    dataset = LeRobotSet(with_modality(copy_of(golden / "lerobot_v21/dataset"), MODALITY))
    assert dataset.modality == Modality(
        state={"arm": Slice("observation.state", 0, 6), "gripper": Slice("observation.state", 6, 7)},
        action={"arm": Slice("action", 0, 6)},
        video={"ego": "observation.images.top", "im": "observation.images.im"},
    )


def test_a_set_without_the_file_has_no_modality(golden: Path) -> None:
    assert LeRobotSet(golden / "lerobot_v30/dataset").modality is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r"modality.json: expected a mapping of fields, got \[\]"),
        ({"state": 3}, "modality.json: state: expected a mapping of fields, got 3"),
        ({"state": {"arm": {"start": 3, "end": 9}}}, r"state.arm: expected 0 <= start < end <= 7, got 3 and 9"),
        ({"action": {"arm": {"start": 3}}}, r"action.arm.end: expected a value, got none"),
        (
            {"action": {"a": {"original_key": "force", "start": 0, "end": 1}}},
            r"action.a.original_key: expected a numeric column of this set, got 'force'",
        ),
        (
            {"video": {"ego": {}}},
            r"video.ego.original_key: expected one of the cameras .*, got 'observation.images.ego'",
        ),
    ],
)
def test_what_does_not_fit_the_set_is_named(
    golden: Path, copy_of: Callable[[Path], Path], content: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LeRobotSet(with_modality(copy_of(golden / "lerobot_v21/dataset"), content))


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
        assert download_set("lerobot/pusht") == tmp_path
        assert asked == expected
    with pytest.raises(ValueError, match=r"repo_id: expected a set with one of the revisions v9, got 'lerobot/pusht'"):
        download_set("lerobot/pusht", revision="v9")


def test_without_a_network_an_older_version_in_the_cache_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repo_id: str, *, repo_type: str, revision: str, cache_dir: Path | None) -> str:
        assert (repo_id, repo_type, cache_dir) == ("lerobot/pusht", "dataset", None)
        if revision == "v2.1":
            return str(tmp_path)
        raise LocalEntryNotFoundError(f"{revision} is not in the cache")

    monkeypatch.setattr("moteur.data.lerobot.dataset.snapshot_download", download)
    assert download_set("lerobot/pusht") == tmp_path
    with pytest.raises(FileNotFoundError, match=r"^v3\.0 is not in the cache"):
        download_set("lerobot/pusht", revision="v3.0")
