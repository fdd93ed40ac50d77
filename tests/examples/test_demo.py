"""The demo from end to end, very small: it acts, it writes its report, and it does nothing twice."""

import base64
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "conveyor"))  # the example's files are no package

import checkpoint
import demo
import digests
import pipeline
from pipeline import Job, Run, load
from train import Plan

JOB = Job(
    episodes=2,
    first_seed=100_000,
    held_out=1,
    tokenizer_steps=2,
    policy=Plan(steps=2, batch=2, warmup=1),
    trials=2,
    execute=30,
)


@pytest.fixture(scope="module", autouse=True)
def few() -> Iterator[None]:
    """One episode acted twice and few chunks compared: enough to be told about."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "RACES", 1)
        patch.setattr(pipeline, "COMPARED", 16)
        yield


@pytest.fixture(scope="module")
def folder(few: None, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001 - sizes
    """A finished run that started from nothing."""
    made = tmp_path_factory.mktemp("demo")
    demo.demo(made, JOB, None, progress=False)
    return made


def test_the_report_holds_every_part_in_one_file(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    for words in (
        "Which weights did what",
        "This run started from random weights",
        "untrained (random weights)",
        "trained in this run",
        "95 % interval (Wilson)",
        "nothing moves",
        "Action chunks against the expert",
        "Loss curves",
        "Time and versions",
        "unseen seed 1000000",
    ):
        assert words in page, words
    embedded = r'src="data:image/(\w+);base64,([^"]+)"'
    assert "http" not in re.sub(embedded, "", page)  # nothing is fetched; a picture's letters may spell it
    kinds = re.findall(embedded, page)
    assert len(kinds) == page.count("<img") == page.count("src=")
    pictures = [Image.open(io.BytesIO(base64.b64decode(code))) for _, code in kinds]
    assert [kind for kind, _ in kinds].count("png") == 4
    assert [picture.n_frames > 10 for picture in pictures if picture.format == "GIF"] == [True, True, True]


def test_a_second_run_reuses_what_the_first_one_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("done twice")

    for name in ("collect", "train_tokenizer", "train_policy", "foresight_errors"):
        monkeypatch.setattr(pipeline, name, refuse)
    weights = (folder / "policy" / "model.safetensors").stat().st_mtime_ns
    demo.demo(folder, JOB, None, progress=False)
    assert (folder / "policy" / "model.safetensors").stat().st_mtime_ns == weights
    assert "Taken from an earlier run" in (folder / "report.html").read_text()
    assert not list(folder.glob("*.part"))


def test_a_checkpoint_is_stored_in_half_precision_judged_as_stored_and_recorded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = []
    monkeypatch.setattr(checkpoint, "learn", lambda *_: (folder / "policy", json_losses(folder)))
    monkeypatch.setattr(checkpoint, "judged", lambda *arguments: judged.append(arguments) or {"success": {}})
    target, record = tmp_path / "checkpoint", tmp_path / "record.json"
    checkpoint.make(folder, JOB, target, record, progress=False)
    kept, whole = load(target).state_dict(), load(folder / "policy").state_dict()
    for name, value in whole.items():
        torch.testing.assert_close(kept[name], value.half().float(), rtol=0, atol=0, msg=name)
    found = json.loads(record.read_text())
    assert found["bytes"] == (target / "model.safetensors").stat().st_size
    assert found["weights"] == digests.of_path(target / "model.safetensors")
    assert found["command"] == "make checkpoint"
    assert found["job"]["episodes"] == JOB.episodes
    assert [arguments[3] for arguments in judged] == [folder / "untrained", target]  # as stored, not as in memory


def json_losses(folder: Path) -> dict[str, object]:
    read = {name: json.loads((folder / f"{name}.json").read_text())["result"] for name in ("tokenizer", "policy")}
    return {"tokenizer": read["tokenizer"]} | read["policy"]


def test_a_step_with_other_settings_or_a_missing_file_is_done_again(tmp_path: Path) -> None:
    run, calls, need = Run(tmp_path, progress=False), [], tmp_path / "weights"

    def compute() -> int:
        need.touch()
        calls.append(1)
        return len(calls)

    assert run.once("step", {"size": 1}, compute, need) == 1
    assert run.once("step", {"size": 1}, compute, need) == 1
    assert run.once("step", {"size": 2}, compute, need) == 2
    need.unlink()
    assert run.once("step", {"size": 2}, compute, need) == 3
    assert run.reused == ["step"]


def test_means_of_stretches_are_taken_and_the_rest_is_not_lost() -> None:
    assert checkpoint.means([1.0, 3.0, 5.0, 7.0, 10.0], width=2) == [2.0, 6.0, 10.0]
