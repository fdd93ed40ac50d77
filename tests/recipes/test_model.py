"""What must hold at any size, with any camera missing, whatever the batch looks like."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from toy_model import as_dtype, random_inputs, randomised, toy_config, toy_config_2b

from moteur.recipes import Inputs, InternVLAA1, InternVLAA1Config, Losses, Targets, preset
from moteur.recipes.inputs import each_tensor

CONFIGS = [toy_config(), toy_config_2b()]
MISSING = [
    [[True, True, True], [True, True, True]],
    [[False, True, True], [True, True, True]],
    [[True, False, True], [True, True, False]],
    [[True, False, False], [False, False, True]],
]
TIME = torch.tensor([0.3, 0.8])


@pytest.fixture(scope="module", params=CONFIGS, ids=["3B", "2B"])
def toy(request: pytest.FixtureRequest) -> InternVLAA1Config:
    return request.param


@pytest.fixture(scope="module")
def model(toy: InternVLAA1Config) -> InternVLAA1:
    return randomised(toy, decoder=True)


def seeing(inputs: Inputs, views: list | Tensor) -> Inputs:
    """The same inputs with some cameras missing."""
    return replace(inputs, view_valid=torch.as_tensor(views))


def targets_for(config: InternVLAA1Config, batch: int, seed: int) -> Targets:
    draw = torch.Generator().manual_seed(seed)
    size = config.frame_size
    return Targets(
        actions=torch.randn(batch, config.chunk, config.action_dim, generator=draw),
        future_frames=torch.rand(batch, config.views, 3, size, size, generator=draw),
    )


def noise_for(config: InternVLAA1Config, batch: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, config.chunk, config.action_dim, generator=torch.Generator().manual_seed(seed))


def gradients(model: InternVLAA1, losses: Losses) -> dict[str, Tensor]:
    """The gradient of the total loss, parameter by parameter."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(losses.total, list(named.values()), allow_unused=True)
    return {name: value for name, value in zip(named, found, strict=True) if value is not None}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


# Acting


@pytest.mark.parametrize("views", MISSING)
def test_acting_over_the_cache_equals_integrating_the_joint_pass(
    toy: InternVLAA1Config, views: list, device: torch.device
) -> None:
    model = randomised(toy).double().to(device)
    inputs = seeing(as_dtype(random_inputs(toy, 2, seed=1), torch.float64), views).to(device)
    noise = noise_for(toy, 2).to(device, torch.float64)
    actions = noise
    for step in range(toy.steps, 0, -1):  # time 1 is noise, time 0 data
        time = torch.full((2,), step / toy.steps, dtype=torch.float64, device=device)
        hidden = model.joint(inputs, actions, time).hidden["act"]
        actions = actions - model.action.velocity(hidden[:, 1:]) / toy.steps
    torch.testing.assert_close(model.act(inputs, noise=noise), actions, rtol=0, atol=1e-12)


def test_the_state_token_is_computed_once_and_the_actions_once_a_step(
    model: InternVLAA1, toy: InternVLAA1Config
) -> None:
    lengths = []
    hook = model.mot.register_forward_pre_hook(
        lambda _, args: lengths.append({name: stream.shape[1] for name, stream in args[0].items()})
    )
    model.act(random_inputs(toy, 2, seed=1), noise=noise_for(toy, 2))
    hook.remove()
    assert set(lengths[0]) == {"und", "gen"}
    assert lengths[1:] == [{"act": 1 + toy.chunk}, *[{"act": toy.chunk}] * (toy.steps - 1)]


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_a_prefix_comes_out_unchanged_and_the_rest_follows_from_it(toy: InternVLAA1Config, delay: int) -> None:
    model = randomised(toy).double()
    inputs, noise = as_dtype(random_inputs(toy, 2, seed=2), torch.float64), noise_for(toy, 2).double()
    prefix = noise_for(toy, 2, seed=1).double()[:, :delay]
    actions = noise
    for step in range(toy.steps, 0, -1):
        time = torch.full((2,), step / toy.steps, dtype=torch.float64)
        known = time[:, None, None] * noise[:, :delay] + (1 - time[:, None, None]) * prefix
        hidden = model.joint(inputs, torch.cat([known, actions[:, delay:]], dim=1), time).hidden["act"]
        actions = actions - model.action.velocity(hidden[:, 1:]) / toy.steps
    found = model.act(inputs, noise=noise, prefix=prefix)
    assert torch.equal(found[:, :delay], prefix)
    torch.testing.assert_close(found[:, delay:], actions[:, delay:], rtol=0, atol=1e-12)


def test_a_batch_equals_its_samples_one_by_one(toy: InternVLAA1Config) -> None:
    model = randomised(toy, decoder=True).double()
    inputs = as_dtype(random_inputs(toy, 4, seed=2), torch.float64)
    inputs = seeing(inputs, [[True, True, True], *MISSING[2], [False] * 3])
    noise = noise_for(toy, 4).double()
    together, imagined = model.act(inputs, noise=noise), model.imagine(inputs, decode=True)
    assert imagined.images is not None
    for index in range(4):
        here = slice(index, index + 1)
        one = each_tensor(inputs, lambda value, here=here: value[here])
        torch.testing.assert_close(model.act(one, noise=noise[here]), together[here])
        alone, where = model.imagine(one, decode=True), one.view_valid
        torch.testing.assert_close(alone.latents[where], imagined.latents[here][where])
        torch.testing.assert_close(alone.images[where], imagined.images[here][where])


def test_noise_comes_from_the_caller_and_nothing_given_is_changed(model: InternVLAA1, toy: InternVLAA1Config) -> None:
    inputs, targets, noise = random_inputs(toy, 2, seed=11), targets_for(toy, 2, seed=11), noise_for(toy, 2)
    kept = {"noise": noise, "time": TIME} | vars(inputs) | vars(targets)
    copies = {name: value.clone() for name, value in kept.items() if isinstance(value, Tensor)}
    first = model.act(inputs, noise=noise)
    assert torch.equal(first, model.act(inputs, noise=noise))
    model(inputs, targets, noise=noise, time=TIME)
    model.imagine(inputs)
    assert all(torch.equal(kept[name], value) for name, value in copies.items())
    one, two = (model.act(inputs, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, model.act(inputs, generator=torch.Generator().manual_seed(4)))


def test_a_generator_draws_noise_and_time_as_the_parts_would(model: InternVLAA1, toy: InternVLAA1Config) -> None:
    inputs, targets = random_inputs(toy, 2, seed=12), targets_for(toy, 2, seed=12)
    draw = torch.Generator().manual_seed(5)
    noise = torch.randn(2, toy.chunk, toy.action_dim, generator=draw)
    time = toy.time.sample((2,), generator=draw)
    drawn = model(inputs, targets, generator=torch.Generator().manual_seed(5))
    given = model(inputs, targets, noise=noise, time=time)
    assert all(torch.equal(*pair) for pair in zip(drawn, given, strict=True))


# What reaches what


def test_information_flows_one_way(model: InternVLAA1, toy: InternVLAA1Config) -> None:
    inputs = random_inputs(toy, 2, seed=4)
    noisy, time = noise_for(toy, 2), torch.tensor([0.2, 0.6])
    before = model.joint(inputs, noisy, time).hidden
    acted = model.joint(replace(inputs, state=inputs.state + 1), noisy + 1, time).hidden
    earlier = torch.cat([1 - inputs.frames[:, :, :1], inputs.frames[:, :, 1:]], dim=2)
    foreseen = model.joint(replace(inputs, frames=earlier), noisy, time).hidden
    told = model.joint(replace(inputs, instruction=inputs.instruction.flip(0)), noisy, time).hidden
    moved_actions = model.joint(inputs, noisy + 1, time).hidden
    assert torch.equal(before["und"], acted["und"])
    assert torch.equal(before["gen"], acted["gen"])
    assert torch.equal(before["und"], foreseen["und"])  # the understanding expert sees the present alone
    assert torch.equal(before["act"][:, :1], moved_actions["act"][:, :1])
    assert not torch.allclose(before["gen"], foreseen["gen"])
    assert not torch.allclose(before["act"], foreseen["act"])
    assert not torch.allclose(before["gen"], told["gen"])


def test_uint8_pictures_give_what_their_unit_floats_give(model: InternVLAA1, toy: InternVLAA1Config) -> None:
    inputs, targets, noise = random_inputs(toy, 2, seed=5), targets_for(toy, 2, seed=5), noise_for(toy, 2)
    stored = replace(inputs, frames=(inputs.frames * 255).to(torch.uint8))
    later = replace(targets, future_frames=(targets.future_frames * 255).to(torch.uint8))
    floats = replace(stored, frames=stored.frames.float() / 255)
    wanted = replace(later, future_frames=later.future_frames.float() / 255)
    assert torch.equal(model.act(stored, noise=noise), model.act(floats, noise=noise))
    assert torch.equal(model.imagine(stored).latents, model.imagine(floats).latents)
    one, two = model(stored, later, noise=noise, time=TIME), model(floats, wanted, noise=noise, time=TIME)
    assert all(torch.equal(*pair) for pair in zip(one, two, strict=True))
    assert same(gradients(model, one), gradients(model, two))


def test_masks_of_ones_change_no_bit(model: InternVLAA1, toy: InternVLAA1Config) -> None:
    inputs, noise = random_inputs(toy, 2, seed=6), noise_for(toy, 2)
    inputs = replace(inputs, view_valid=None, attention_mask=None)
    full = replace(
        inputs,
        view_valid=torch.ones(2, 3, dtype=torch.bool),
        attention_mask=torch.ones_like(inputs.instruction, dtype=torch.bool),
    )
    targets = targets_for(toy, 2, seed=6)
    every = replace(
        targets,
        valid_steps=torch.ones(2, toy.chunk, dtype=torch.bool),
        valid_dims=torch.ones(2, toy.action_dim, dtype=torch.bool),
        valid_samples=torch.ones(2, dtype=torch.bool),
        valid_future=torch.ones(2, 3, dtype=torch.bool),
    )
    assert torch.equal(model.act(inputs, noise=noise), model.act(full, noise=noise))
    assert torch.equal(model.imagine(inputs).latents, model.imagine(full).latents)
    one, two = model(inputs, targets, noise=noise, time=TIME), model(full, every, noise=noise, time=TIME)
    assert all(torch.equal(*pair) for pair in zip(one, two, strict=True))
    assert same(gradients(model, one), gradients(model, two))


def test_what_a_missing_camera_or_padding_holds_changes_nothing(model: InternVLAA1, toy: InternVLAA1Config) -> None:
    """NaN included: neither actions nor losses nor gradients move by a bit."""
    inputs = seeing(random_inputs(toy, 2, seed=3), [[True, False, True], [False, True, True]])
    targets, noise = targets_for(toy, 2, seed=3), noise_for(toy, 2)
    targets = replace(
        targets,
        valid_samples=torch.tensor([True, False]),
        valid_steps=torch.tensor([[True] * 3 + [False]] * 2),
        valid_dims=torch.tensor([[True] * 4 + [False]] * 2),
        valid_future=torch.tensor([[True, True, False]] * 2),
    )
    frames, ids = inputs.frames.clone(), inputs.instruction.clone()
    frames[~inputs.view_valid] = torch.nan
    ids[~inputs.attention_mask] = 1
    dirty = replace(inputs, frames=frames, instruction=ids)
    actions, future = targets.actions.clone(), targets.future_frames.clone()
    actions[1] = actions[0, 3] = actions[:, :, 4] = torch.nan
    future[~(inputs.view_valid & targets.valid_future)] = torch.nan
    spoilt = replace(targets, actions=actions, future_frames=future)
    assert torch.equal(model.act(inputs, noise=noise), model.act(dirty, noise=noise))
    # Padding enters the noisy chunk as zeros where it is not finite: hold it at zero in the clean targets as well.
    clean = replace(targets, actions=torch.nan_to_num(actions))
    one, two = model(inputs, clean, noise=noise, time=TIME), model(dirty, spoilt, noise=noise, time=TIME)
    assert one.action > 0
    assert one.foresight > 0
    assert all(torch.equal(*pair) for pair in zip(one, two, strict=True))
    assert same(gradients(model, one), gradients(model, two))


def test_latents_of_missing_cameras_may_hold_anything(model: InternVLAA1, toy: InternVLAA1Config) -> None:
    inputs = seeing(random_inputs(toy, 2, seed=3), MISSING[2])
    targets, noise = targets_for(toy, 2, seed=3), noise_for(toy, 2)
    latents, future = model.foresight.encode(inputs.frames), model.foresight.encode(targets.future_frames)
    known = replace(inputs, latents=latents)
    learned = replace(targets, future_frames=None, future_latents=future)
    broken, spoilt = latents.clone(), future.clone()
    broken[~inputs.view_valid] = spoilt[~inputs.view_valid] = torch.nan
    dirty, poisoned = replace(inputs, latents=broken), replace(learned, future_latents=spoilt)
    one, two = model(known, learned, noise=noise, time=TIME), model(dirty, poisoned, noise=noise, time=TIME)
    assert all(torch.equal(*pair) for pair in zip(one, two, strict=True))
    assert same(gradients(model, one), gradients(model, two))


# Foresight


def test_foresight_is_the_same_alone_and_in_the_joint_pass(model: InternVLAA1, toy: InternVLAA1Config) -> None:
    inputs = random_inputs(toy, 2, seed=5)
    joint = model.joint(inputs, noise_for(toy, 2), TIME)
    predicted = model.foresight.head.predict(joint.hidden["gen"], joint.grid)
    torch.testing.assert_close(model.imagine(inputs).latents, predicted, rtol=0, atol=1e-5)
    assert model.imagine(inputs).images is None


def test_latents_encoded_before_replace_the_earlier_frame(model: InternVLAA1, toy: InternVLAA1Config) -> None:
    inputs, targets, noise = random_inputs(toy, 2, seed=6), targets_for(toy, 2, seed=6), noise_for(toy, 2)
    cached = replace(inputs, frames=inputs.frames[:, :, 1:], latents=model.foresight.encode(inputs.frames))
    later = replace(targets, future_frames=None, future_latents=model.foresight.encode(targets.future_frames))
    assert torch.equal(model.act(inputs, noise=noise), model.act(cached, noise=noise))
    one, two = model(inputs, targets, noise=noise, time=TIME), model(cached, later, noise=noise, time=TIME)
    assert all(torch.equal(*pair) for pair in zip(one, two, strict=True))


def test_acting_and_imagining_in_steps_equal_the_whole(model: InternVLAA1, toy: InternVLAA1Config) -> None:
    inputs, noise = seeing(random_inputs(toy, 2, seed=7), MISSING[2]), noise_for(toy, 2)
    latents = model.encode(inputs)
    assert latents[~inputs.view_valid].eq(0).all()
    assert torch.equal(model.denoise(inputs, latents, noise), model.act(inputs, noise=noise))
    whole, foreseen = model.imagine(inputs, decode=True), model.foresee(inputs, latents)
    assert torch.equal(whole.latents, foreseen)
    assert torch.equal(whole.images, model.foresight.decode(foreseen))


def test_without_the_generation_expert_the_policy_acts_and_learns(toy: InternVLAA1Config) -> None:
    model = randomised(toy.without_foresight())
    assert not any("gen" in name or "foresight" in name for name in model.state_dict())
    inputs, targets = random_inputs(toy, 2, seed=7), targets_for(toy, 2, seed=7)
    present = replace(inputs, frames=inputs.frames[:, :, 1:])
    assert model.encode(present) is None
    losses = model(present, targets, noise=noise_for(toy, 2), time=TIME)
    assert losses.foresight == 0
    assert losses.total == losses.action > 0
    actions = model.act(present, noise=noise_for(toy, 2))
    assert actions.isfinite().all()
    assert torch.equal(actions, model.act(inputs, noise=noise_for(toy, 2)))
    with pytest.raises(ValueError, match=r"imagine: expected a model with a generation expert, got one without"):
        model.imagine(inputs)
    with pytest.raises(ValueError, match="decoder: expected False for a configuration without foresight"):
        InternVLAA1(toy.without_foresight(), decoder=True)


def test_pictures_are_decoded_only_by_a_model_with_the_decoder(model: InternVLAA1, toy: InternVLAA1Config) -> None:
    inputs = random_inputs(toy, 1, seed=8)
    images = model.imagine(inputs, decode=True).images
    assert images.shape == (1, 3, 3, toy.foresight_size, toy.foresight_size)
    with pytest.raises(ValueError, match="decode: expected a model built with decoder=True, got one without"):
        randomised(toy).imagine(inputs, decode=True)


# Losses


def test_the_losses_are_means_over_what_is_valid(model: InternVLAA1, toy: InternVLAA1Config) -> None:
    inputs, targets, noise = random_inputs(toy, 2, seed=10), targets_for(toy, 2, seed=10), noise_for(toy, 2)
    inputs = seeing(inputs, [[True, True, True], [True, True, False]])
    masked = replace(
        targets,
        valid_steps=torch.tensor([[True] * 3 + [False], [True] * 2 + [False] * 2]),
        valid_dims=torch.tensor([[True] * 4 + [False]]).expand(2, -1),
        valid_future=torch.tensor([[True, False, True], [False, True, True]]),
    )
    losses = model(inputs, masked, noise=noise, time=TIME)
    t = TIME[:, None, None]
    joint = model.joint(inputs, t * noise + (1 - t) * targets.actions, TIME)
    error = (model.action.velocity(joint.hidden["act"][:, 1:]) - (noise - targets.actions)) ** 2
    torch.testing.assert_close(
        losses.action, torch.cat([error[0, :3, :4].flatten(), error[1, :2, :4].flatten()]).mean()
    )
    predicted = model.foresight.head.predict(joint.hidden["gen"], joint.grid)
    missed = (predicted - model.foresight.encode(targets.future_frames)) ** 2
    torch.testing.assert_close(losses.foresight, torch.stack([missed[0, 0], missed[0, 2], missed[1, 1]]).mean())
    torch.testing.assert_close(losses.total, losses.action + toy.foresight_weight * losses.foresight)


def test_the_released_reduction_counts_padding_as_well(toy: InternVLAA1Config) -> None:
    released = randomised(replace(toy, action_reduction="released"))
    inputs, targets, noise = random_inputs(toy, 2, seed=10), targets_for(toy, 2, seed=10), noise_for(toy, 2)
    masked = replace(targets, valid_steps=torch.tensor([[True] * 3 + [False]] * 2))
    t = TIME[:, None, None]
    joint = released.joint(inputs, t * noise + (1 - t) * targets.actions, TIME)
    error = (released.action.velocity(joint.hidden["act"][:, 1:]) - (noise - targets.actions)) ** 2
    torch.testing.assert_close(released(inputs, masked, noise=noise, time=TIME).action, error.mean())


def test_a_sample_without_actions_teaches_foresight_only(model: InternVLAA1, toy: InternVLAA1Config) -> None:
    inputs, targets, noise = random_inputs(toy, 2, seed=8), targets_for(toy, 2, seed=8), noise_for(toy, 2)
    losses = model(inputs, replace(targets, valid_samples=torch.zeros(2, dtype=torch.bool)), noise=noise, time=TIME)
    assert losses.action == 0
    assert losses.total == toy.foresight_weight * losses.foresight > 0
    found = gradients(model, losses)
    assert found["action.action_out.weight"].abs().max() == 0
    assert found["foresight.head.project_out.weight"].abs().max() > 0


def test_a_batch_with_nothing_to_learn_gives_zero_loss_and_zero_gradient(
    model: InternVLAA1, toy: InternVLAA1Config
) -> None:
    inputs = seeing(random_inputs(toy, 2, seed=9), torch.zeros(2, 3, dtype=torch.bool))
    targets = replace(targets_for(toy, 2, seed=9), valid_steps=torch.zeros(2, toy.chunk, dtype=torch.bool))
    losses = model(inputs, targets, noise=noise_for(toy, 2), time=TIME)
    assert losses.total == 0
    assert all(value.abs().max() == 0 for value in gradients(model, losses).values())


# Fields, presets, wrappers


def test_text_scaling_is_a_field_that_changes_the_instruction_alone(toy: InternVLAA1Config) -> None:
    plain, scaled = (randomised(replace(toy, text_scaling=scaling)) for scaling in (False, True))
    scaled.load_state_dict(plain.state_dict())
    inputs = random_inputs(toy, 2, seed=3)
    one, two = (model.context(inputs, None)[0]["und"].tokens for model in (plain, scaled))
    start = one.shape[1] - toy.text_length
    assert start == toy.views * toy.image_tokens
    assert torch.equal(one[:, :start], two[:, :start])
    torch.testing.assert_close(one[:, start:] * toy.und.dim**0.5, two[:, start:])


def test_the_rotary_base_is_a_field_that_matters(model: InternVLAA1, toy: InternVLAA1Config) -> None:
    other = randomised(replace(toy, rope_base=toy.rope_base * 100), decoder=True)
    other.load_state_dict(model.state_dict())
    inputs, noise = random_inputs(toy, 2, seed=4), noise_for(toy, 2)
    assert not torch.allclose(model.act(inputs, noise=noise), other.act(inputs, noise=noise))


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_distributed_data_parallel_wraps_the_model_and_gives_its_gradients(
    model: InternVLAA1, toy: InternVLAA1Config
) -> None:
    inputs, targets, noise = random_inputs(toy, 2, seed=14), targets_for(toy, 2, seed=14), noise_for(toy, 2)
    expected = gradients(model, model(inputs, targets, noise=noise, time=TIME))
    wrapped = DistributedDataParallel(randomised(toy, decoder=True))
    for _ in range(2):  # the second pass shows that the reduction of the first one was complete
        wrapped.zero_grad()
        losses = wrapped(inputs, targets, noise=noise, time=TIME)
        assert isinstance(losses, Losses)
        losses.total.backward()
        found = {name: value.grad for name, value in wrapped.module.named_parameters() if value.grad is not None}
        assert same(
            {name: value for name, value in found.items() if value.any()},
            {name: value for name, value in expected.items() if value.any()},
        )


@pytest.mark.usefixtures("without_shape_checks")
def test_preset_names_are_checked() -> None:
    with pytest.raises(
        ValueError,
        match=r"name: expected one of \['2B', '3B', 'pi0', 'pi05', 'tiny', 'tiny-pi0', 'tiny-pi05'\], got '7B'",
    ):
        preset("7B")  # type: ignore[arg-type]


def test_a_float64_model_rotates_in_float64(toy: InternVLAA1Config) -> None:
    model, inputs = randomised(toy).double(), as_dtype(random_inputs(toy, 1, 21), torch.float64)
    (stream,) = (stream for name, stream in model.context(inputs, None)[0].items() if name == "und")
    cos, sin = model.rotary(stream)
    taken = 0 if toy.rope_sections is None else 3 * toy.rope_sections[1]
    axes = [pair % 3 if pair < taken else 0 for pair in range(toy.head_dim // 2)]
    for pair, axis in enumerate(axes):
        angles = [int(position) * toy.rope_base ** (-2 * pair / toy.head_dim) for position in stream.positions[axis, 0]]
        for half in (pair, pair + toy.head_dim // 2):
            expected = torch.tensor([math.cos(angle) for angle in angles], dtype=torch.float64)
            torch.testing.assert_close(cos[0, :, half], expected, rtol=0, atol=1e-13)
            expected = torch.tensor([math.sin(angle) for angle in angles], dtype=torch.float64)
            torch.testing.assert_close(sin[0, :, half], expected, rtol=0, atol=1e-13)
