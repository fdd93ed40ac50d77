"""What must hold at any size, with any camera missing, whatever the batch looks like."""

from dataclasses import fields, replace

import pytest
import torch
from toy_model import random_inputs, randomised, toy_config, toy_config_2b, view_lengths, without_views

from moteur.recipes.config import InternVLAA1Config
from moteur.recipes.inputs import Inputs, Targets, moved
from moteur.recipes.internvla_a1 import InternVLAA1
from moteur.recipes.presets import preset

MISSING = [
    [[True, True, True], [True, True, True]],
    [[False, True, True], [True, True, True]],
    [[True, False, True], [True, True, False]],
    [[True, False, False], [False, False, True]],
]


@pytest.fixture(scope="module", params=[toy_config, toy_config_2b], ids=["3B", "2B"])
def toy(request: pytest.FixtureRequest) -> InternVLAA1Config:
    return request.param()


@pytest.fixture(scope="module")
def model(toy: InternVLAA1Config) -> InternVLAA1:
    return randomised(toy, decoder=True)


def doubled(inputs: Inputs) -> Inputs:
    values = {f.name: getattr(inputs, f.name) for f in fields(inputs)}
    return replace(
        inputs, **{k: v.double() for k, v in values.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
    )


def targets_for(config: InternVLAA1Config, batch: int, seed: int) -> Targets:
    draw = torch.Generator().manual_seed(seed)
    size = config.frame_size
    return Targets(
        actions=torch.randn(batch, config.chunk, config.action_dim, generator=draw),
        future_frames=torch.rand(batch, config.views, 3, size, size, generator=draw),
    )


@pytest.mark.parametrize("views", MISSING)
def test_acting_over_the_cache_equals_integrating_the_joint_pass(
    model: InternVLAA1, toy: InternVLAA1Config, views: list, device: torch.device
) -> None:
    model = randomised(toy).double().to(device)
    inputs = moved(without_views(toy, doubled(random_inputs(toy, 2, seed=1)), torch.tensor(views)), device)
    noise = torch.randn(2, toy.chunk, toy.action_dim, dtype=torch.float64, device=device)
    joint = noise
    for step in range(toy.steps):
        tau = torch.full((2,), step / toy.steps, dtype=torch.float64, device=device)
        hidden = model.joint(inputs, joint, tau).hidden["act"]
        joint = joint + model.action.velocity(hidden[:, 1:]) / toy.steps
    torch.testing.assert_close(model.act(inputs, noise=noise), joint, rtol=0, atol=1e-12)


def test_a_batch_equals_its_samples_one_by_one(model: InternVLAA1, toy: InternVLAA1Config) -> None:
    model = randomised(toy, decoder=True).double()
    inputs = without_views(
        toy, doubled(random_inputs(toy, 4, seed=2)), torch.tensor([[True, True, True], *MISSING[2], [False] * 3])
    )
    noise = torch.randn(4, toy.chunk, toy.action_dim, dtype=torch.float64)
    together, imagined = model.act(inputs, noise=noise), model.imagine(inputs, decode=True)
    assert imagined.images is not None
    for index in range(4):
        values = {f.name: getattr(inputs, f.name) for f in fields(inputs)}
        one = replace(inputs, **{k: v[index : index + 1] for k, v in values.items() if isinstance(v, torch.Tensor)})
        torch.testing.assert_close(model.act(one, noise=noise[index : index + 1]), together[index : index + 1])
        alone = model.imagine(one, decode=True)
        where = one.view_valid
        torch.testing.assert_close(alone.latents[where], imagined.latents[index : index + 1][where])
        torch.testing.assert_close(alone.images[where], imagined.images[index : index + 1][where])


def test_what_a_missing_camera_or_padding_holds_changes_nothing(model: InternVLAA1, toy: InternVLAA1Config) -> None:
    inputs = without_views(toy, random_inputs(toy, 2, seed=3), torch.tensor([[True, False, True], [False, True, True]]))
    first = inputs.image_grid[0][0] * inputs.image_grid[0][1]
    frames, pixels, ids = inputs.frames.clone(), inputs.pixel_values.clone(), inputs.input_ids.clone()
    frames[~inputs.view_valid] = 0.25
    pixels[1, :first] = 3.0
    ids[~inputs.und_valid] = 1
    noise = torch.randn(2, toy.chunk, toy.action_dim)
    targets = targets_for(toy, 2, seed=3)
    other = replace(inputs, frames=frames, pixel_values=pixels, input_ids=ids)
    assert torch.equal(model.act(inputs, noise=noise), model.act(other, noise=noise))
    tau = torch.tensor([0.3, 0.8])
    for one, two in zip(
        vars(model.loss(inputs, targets, noise=noise, tau=tau)).values(),
        vars(model.loss(other, targets, noise=noise, tau=tau)).values(),
        strict=True,
    ):
        assert torch.equal(one, two)


def test_information_flows_one_way(model: InternVLAA1, toy: InternVLAA1Config) -> None:
    inputs = random_inputs(toy, 2, seed=4)
    noisy, tau = torch.randn(2, toy.chunk, toy.action_dim), torch.tensor([0.2, 0.6])
    before = model.joint(inputs, noisy, tau).hidden
    acted = model.joint(replace(inputs, state=inputs.state + 1), noisy + 1, tau).hidden
    foreseen = model.joint(replace(inputs, frames=1 - inputs.frames), noisy, tau).hidden
    told = model.joint(replace(inputs, input_ids=inputs.input_ids.flip(0)), noisy, tau).hidden
    moved_state = model.joint(inputs, noisy + 1, tau).hidden
    assert torch.equal(before["und"], acted["und"])
    assert torch.equal(before["gen"], acted["gen"])
    assert torch.equal(before["und"], foreseen["und"])
    assert torch.equal(before["act"][:, :1], moved_state["act"][:, :1])
    assert not torch.allclose(before["act"], foreseen["act"])
    assert not torch.allclose(before["gen"], told["gen"])


def test_foresight_is_the_same_alone_and_in_the_joint_pass(model: InternVLAA1, toy: InternVLAA1Config) -> None:
    inputs = random_inputs(toy, 2, seed=5)
    joint = model.joint(inputs, torch.randn(2, toy.chunk, toy.action_dim), torch.rand(2))
    predicted = model.foresight.head.predict(joint.hidden["gen"], joint.grid)
    torch.testing.assert_close(model.imagine(inputs).latents, predicted, rtol=0, atol=1e-5)
    assert model.imagine(inputs).images is None


def test_latents_encoded_before_replace_the_frames(model: InternVLAA1, toy: InternVLAA1Config) -> None:
    inputs, targets = random_inputs(toy, 2, seed=6), targets_for(toy, 2, seed=6)
    cached = replace(inputs, frames=None, latents=model.foresight.encode(inputs.frames))
    later = replace(targets, future_frames=None, future_latents=model.foresight.encode(targets.future_frames))
    noise, tau = torch.randn_like(targets.actions), torch.rand(2)
    torch.testing.assert_close(model.act(inputs, noise=noise), model.act(cached, noise=noise))
    one, two = (model.loss(*pair, noise=noise, tau=tau) for pair in ((inputs, targets), (cached, later)))
    torch.testing.assert_close(one.total, two.total)


def test_without_the_generation_expert_the_policy_acts_and_learns(toy: InternVLAA1Config) -> None:
    model = randomised(toy.without_foresight())
    assert not any("gen" in name or "foresight" in name for name in model.state_dict())
    inputs, targets = replace(random_inputs(toy, 2, seed=7), frames=None), targets_for(toy, 2, seed=7)
    losses = model.loss(inputs, targets, generator=torch.Generator().manual_seed(0))
    assert losses.foresight == 0
    assert losses.total == losses.action > 0
    assert model.act(inputs, generator=torch.Generator().manual_seed(0)).isfinite().all()
    with pytest.raises(ValueError, match=r"imagine: .*config\.gen=None"):
        model.imagine(inputs)


def test_a_sample_without_actions_teaches_foresight_only(model: InternVLAA1, toy: InternVLAA1Config) -> None:
    inputs, targets = random_inputs(toy, 2, seed=8), targets_for(toy, 2, seed=8)
    noise, tau = torch.randn_like(targets.actions), torch.rand(2)
    video = replace(targets, valid_samples=torch.tensor([True, False]))
    changed = replace(video, actions=targets.actions * torch.tensor([1.0, float("nan")])[:, None, None])
    losses = model.loss(inputs, video, noise=noise, tau=tau)
    poisoned = model.loss(inputs, changed, noise=noise, tau=tau)
    assert torch.equal(losses.action, poisoned.action)
    nobody = replace(targets, valid_samples=torch.tensor([False, False]))
    losses = model.loss(inputs, nobody, noise=noise, tau=tau)
    assert losses.action == 0
    assert losses.total == toy.foresight_weight * losses.foresight > 0
    model.zero_grad()
    losses.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert model.action.action_out.weight.grad.abs().max() == 0
    assert model.foresight.head.project_out.weight.grad.abs().max() > 0
    model.zero_grad()


def test_not_a_number_behind_a_mask_reaches_neither_actions_nor_gradients(
    model: InternVLAA1, toy: InternVLAA1Config
) -> None:
    inputs = without_views(toy, random_inputs(toy, 2, seed=13), torch.tensor([[True, True, True], [True, False, True]]))
    patches = [rows * columns for rows, columns in inputs.image_grid]
    pixels, frames, nan = inputs.pixel_values.clone(), inputs.frames.clone(), float("nan")
    pixels[1, patches[0] : patches[0] + patches[1]] = nan
    frames[1, 1] = nan
    dirty = replace(inputs, pixel_values=pixels, frames=frames)
    noise, tau = torch.randn(2, toy.chunk, toy.action_dim), torch.rand(2)
    assert torch.equal(model.act(dirty, noise=noise), model.act(inputs, noise=noise))
    targets = replace(
        targets_for(toy, 2, seed=13),
        valid_samples=torch.tensor([True, False]),
        valid_steps=torch.tensor([[True] * 3 + [False]] * 2),
        valid_future=torch.tensor([[True, True, False]] * 2),
    )
    actions, future = targets.actions.clone(), targets.future_frames.clone()
    actions[1] = actions[0, 3] = nan
    future[:, 2] = future[1, 1] = nan
    losses = model.loss(dirty, replace(targets, actions=actions, future_frames=future), noise=noise, tau=tau)
    assert losses.total.isfinite()
    model.zero_grad()
    losses.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.zero_grad()


def test_a_batch_with_nothing_to_learn_gives_zero_loss_and_zero_gradient(
    model: InternVLAA1, toy: InternVLAA1Config
) -> None:
    inputs = without_views(toy, random_inputs(toy, 2, seed=9), torch.zeros(2, 3, dtype=torch.bool))
    targets = replace(targets_for(toy, 2, seed=9), valid_steps=torch.zeros(2, toy.chunk, dtype=torch.bool))
    losses = model.loss(inputs, targets, generator=torch.Generator().manual_seed(0))
    assert losses.total == 0
    model.zero_grad()
    losses.total.backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in model.parameters())
    model.zero_grad()


def test_missing_futures_and_padded_steps_do_not_count(model: InternVLAA1, toy: InternVLAA1Config) -> None:
    inputs, targets = random_inputs(toy, 2, seed=10), targets_for(toy, 2, seed=10)
    noise, tau = torch.randn_like(targets.actions), torch.rand(2)
    masked = replace(
        targets,
        valid_steps=torch.tensor([[True] * 3 + [False], [True] * 2 + [False] * 2]),
        valid_dims=torch.tensor([[True] * 4 + [False]]).expand(2, -1),
        valid_future=torch.tensor([[True, False, True], [False, True, True]]),
    )
    losses = model.loss(inputs, masked, noise=noise, tau=tau)
    joint = model.joint(inputs, (1 - tau[:, None, None]) * noise + tau[:, None, None] * targets.actions, tau)
    error = (model.action.velocity(joint.hidden["act"][:, 1:]) - (targets.actions - noise)) ** 2
    count = masked.valid_steps[:, :, None] & masked.valid_dims[:, None]
    torch.testing.assert_close(losses.action, error[count].mean())
    predicted = model.foresight.head.predict(joint.hidden["gen"], joint.grid)
    future = model.foresight.encode(targets.future_frames)
    torch.testing.assert_close(losses.foresight, ((predicted - future) ** 2)[masked.valid_future].mean())


def test_noise_comes_from_the_caller_and_is_never_changed(model: InternVLAA1, toy: InternVLAA1Config) -> None:
    inputs = random_inputs(toy, 2, seed=11)
    kept = {f.name: getattr(inputs, f.name) for f in fields(inputs)}
    copies = {k: v.clone() for k, v in kept.items() if isinstance(v, torch.Tensor)}
    noise = torch.randn(2, toy.chunk, toy.action_dim)
    before = noise.clone()
    first = model.act(inputs, noise=noise)
    assert torch.equal(noise, before)
    assert torch.equal(first, model.act(inputs, noise=noise))
    assert all(torch.equal(kept[k], v) for k, v in copies.items())
    one, two = (model.act(inputs, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, model.act(inputs, generator=torch.Generator().manual_seed(4)))


@pytest.mark.usefixtures("without_shape_checks")
def test_inputs_that_do_not_fit_the_model_are_named(model: InternVLAA1, toy: InternVLAA1Config) -> None:
    inputs = random_inputs(toy, 2, seed=12)
    bad = {
        r"view_valid: expected shape \(2, 3\), got \(2, 2\)": {"view_valid": inputs.view_valid[:, :2]},
        r"image_grid: expected shape \(3,\), got \(2,\)": {"image_grid": inputs.image_grid[:2]},
        r"state: expected shape \(2, 3\), got \(2, 4\)": {"state": torch.zeros(2, 4)},
        r"view_valid: expected shape \(1, 3\), got \(2, 3\)": {"state": torch.zeros(1, 3)},
        r"state: expected finite values, got 6": {"state": torch.full((2, 3), float("nan"))},
        r"pixel_values: expected shape \(2, \d+\), got \(2, 3\)": {"pixel_values": inputs.pixel_values[:, :3]},
        r"frames: expected shape \(2, 3, 2\), got \(2, 3, 1\)": {"frames": inputs.frames[:, :, :1]},
        r"frames: expected floats, got torch.uint8": {"frames": (inputs.frames * 255).byte()},
        r"images: expected values in \[-1, 1\]": {"frames": inputs.frames * 255},
        r"frames or latents .*, got neither": {"frames": None},
        rf"input_ids: expected at least {sum(view_lengths(toy, inputs.image_grid))} tokens .*, got 9": {
            "input_ids": inputs.input_ids[:, :9],
            "und_valid": inputs.und_valid[:, :9],
        },
    }
    for message, change in bad.items():
        with pytest.raises(ValueError, match=message):
            model.act(replace(inputs, **change))
    with pytest.raises(ValueError, match=r"noise: expected shape \(2, 4, 5\), got \(2, 4, 6\)"):
        model.act(inputs, noise=torch.zeros(2, 4, 6))
    with pytest.raises(ValueError, match=r"targets.actions: expected shape \(2, 4, 5\), got \(2, 3, 5\)"):
        model.loss(inputs, Targets(actions=torch.zeros(2, 3, 5)))
    future, actions = torch.zeros(2, 3, 3, 32, 32), torch.zeros(2, 4, 5)
    refused = {
        "future frames or future latents, got both": {"future_frames": future, "future_latents": future},
        r"valid_future: expected shape \(2, 3\), got \(2, 2\)": {"valid_future": torch.ones(2, 2).bool()},
        r"future_frames: expected shape \(2, 3\), got \(2, 2\)": {"future_frames": future[:, :2]},
        r"future_frames: expected floats, got torch.uint8": {"future_frames": future.byte()},
    }
    for message, change in refused.items():
        with pytest.raises(ValueError, match=message):
            model.loss(inputs, Targets(actions=actions, **change))
    with pytest.raises(ValueError, match="decoder=True"):
        randomised(toy).imagine(inputs, decode=True)


@pytest.mark.usefixtures("without_shape_checks")
def test_preset_names_are_checked() -> None:
    with pytest.raises(ValueError, match=r"name: expected one of \['2B', '3B', 'tiny'\], got '7B'"):
        preset("7B")  # type: ignore[arg-type]
