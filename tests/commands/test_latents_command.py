"""`moteur latents`: what it writes is found by a cache that the whole model opens."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from typer.testing import Result

from moteur.data import LatentCache
from moteur.recipes import InternVLAA1, load_transforms


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
    assert stored.stderr.startswith("error: --store: expected a number format, such as bfloat16, got")
    assert moteur("latents", "checkpoints", "sets/cup", *robot).stderr.startswith("error: source: expected a folder")
    ranks = moteur("latents", "checkpoint", "sets/cup", *robot, "--rank", "2", "--ranks", "2")
    assert "rank: expected a number in [0, 2), got 2" in ranks.stderr
    assert not (home / "latents").exists()


def test_other_files_in_a_folder_of_latents_do_not_hide_them(home: Path, moteur: Callable[..., Result]) -> None:
    moteur("latents", "checkpoint", "sets/cup", "--robot", "robot.yaml", "--out", "latents")
    save_file({"x": torch.zeros(1)}, home / "latents" / "other.safetensors")
    assert moteur("info", "latents").stdout.startswith("Cached latents: latents, 1 file, ")
