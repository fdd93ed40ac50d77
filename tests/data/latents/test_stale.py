"""Whatever latents depend on, a change of it is a miss; writers may die; damage is named."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from toy_model import randomised

from moteur.data import RobotDataset
from moteur.data.latents import LatentCache, LatentDataset, shards, tokenizer_alone, write, write_latents
from moteur.recipes import InternVLAA1
from moteur.tokenizers import save_weights

from .conftest import Recorded

TESTS = Path(__file__).parents[2]


def opened(folder: Path, dataset: RobotDataset, model: InternVLAA1, **options: torch.dtype) -> LatentCache:
    assert model.foresight is not None
    return LatentCache(folder, dataset, model.foresight, model.config, progress=False, **options)


def written(folder: Path, dataset: RobotDataset, model: InternVLAA1) -> LatentCache:
    assert model.foresight is not None
    return write_latents(folder, dataset, model.foresight, model.config, progress=False)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """One episode a shard."""
    monkeypatch.setattr(shards, "_FRAMES", 10)


def keys(cache: LatentCache) -> set[str]:
    return {shard.key for shard in cache.shards}


def test_any_change_of_an_ingredient_is_a_miss(arm: Recorded, model: InternVLAA1, tmp_path: Path) -> None:
    written(tmp_path, arm.prepared(), model).verify()
    assert not opened(tmp_path, arm.prepared(), model).missing

    nudged = randomised(model.config)
    assert nudged.foresight is not None
    weight = nudged.foresight.encoder.quant_conv.weight
    with torch.no_grad():
        weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(9.0))
    other_eps = randomised(model.config)
    other_eps.config = replace(model.config, cosmos=replace(model.config.cosmos, eps=2e-6))
    changed = {
        "one bit of one weight": opened(tmp_path, arm.prepared(), nudged),
        "an epsilon": opened(tmp_path, arm.prepared(), other_eps),
        "the precision computed in": opened(tmp_path, arm.prepared(), randomised(model.config).bfloat16()),
        "the dtype": opened(tmp_path, arm.prepared(), model, dtype=torch.float16),
        "rounding of frames to bytes": opened(tmp_path, arm.prepared(images="float32"), model),
        "the cameras": opened(
            tmp_path, Recorded(arm.root, replace(arm.robot, cameras=("head", None, None))).prepared(), model
        ),
    }
    for what, cache in changed.items():
        assert cache.missing == cache.shards, what
        with pytest.raises(FileNotFoundError, match=r"no latents of 3 episodes of .* \(the first is 0\)"):
            cache.verify()


@pytest.mark.usefixtures("small_shards")
def test_one_changed_byte_of_one_video_makes_its_episode_a_miss_and_leaves_the_others(
    record: Callable[[Path, int], Recorded], model: InternVLAA1, tmp_path: Path
) -> None:
    recorded = record(tmp_path / "set", 3)
    before = written(tmp_path / "latents", recorded.prepared(), model)
    assert len(before.shards) == 3
    video = sorted((recorded.root / "videos" / "wrist").rglob("*.mp4"))[1]
    status, content = video.stat(), bytearray(video.read_bytes())
    content[-1] ^= 1
    video.write_bytes(content)
    os.utime(video, ns=(status.st_atime_ns, status.st_mtime_ns))  # neither size nor time tells
    after = opened(tmp_path / "latents", recorded.prepared(), model)
    assert [shard.episodes for shard in after.missing] == [(1,)]
    with pytest.raises(FileNotFoundError, match="no latents of 1 episodes"):
        LatentDataset(recorded.prepared(), after)


@pytest.mark.usefixtures("small_shards")
def test_a_copy_of_the_set_and_a_part_of_it_find_the_same_latents(
    record: Callable[[Path, int], Recorded], model: InternVLAA1, tmp_path: Path
) -> None:
    recorded = record(tmp_path / "set", 4)
    whole = written(tmp_path / "latents", recorded.prepared(), model)
    recorded.root.rename(tmp_path / "elsewhere")
    moved = Recorded(tmp_path / "elsewhere", recorded.robot).prepared()
    assert keys(opened(tmp_path / "latents", moved, model)) == keys(whole)
    part = RobotDataset(tmp_path / "elsewhere", moved.preparation, episodes=[2])
    assert keys(opened(tmp_path / "latents", part, model)) == {whole.shards[2].key}
    assert torch.equal(
        LatentDataset(part, opened(tmp_path / "latents", part, model))[0]["latents"],
        LatentDataset(moved, opened(tmp_path / "latents", moved, model))[11]["latents"],
    )


def test_code_that_computes_something_else_is_noticed_by_the_probe(
    arm: Recorded, model: InternVLAA1, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert model.foresight is not None
    written(tmp_path, arm.prepared(), model)
    encode = model.foresight.encode
    monkeypatch.setattr(model.foresight, "encode", lambda frames: encode(frames.roll(1, dims=-1)))
    with pytest.raises(ValueError, match="its probe differs by more than rounding from what this code computes"):
        opened(tmp_path, arm.prepared(), model).verify()
    monkeypatch.setattr(model.foresight, "encode", lambda frames: encode(frames) * (1 + 1e-4))
    opened(tmp_path, arm.prepared(), model).verify()


WRITER = """
import os, signal, sys
from pathlib import Path
import torch
from recipes.latents.conftest import Recorded
from toy_model import randomised, toy_config
from dataclasses import replace
from moteur.data.latents import shards, write, write_latents
from moteur.data import Robot

shards._FRAMES = 10
count, wanted, save = 0, int(sys.argv[4]), write.save_file

def cut(tensors, path, metadata):
    global count
    count += 1
    save(tensors, path, metadata)
    if count == wanted:
        with open(path, "r+b") as file:
            file.truncate(os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

write.save_file = cut
recorded = Recorded(Path(sys.argv[1]), Robot.load(Path(sys.argv[2])))
model = randomised(replace(toy_config(), state_dim=5))
write_latents(sys.argv[3], recorded.prepared(), model.foresight, model.config, progress=False)
"""


@pytest.mark.usefixtures("small_shards")
def test_a_writer_killed_in_the_middle_of_a_shard_leaves_whole_ones_and_the_next_one_goes_on(
    arm: Recorded, model: InternVLAA1, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm.robot.save(tmp_path / "arm.json")
    arguments = [str(arm.root), str(tmp_path / "arm.json"), str(tmp_path / "latents"), "2"]
    child = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-c", WRITER, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert child.returncode == -signal.SIGKILL
    left = opened(tmp_path / "latents", arm.prepared(), model)
    assert [shard.episodes for shard in left.missing] == [(1,), (2,)]
    assert len(list((tmp_path / "latents").glob("*.part"))) == 1
    saved: list[Path] = []
    monkeypatch.setattr(
        write, "save_file", lambda tensors, path, metadata: saved.append(path) or save_file(tensors, path, metadata)
    )
    written(tmp_path / "latents", arm.prepared(), model).verify()
    assert len(saved) == 2


def test_ranks_share_the_work_and_leave_a_complete_cache(
    arm: Recorded, model: InternVLAA1, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_FRAMES", 10)
    assert model.foresight is not None
    for rank, count in ((0, 2), (1, 3)):
        write_latents(tmp_path, arm.prepared(), model.foresight, model.config, rank=rank, ranks=2, progress=False)
        assert len(list(tmp_path.glob("*.safetensors"))) == count
    opened(tmp_path, arm.prepared(), model).verify()
    with pytest.raises(ValueError, match=r"rank: expected a number in \[0, 2\), got 2"):
        write_latents(tmp_path, arm.prepared(), model.foresight, model.config, rank=2, ranks=2)


def test_a_truncated_shard_is_named(arm: Recorded, model: InternVLAA1, tmp_path: Path) -> None:
    cache = written(tmp_path, arm.prepared(), model)
    path = cache.path(cache.shards[0])
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=rf"{path.name}: damaged .* delete it and write the latents again"):
        opened(tmp_path, arm.prepared(), model).verify()
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{path.name}: missing"):
        opened(tmp_path, arm.prepared(), model).read("head", 0, [0])


def test_a_missing_video_and_frames_of_another_size_are_named(
    record: Callable[[Path, int], Recorded], model: InternVLAA1, tmp_path: Path
) -> None:
    recorded = record(tmp_path / "set", 5)
    with pytest.raises(ValueError, match=r"preparation\.size: expected the model's 32, got 48"):
        opened(tmp_path, recorded.prepared(size=48), model)
    dataset = recorded.prepared()
    video = min((recorded.root / "videos" / "head").rglob("*.mp4"))
    video.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{video.name}: missing"):
        opened(tmp_path, dataset, model)


def test_a_shard_says_what_it_was_made_from(arm: Recorded, model: InternVLAA1, tmp_path: Path) -> None:
    cache = written(tmp_path, arm.prepared(), model)
    with safe_open(cache.path(cache.shards[0]), "pt") as file:
        ingredients = json.loads(file.metadata()["ingredients"])
        assert set(file.keys()) == {"probe", *(f"{place}/{name}" for place in range(3) for name in ("head", "wrist"))}
    assert ingredients == json.loads(json.dumps(cache.shards[0].ingredients))
    assert ingredients["dtype"] == "torch.float32"
    assert ingredients["frames"] == {"size": 32, "images": "uint8"}


def test_the_command_writes_what_the_function_writes(
    arm: Recorded, model: InternVLAA1, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert model.foresight is not None
    arm.robot.save(tmp_path / "arm.yaml")
    save_weights(tmp_path / "cosmos.safetensors", encoder=model.foresight.encoder)
    monkeypatch.setattr(write, "preset", lambda name: {"tiny": model.config}[name])
    command = ["--preset", "tiny", "--robot", str(tmp_path / "arm.yaml"), "--out", str(tmp_path / "by_command")]
    write.main([*command, "--cosmos", str(tmp_path / "cosmos.safetensors"), str(arm.root)])
    cache = written(tmp_path / "by_function", arm.prepared(), model)
    names = [{path.name for path in (tmp_path / by).iterdir()} for by in ("by_command", "by_function")]
    assert names[0] == names[1]
    for name in names[0]:
        ours, theirs = (load_file(tmp_path / by / name) for by in ("by_command", "by_function"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[tensor], theirs[tensor]) for tensor in theirs)
    assert len(names[0]) == len(cache.shards)
    with pytest.raises(ValueError, match="revision: only the Hub has revisions"):
        write.main(
            [*command, "--cosmos", str(tmp_path / "cosmos.safetensors"), "--cosmos-revision", "a1", str(arm.root)]
        )


def test_a_model_without_foresight_has_no_tokenizer(model: InternVLAA1) -> None:
    with pytest.raises(ValueError, match=r"config\.gen: expected sizes of a generation expert, got None"):
        tokenizer_alone(replace(model.config, gen=None))
