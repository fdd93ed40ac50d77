"""`moteur latents`: what it writes is found by a cache that the whole model opens."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from typer.testing import Result

from moteur.data import FieldStatistics, LatentCache, LeRobotSet, Robot, RobotStatistics, as_unit_floats
from moteur.recipes import InternVLAA1, load_foresight, load_transforms, preset
from moteur.tokenizers import CosmosEncoder, save_weights

NOTHING = FieldStatistics(0, (), (), (), ())


def test_latents_are_those_of_the_whole_model(home: Path, moteur: Callable[..., Result]) -> None:
    found = moteur("latents", "checkpoint", "sets/cup", "--robot", "robot.yaml", "--out", "latents")
    assert found.stdout == "wrote latents: latents of sets/cup in float32, 1 file\n"
    model = InternVLAA1.from_pretrained(home / "checkpoint")
    assert model.foresight is not None
    transform = load_transforms(model.statistics)["toy"]
    encode, digest = model.foresight.encode, model.foresight.digest()
    cache = LatentCache("latents", "sets/cup", transform, encode=encode, digest=digest, progress=False)
    assert cache.missing == []
    cache.verify()
    shown = moteur("info", "latents").stdout.splitlines()
    assert [line.split() for line in shown[2:]] == [
        [digest[:12], "float32", "4", "×", "4", "×", "4", camera, "30"] for camera in cache.cameras
    ]


def test_formats_can_be_chosen_and_a_second_run_writes_nothing(home: Path, moteur: Callable[..., Result]) -> None:
    options = ("--robot", "robot.yaml", "--out", "latents", "--dtype", "bfloat16", "--store", "float16")
    assert moteur("latents", "checkpoint", "sets/cup", *options).exit_code == 0
    (path,) = (home / "latents").iterdir()
    before = path.stat().st_mtime_ns
    assert load_file(path)["0/observation.images.front"].dtype == torch.float16
    assert moteur("latents", "checkpoint", "sets/cup", *options).exit_code == 0
    assert path.stat().st_mtime_ns == before


def test_what_does_not_fit_is_refused(home: Path, moteur: Callable[..., Result]) -> None:
    robot = ("--robot", "robot.yaml", "--out", "latents")
    stored = moteur("latents", "checkpoint", "sets/cup", *robot, "--store", "half precision")
    assert stored.stderr.startswith("error: dtype: expected one of float32, float16, bfloat16")
    assert moteur("latents", "checkpoints", "sets/cup", *robot).stderr.startswith("error: source: expected a folder")
    ranks = moteur("latents", "checkpoint", "sets/cup", *robot, "--rank", "2", "--ranks", "2")
    assert "rank: expected a number in [0, 2), got 2" in ranks.stderr
    assert not (home / "latents").exists()


def test_other_files_in_a_folder_of_latents_do_not_hide_them(home: Path, moteur: Callable[..., Result]) -> None:
    moteur("latents", "checkpoint", "sets/cup", "--robot", "robot.yaml", "--out", "latents")
    save_file({"x": torch.zeros(1)}, home / "latents" / "other.safetensors")
    assert moteur("info", "latents").stdout.startswith("Cached latents: latents, 1 file, ")


def test_before_there_is_a_checkpoint_a_preset_and_the_tokenizer_are_enough(
    home: Path, moteur: Callable[..., Result]
) -> None:
    config = preset("tiny")
    torch.manual_seed(0)
    save_weights(home / "cosmos.safetensors", encoder=CosmosEncoder(config.cosmos))
    options = ("--preset", "tiny", "--robot", "robot.yaml", "--out", "latents")
    found = moteur("latents", "sets/cup", *options, "--cosmos", "cosmos.safetensors")
    assert found.stdout == "wrote latents: latents of sets/cup in float32, 1 file\n", found.output
    _, foresight = load_foresight(None, config=config, cosmos=home / "cosmos.safetensors")
    robot = Robot.load(home / "robot.yaml")
    watching = Robot(robot.name, (), (), robot.cameras)
    transform = config.transform(watching, RobotStatistics(robot.name, config.chunk, NOTHING, None))
    (path,) = (home / "latents").iterdir()
    assert foresight.digest()[:12] in moteur("info", "latents").stdout
    kept, dataset = load_file(path), LeRobotSet(home / "sets/cup", keys=["observation.images.front"])
    picture = transform.resize(dataset[0]["observation.images.front"][None])
    encoded = foresight.encode(as_unit_floats(picture))[0]
    torch.testing.assert_close(kept["0/observation.images.front"][0], encoded, rtol=0, atol=1e-5)
    refused = moteur("latents", "sets/cup", *options)
    assert (refused.exit_code, "None with config= and cosmos=" in refused.stderr) == (2, True)


def test_formats_that_lose_the_latents_and_devices_that_are_not_there_are_refused(
    home: Path, moteur: Callable[..., Result]
) -> None:
    for option, value in (("--store", "uint8"), ("--store", "manual_seed"), ("--device", "cuda:77"), ("--device", "x")):
        found = moteur("latents", "checkpoint", "sets/cup", "--robot", "robot.yaml", "--out", "latents", option, value)
        name = "dtype" if option == "--store" else "device"
        assert found.exit_code == 2
        assert f"{name}: expected one" in found.stderr
        assert "Traceback" not in found.output
    assert not (home / "latents").exists()
