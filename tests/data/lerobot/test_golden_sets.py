"""What LeRobot's own reader returned, field by field."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moteur.data import LeRobotSet

CAMERAS = [f"observation.images.cam_{place}" for place in ("high", "left_wrist", "right_wrist")]
WINDOWS = dict.fromkeys(CAMERAS, (-15, 0, 15)) | {"action": range(50)}


@pytest.mark.parametrize(("folder", "offsets"), [("lerobot_v30", WINDOWS), ("lerobot_v21", {})])
def test_every_field_equals_what_lerobot_returned(golden: Path, folder: str, offsets: dict[str, range]) -> None:
    expected = load_file(golden / folder / "expected.safetensors")
    dataset = LeRobotSet(golden / folder / "dataset", offsets=offsets)
    items = {index: dataset[index] for index in sorted({int(name.split(".")[0]) for name in expected})}
    for name, value in expected.items():
        index, key = name.split(".", 1)
        found = items[int(index)][key]
        assert found.dtype == value.dtype, name
        assert torch.equal(found, value), name


def test_no_field_is_returned_that_lerobot_does_not_know(golden: Path) -> None:
    expected = load_file(golden / "lerobot_v30/expected.safetensors")
    dataset = LeRobotSet(golden / "lerobot_v30/dataset", offsets=WINDOWS)
    assert set(dataset[0]) - {"task"} == {name.split(".", 1)[1] for name in expected if name.startswith("0.")}


@pytest.mark.parametrize(("folder", "tasks"), [("lerobot_v30", "put block {} on the belt"), ("lerobot_v21", "task {}")])
def test_the_task_text_belongs_to_the_task_index(golden: Path, folder: str, tasks: str) -> None:
    dataset = LeRobotSet(golden / folder / "dataset", keys=())
    for episode in range(3):
        item = dataset[int(dataset.index.start[episode])]
        assert item["task"] == tasks.format(int(item["task_index"])) == tasks.format(episode % 2)
