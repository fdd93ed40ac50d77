"""Inputs and targets: what is refused at the model's door, by name, and the few things done to both."""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor
from toy_model import random_inputs, toy_config

from moteur.data import as_unit_floats
from moteur.recipes import Inputs, InternVLAA1, Targets
from moteur.recipes.inputs import each_tensor, learned_views, only, real_actions

CONFIG = toy_config()
INPUTS = random_inputs(CONFIG, 2, seed=12)
TARGETS = Targets(actions=torch.zeros(2, 4, 5))
FUTURE = torch.zeros(2, 3, 3, 32, 32)
LATENTS = torch.zeros(2, 3, 2, 4, 4, 4)
NAN = torch.tensor(torch.nan)


def with_value(values: Tensor, place: tuple[int, ...], value: float) -> Tensor:
    changed = values.clone()
    changed[place] = value
    return changed


WRONG_INPUTS = [
    ({"state": torch.zeros(2, 4)}, r"state: expected shape \(2, 3\), got \(2, 4\)"),
    ({"state": torch.zeros(2, 3, dtype=torch.int64)}, "state: expected floats, got torch.int64"),
    ({"state": with_value(INPUTS.state, (1, 2), torch.nan)}, "state: expected finite values, got some that are not"),
    ({"state": with_value(INPUTS.state, (0, 0), torch.inf)}, "state: expected finite values, got some that are not"),
    ({"state": INPUTS.state[:1]}, r"frames: expected shape \(1, 3, 3, 32, 32\), got \(2, 3, 3, 32, 32\)"),
    ({"frames": INPUTS.frames[:, :2]}, r"frames: expected shape \(2, 3, 3, 32, 32\), got \(2, 2, 3, 32, 32\)"),
    ({"frames": INPUTS.frames[..., :24, :]}, r"frames: expected shape \(2, 3, 3, 32, 32\), got \(2, 3, 3, 24, 32\)"),
    ({"frames": INPUTS.frames[:, :, 1:]}, "frames: expected the times t-15 and t, or latents of both, got 1 time"),
    ({"frames": INPUTS.frames[:, :, :0]}, "frames: expected the times t-15 and t, or latents of both, got 0 time"),
    ({"frames": INPUTS.frames[:, :, :0], "latents": LATENTS}, "frames: expected the times t-15 and t, .* got 0 time"),
    ({"frames": INPUTS.frames * 255}, r"frames: expected floats in \[0, 1\], got floats in \[.*, 25\d"),
    ({"frames": INPUTS.frames * NAN}, r"frames: expected floats in \[0, 1\], got floats in \[nan, nan\]"),
    ({"frames": (INPUTS.frames * 255).int()}, r"frames: expected uint8 or floats in \[0, 1\], got torch.int32"),
    ({"instruction": INPUTS.instruction[:1]}, r"instruction: expected shape \(2,\), got \(1,\)"),
    ({"instruction": torch.zeros(2, 6, dtype=torch.long)}, "instruction: expected at most 5 tokens, got 6"),
    ({"attention_mask": INPUTS.attention_mask[:, :4]}, r"attention_mask: expected shape \(2, 5\), got \(2, 4\)"),
    ({"view_valid": INPUTS.view_valid[:, :2]}, r"view_valid: expected shape \(2, 3\), got \(2, 2\)"),
    ({"latents": LATENTS[:, :, :1]}, r"latents: expected shape \(2, 3, 2, 4, 4, 4\), got \(2, 3, 1, 4, 4, 4\)"),
    ({"latents": LATENTS.int()}, "latents: expected floats, got torch.int32"),
]

WRONG_TARGETS = [
    ({"actions": torch.zeros(2, 3, 5)}, r"targets.actions: expected shape \(2, 4, 5\), got \(2, 3, 5\)"),
    ({"actions": torch.zeros(2, 4, 5).int()}, "targets.actions: expected floats, got torch.int32"),
    ({"actions": torch.zeros(2, 4, 5) * NAN}, "targets.actions: expected finite values where they are valid, got some"),
    ({"valid_steps": torch.ones(2, 5).bool()}, r"targets.valid_steps: expected shape \(2, 4\), got \(2, 5\)"),
    ({"valid_dims": torch.ones(5).bool()}, r"targets.valid_dims: expected shape \(2, 5\), got \(5,\)"),
    ({"valid_samples": torch.ones(2, 1).bool()}, r"targets.valid_samples: expected shape \(2,\), got \(2, 1\)"),
    ({"valid_future": torch.ones(2, 2).bool()}, r"targets.valid_future: expected shape \(2, 3\), got \(2, 2\)"),
    ({"future_frames": FUTURE[:, :2]}, r"targets.future_frames: expected shape \(2, 3, 3, 32, 32\), got \(2, 2, "),
    ({"future_frames": FUTURE.int()}, r"targets.future_frames: expected uint8 or floats in \[0, 1\], got torch.int32"),
    ({"future_frames": FUTURE - 1}, r"targets.future_frames: expected floats in \[0, 1\], got floats in \[-1, -1\]"),
    ({"future_latents": FUTURE}, r"targets.future_latents: expected shape \(2, 3, 4, 4, 4\), got \(2, 3, 3, 32, 32\)"),
    ({"future_latents": LATENTS[:, :, 0].int()}, "targets.future_latents: expected floats, got torch.int32"),
    (
        {"future_frames": FUTURE, "future_latents": LATENTS[:, :, 0]},
        "targets: expected future frames or future latents, got both",
    ),
]


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(("change", "message"), WRONG_INPUTS)
def test_inputs_that_do_not_fit_are_named(model: InternVLAA1, change: dict, message: str) -> None:
    wrong = replace(INPUTS, **change)
    for call in (model.act, model.imagine, lambda inputs: model(inputs, TARGETS)):
        with pytest.raises(ValueError, match=f"^{message}"):
            call(wrong)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(("change", "message"), WRONG_TARGETS)
def test_targets_that_do_not_fit_are_named(model: InternVLAA1, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        model(INPUTS, replace(TARGETS, **change))


@pytest.mark.usefixtures("without_shape_checks")
def test_noise_that_does_not_fit_is_named(model: InternVLAA1) -> None:
    for call in (model.act, lambda inputs, noise: model(inputs, TARGETS, noise=noise)):
        with pytest.raises(ValueError, match=r"noise: expected shape \(2, 4, 5\), got \(2, 4, 6\)"):
            call(INPUTS, noise=torch.zeros(2, 4, 6))
        with pytest.raises(ValueError, match=r"noise: expected floats, got torch\.int64"):
            call(INPUTS, noise=torch.zeros(2, 4, 5, dtype=torch.int64))


def test_every_field_of_inputs_and_targets_has_a_refusal() -> None:
    refused = {name for change, _ in [*WRONG_INPUTS, *WRONG_TARGETS] for name in change}
    assert refused == {field.name for kind in (Inputs, Targets) for field in fields(kind)}


def test_what_fits_passes() -> None:
    INPUTS.check(CONFIG)
    replace(INPUTS, frames=(INPUTS.frames * 255).to(torch.uint8)).check(CONFIG)
    replace(INPUTS, frames=INPUTS.frames.bfloat16()).check(CONFIG)
    replace(INPUTS, view_valid=None, attention_mask=None).check(CONFIG)
    replace(INPUTS, instruction=INPUTS.instruction[:, :2], attention_mask=None).check(CONFIG)
    present = replace(INPUTS, frames=INPUTS.frames[:, :, 1:])
    present.check(CONFIG, known_times=1)
    present.check(CONFIG.without_foresight())
    replace(present, latents=LATENTS).check(CONFIG)
    replace(TARGETS, future_frames=FUTURE.to(torch.uint8)).check(INPUTS, CONFIG)


def test_values_behind_a_mask_are_not_looked_at() -> None:
    seen = torch.tensor([[True, False, True], [True, True, True]])
    dirty = replace(INPUTS, frames=with_value(INPUTS.frames, (0, 1), torch.nan), view_valid=seen)
    dirty.check(CONFIG)
    future = with_value(with_value(FUTURE, (0, 1), torch.nan), (1, 2), 7.0)
    ended = torch.tensor([[True, True, True], [True, True, False]])
    replace(TARGETS, future_frames=future, valid_future=ended).check(dirty, CONFIG)
    with pytest.raises(ValueError, match=r"targets.future_frames: expected floats in \[0, 1\], got floats in \[0, 7\]"):
        replace(TARGETS, future_frames=future).check(dirty, CONFIG)


def test_values_are_not_read_from_a_device() -> None:
    """On the meta device a read would fail: shapes and dtypes are all that is looked at."""
    inputs = replace(INPUTS, frames=INPUTS.frames * 255, state=INPUTS.state * NAN).to("meta")
    inputs.check(CONFIG)
    replace(TARGETS, actions=TARGETS.actions * NAN, future_frames=FUTURE).to("meta").check(inputs, CONFIG)


@pytest.mark.parametrize(
    ("change", "padding"),
    [
        ({"valid_samples": torch.tensor([True, False])}, (1,)),
        ({"valid_steps": torch.tensor([[True] * 3 + [False]] * 2)}, (slice(None), 3)),
        ({"valid_dims": torch.tensor([[True] * 4 + [False]] * 2)}, (..., 4)),
    ],
)
def test_padding_of_actions_becomes_zero_where_it_is_not_finite(change: dict, padding: tuple) -> None:
    actions = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    for value in (torch.nan, torch.inf):
        targets = Targets(actions=with_value(actions, padding, value), **change)
        assert torch.equal(real_actions(targets), with_value(actions, padding, 0.0))
        targets.check(INPUTS, CONFIG)
    assert torch.equal(real_actions(Targets(actions=actions, **change)), actions)


def test_foresight_is_learned_where_the_camera_and_its_future_exist() -> None:
    seen = torch.tensor([[True, False, True], [True, True, True]])
    ended = torch.tensor([[True, True, False], [True, True, True]])
    for views, future in [(None, None), (seen, None), (None, ended), (seen, ended)]:
        found = learned_views(replace(TARGETS, valid_future=future), replace(INPUTS, view_valid=views))
        for sample in range(2):
            for view in range(3):
                expected = (views is None or views[sample, view]) and (future is None or future[sample, view])
                assert found[sample, view] == bool(expected)


def test_every_tensor_moves_and_nothing_else_changes() -> None:
    full = replace(INPUTS, latents=LATENTS)
    there = full.to("meta")
    assert all(value.is_meta for value in vars(there).values())
    assert {name: value.shape for name, value in vars(there).items()} == {
        name: value.shape for name, value in vars(full).items()
    }
    assert TARGETS.to("meta").valid_steps is None
    doubled = each_tensor(full, lambda value: value + value)
    assert torch.equal(doubled.instruction, 2 * full.instruction)


def test_bytes_become_floats_by_255_and_floats_keep_their_values() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    exact = torch.arange(256, dtype=torch.float64) / 255
    assert torch.equal(as_unit_floats(levels)[0, 0].flatten(), exact.float())
    for dtype in (torch.float16, torch.float32, torch.float64):
        values = exact.view(1, 16, 16).expand(3, 16, 16).to(dtype)
        assert as_unit_floats(values).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.equal(as_unit_floats(values).to(dtype), values)


def test_only_selects_and_stops_the_gradient_of_the_rest() -> None:
    values = torch.tensor([[1.0, 2.0], [torch.nan, torch.inf]], requires_grad=True)
    kept = only(values, torch.tensor([True, False]))
    assert kept.tolist() == [[1.0, 2.0], [0.0, 0.0]]
    assert torch.autograd.grad(kept.square().sum(), values)[0].tolist() == [[2.0, 4.0], [0.0, 0.0]]
    assert only(values, None) is values
