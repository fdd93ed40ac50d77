"""Statistics beside released π0 and π0.5: LeRobot's processors and openpi's assets become ours, and go back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from toy_pi0 import random_pi0, toy_pi0

from moteur.data import FieldStatistics, Robot, RobotTransform, Source
from moteur.recipes import (
    Pi0,
    dump_transforms,
    export_released,
    inspect_checkpoint,
    load_transforms,
    openpi_statistics,
)
from moteur.recipes.checkpoints.keymap import released_tensors

NAMES = ("min", "max", "mean", "std", "q01", "q10", "q50", "q90", "q99")
STATE, ACTION = "observation.state", "action"
NORMALIZER = "policy_preprocessor_step_2_normalizer_processor.safetensors"
UNNORMALIZER = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
PROCESSORS = ("policy_preprocessor.json", "policy_postprocessor.json", NORMALIZER, UNNORMALIZER)
Write = Callable[..., Path]


def lists(dims: int, seed: int) -> dict[str, Tensor]:
    """Statistics in order: no minimum above a maximum."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(7, dims, generator=draw).sort(dim=0).values
    low, q01, q10, q50, q90, q99, high = rows
    return {
        "min": low,
        "max": high,
        "q01": q01,
        "q10": q10,
        "q50": q50,
        "q90": q90,
        "q99": q99,
        "mean": torch.randn(dims, generator=draw),
        "std": torch.rand(dims, generator=draw),
        "count": torch.tensor([1000.0]),
    }


def flat(column: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{column}.{name}": tensor for name, tensor in values.items()}


@pytest.fixture(scope="module")
def model() -> Pi0:
    return random_pi0(toy_pi0("pi05"), dtype=torch.float32)


@pytest.fixture
def lerobot(model: Pi0, tmp_path: Path) -> Write:
    """Writes a checkpoint as LeRobot saves it."""

    def write(
        *,
        mode: str = "QUANTILES",
        relative: dict[str, Any] | None = None,
        renamed: dict[str, str] | None = None,
        undone: dict[str, Tensor] | None = None,
        **changes: Any,  # noqa: ANN401
    ) -> Path:
        folder = tmp_path / "lerobot"
        folder.mkdir(exist_ok=True)
        tensors = {name: value.clone() for name, value in released_tensors(model.state_dict(), model.config).items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        cameras = ("base_0_rgb", "left_wrist_0_rgb", "empty_camera_0")
        shown = {f"observation.images.{name}": {"type": "VISUAL", "shape": [3, 21, 21]} for name in cameras}
        config = {
            "type": "pi05",
            "chunk_size": 5,
            "max_state_dim": 4,
            "max_action_dim": 3,
            "tokenizer_max_length": 6,
            "image_resolution": [21, 21],
            "input_features": {**shown, STATE: {"type": "STATE", "shape": [4]}},
            "output_features": {ACTION: {"type": "ACTION", "shape": [3]}},
            **changes,
        }
        (folder / "config.json").write_text(json.dumps(config))
        normalisation = {
            "eps": 1e-8,
            "features": {STATE: {"type": "STATE", "shape": [4]}},
            "norm_map": {"VISUAL": "IDENTITY", "STATE": mode, "ACTION": mode},
        }
        steps = [
            {"registry_name": "rename_observations_processor", "config": {"rename_map": renamed or {}}},
            {"registry_name": "relative_actions_processor", "config": relative or {"enabled": False}},
            {"registry_name": "normalizer_processor", "config": normalisation, "state_file": NORMALIZER},
            {"class": "somewhere.Step", "config": {"novel": 1}},
        ]
        (folder / PROCESSORS[0]).write_text(json.dumps({"name": "policy_preprocessor", "steps": steps}))
        back = [{"registry_name": "unnormalizer_processor", "config": normalisation, "state_file": UNNORMALIZER}]
        (folder / PROCESSORS[1]).write_text(json.dumps({"name": "policy_postprocessor", "steps": back}))
        pictures = {"observation.images.base_0_rgb.mean": torch.rand(3, 1, 1)}
        action = flat(ACTION, lists(3, 2))
        save_file(flat(STATE, lists(4, 1)) | action | pictures, folder / NORMALIZER)
        save_file(undone or action, folder / UNNORMALIZER)
        return folder

    return write


def only(model: Pi0) -> RobotTransform:
    (transform,) = load_transforms(model.statistics).values()
    return transform


def test_lerobots_processors_become_the_transform_that_computes_the_same(model: Pi0, lerobot: Write) -> None:
    loaded = Pi0.from_pretrained(lerobot(), config=model.config)
    transform = only(loaded)
    assert (transform.robot.name, transform.mode, transform.convention) == ("lerobot", "quantiles", "lerobot")
    assert transform.robot.cameras == ("observation.images.base_0_rgb", "observation.images.left_wrist_0_rgb", None)
    assert (transform.robot.state_dim, transform.robot.action_dim, transform.robot.relative) == (4, 3, ())
    assert (transform.window.offsets, transform.window.chunk, transform.images) == ((0,), 5, "float32")
    for found, values in ((transform.statistics.state, lists(4, 1)), (transform.statistics.action, lists(3, 2))):
        assert found is not None
        assert found.count == 1000
        assert {name: getattr(found, name) for name in NAMES} == {
            name: tuple(values[name].double().tolist()) for name in NAMES
        }
    state, chunk = torch.randn(4, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    low, high = (lists(4, 1)[name].double() for name in ("q01", "q99"))
    expected = 2 * (state - low) / (high - low) - 1
    torch.testing.assert_close(transform.state(state), expected.float(), rtol=1e-6, atol=1e-6)
    low, high = (lists(3, 2)[name].double() for name in ("q01", "q99"))
    torch.testing.assert_close(transform.commands(chunk, state), (chunk + 1) / 2 * (high - low) + low)


def test_names_modes_and_relative_joints_of_the_processors_are_kept(model: Pi0, lerobot: Write) -> None:
    folder = lerobot(
        mode="MEAN_STD",
        relative={"enabled": True, "exclude_joints": ["grip"], "action_names": ["Elbow", "Gripper", "wrist"]},
        renamed={"camera.top": "observation.images.base_0_rgb", "joints": STATE},
    )
    transform = only(Pi0.from_pretrained(folder, config=model.config))
    assert transform.robot.cameras == ("camera.top", "observation.images.left_wrist_0_rgb", None)
    assert transform.robot.state == (Source("joints", 4),)
    assert transform.robot.relative == (1, -1, 1)
    assert transform.robot.joints == ("Elbow", "Gripper", "wrist")
    assert transform.mode == "mean_std"
    state, chunk = torch.randn(4, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    mean, std = (lists(3, 2)[name].double() for name in ("mean", "std"))
    expected = chunk * std + mean + torch.stack([state[0], torch.zeros_like(state[0]), state[2]])
    torch.testing.assert_close(transform.commands(chunk, state), expected)
    assert only(Pi0.from_pretrained(lerobot(relative={"enabled": True}), config=model.config)).robot.relative == (3,)


def test_a_summary_of_the_folder_has_the_statistics_too(model: Pi0, lerobot: Write) -> None:
    summary = inspect_checkpoint(lerobot(image_resolution=[224, 224]))
    assert (summary.model, summary.released, summary.usual_tokenizer) == ("π0.5", True, "google/paligemma-3b-pt-224")
    loaded = Pi0.from_pretrained(lerobot(), config=model.config)
    found, expected = load_transforms(summary.statistics)["lerobot"], only(loaded)
    assert (found.robot, found.statistics, found.size) == (expected.robot, expected.statistics, 224)


def test_statistics_that_mean_something_else_are_noted_and_damage_is_an_error(model: Pi0, lerobot: Write) -> None:
    for change, note in (
        ({"mode": "QUANTILE10"}, r"['QUANTILE10'] with eps 1e-08 is no normalisation known here"),
        ({"undone": flat(ACTION, lists(3, 3))}, "policy_postprocessor.json holds other ones of the action"),
        ({"input_features": {}}, "config.json names no camera"),
    ):
        loaded = Pi0.from_pretrained(lerobot(**change), config=model.config)
        assert not loaded.statistics
        assert loaded.loading_report is not None
        assert loaded.loading_report.notes[-1] == f"statistics in policy_preprocessor.json were not taken over: {note}"
    folder = lerobot()
    (folder / NORMALIZER).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"normalizer_processor.safetensors: expected a whole safetensors file"):
        Pi0.from_pretrained(folder, config=model.config)
    (folder / NORMALIZER).unlink()
    with pytest.raises(ValueError, match="expected the statistics of normalizer_processor, got no such file"):
        Pi0.from_pretrained(folder, config=model.config)
    (folder / PROCESSORS[0]).write_text('{"steps": 3}')
    with pytest.raises(ValueError, match=r"policy_preprocessor.json: steps: expected a list, got 3"):
        Pi0.from_pretrained(folder, config=model.config)


def test_a_base_model_without_statistics_loads_and_its_processors_are_exported(
    model: Pi0, lerobot: Write, tmp_path: Path
) -> None:
    folder = lerobot()
    for name in PROCESSORS[:2]:
        pipeline = json.loads((folder / name).read_text())
        for step in pipeline["steps"]:
            step.pop("state_file", None)
        (folder / name).write_text(json.dumps(pipeline))
    for name in PROCESSORS[2:]:
        (folder / name).unlink()
    loaded = Pi0.from_pretrained(folder, config=model.config)
    assert not loaded.statistics
    export_released(loaded, tmp_path / "back", original=folder)
    written = {path.name for path in (tmp_path / "back").iterdir()}
    assert written == {"config.json", "model.safetensors", *PROCESSORS[:2]}


def test_processors_come_back_byte_for_byte_and_with_the_numbers_of_a_trained_robot(
    model: Pi0, lerobot: Write, tmp_path: Path
) -> None:
    folder = lerobot()
    loaded = Pi0.from_pretrained(folder, config=model.config)
    export_released(loaded, tmp_path / "back", original=folder)
    for name in (*PROCESSORS, "config.json", "model.safetensors"):
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes()
    with torch.no_grad():
        loaded.action.action_in.bias.add_(1)
    with pytest.raises(ValueError, match=r"the weights are not the original's, but the statistics are, of .'lerobot'"):
        export_released(loaded, tmp_path / "refused", original=folder)
    before = only(loaded)
    other = {name: tuple((lists(3, 9)[name] + 4).double().tolist()) for name in NAMES}
    action = FieldStatistics(7, **other)
    robot, fields = before.robot, before.statistics
    trained = model.config.transform(
        robot,
        type(fields)(fields.robot, fields.chunk, fields.state, action),
        mode="quantiles",
        convention="lerobot",
        images="float32",
    )
    loaded.statistics = dump_transforms(trained)
    export_released(loaded, tmp_path / "trained", original=folder)
    again = only(Pi0.from_pretrained(tmp_path / "trained", config=model.config))
    assert again.statistics.state == fields.state
    assert again.statistics.action is not None
    assert {name: getattr(again.statistics.action, name) for name in NAMES} == other
    kept = load_file(tmp_path / "trained" / NORMALIZER)["observation.images.base_0_rgb.mean"]
    assert torch.equal(kept, load_file(folder / NORMALIZER)["observation.images.base_0_rgb.mean"])
    loaded.statistics = dump_transforms(
        model.config.transform(robot, trained.statistics, mode="mean_std", convention="lerobot")
    )
    with pytest.raises(ValueError, match="robots: expected the robot of the original with other statistics"):
        export_released(loaded, tmp_path / "refused", original=folder)


# openpi


def asset(dims: int, *, quantiles: bool = True) -> dict[str, Any]:
    def group(seed: int) -> dict[str, Any]:
        values = {name: lists(dims, seed)[name].tolist() for name in ("mean", "std", "q01", "q99")}
        return values if quantiles else values | {"q01": None, "q99": None}

    return {"norm_stats": {"state": group(1), "actions": group(2)}}


@pytest.fixture
def arm() -> Robot:
    return Robot("arm", (Source("state", 4),), (Source("action", 3),), ("front",), relative=(2, -1))


def test_openpis_assets_become_statistics_of_a_robot(arm: Robot, tmp_path: Path) -> None:
    for name, dims in (("trossen", 32), ("physical-intelligence/libero", 4)):
        (tmp_path / "assets" / name).mkdir(parents=True)
        (tmp_path / "assets" / name / "norm_stats.json").write_text(json.dumps(asset(dims)))
    with pytest.raises(ValueError, match=r"asset: expected one of \['physical-intelligence/libero', 'trossen'\]"):
        openpi_statistics(tmp_path, arm, chunk=5)
    found = openpi_statistics(tmp_path, arm, chunk=5, asset="trossen")
    assert (found.robot, found.chunk) == ("arm", 5)
    for field, dims, seed in ((found.state, 4, 1), (found.action, 3, 2)):
        assert field is not None
        expected = {name: tuple(asset(32)["norm_stats"][key][name][:dims]) for key, name in pairs(seed)}
        assert {name: getattr(field, name) for name in ("mean", "std", "q01", "q99")} == expected
        assert (field.min, field.max, field.q50, field.entries) == (field.q01, field.q99, None, None)
    path = tmp_path / "assets/physical-intelligence/libero/norm_stats.json"
    assert openpi_statistics(path, arm, chunk=5).state.mean == tuple(asset(4)["norm_stats"]["state"]["mean"])
    RobotTransform(arm, found, mode="quantiles", convention="openpi")


def pairs(seed: int) -> list[tuple[str, str]]:
    return [({1: "state", 2: "actions"}[seed], name) for name in ("mean", "std", "q01", "q99")]


def test_three_deviations_stand_in_where_there_are_no_quantiles(arm: Robot, tmp_path: Path) -> None:
    path = tmp_path / "norm_stats.json"
    path.write_text(json.dumps(asset(4, quantiles=False)))
    state = openpi_statistics(path, arm, chunk=5).state
    assert (state.q01, state.q99) == (None, None)
    np.testing.assert_allclose(state.min, np.array(state.mean) - 3 * np.array(state.std), rtol=1e-14)
    np.testing.assert_allclose(state.max, np.array(state.mean) + 3 * np.array(state.std), rtol=1e-14)
    path.write_text(json.dumps(asset(2)))
    with pytest.raises(ValueError, match=r"norm_stats.json: mean: expected 4 numbers, got 2"):
        openpi_statistics(path, arm, chunk=5)
    path.write_text('{"norm_stats": {"state": {"mean": "x"}}}')
    with pytest.raises(ValueError, match=r"norm_stats.json: norm_stats.state.mean: expected a list, got 'x'"):
        openpi_statistics(path, arm, chunk=5)


def test_openpis_checkpoint_names_its_assets_and_takes_them_along(model: Pi0, tmp_path: Path) -> None:
    folder = tmp_path / "openpi"
    for name in ("trossen", "droid"):
        (folder / "assets" / name).mkdir(parents=True)
        (folder / "assets" / name / "norm_stats.json").write_text(json.dumps(asset(4)))
    tensors = {name: value.clone() for name, value in released_tensors(model.state_dict(), model.config).items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"action_dim": 3, "action_horizon": 5, "precision": "float32"}))
    loaded = Pi0.from_pretrained(folder, config=model.config)
    assert not loaded.statistics
    assert loaded.loading_report is not None
    reads = "openpi_statistics reads them for a robot's schema"
    assert [note for note in loaded.loading_report.notes if reads in note] == [
        f"statistics of {name!r} are in assets/{name}/norm_stats.json: {reads}" for name in ("droid", "trossen")
    ]
    export_released(loaded, tmp_path / "back", original=folder)
    for name in ("assets/droid/norm_stats.json", "assets/trossen/norm_stats.json", "model.safetensors"):
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes()
    with torch.no_grad():
        loaded.action.action_in.bias.add_(1)
    with pytest.raises(ValueError, match=r"but the statistics are, of \['droid', 'trossen'\]"):
        export_released(loaded, tmp_path / "refused", original=folder)
    with pytest.raises(ValueError, match=r"robots: expected some of model.statistics, \['droid', 'trossen'\], got"):
        export_released(loaded, tmp_path / "refused", original=folder, robots=["aloha"])
    export_released(loaded, tmp_path / "one", original=folder, robots=["droid"])
    assert [path.name for path in (tmp_path / "one/assets").iterdir()] == ["droid"]
