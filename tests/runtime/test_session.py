"""The session against the plain model: the same answers, whatever is missing."""

import copy
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from threading import Event
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_model import as_dtype, random_inputs, randomised, saying, toy_config

from moteur.flowmatch import Method
from moteur.recipes import InternVLAA1, InternVLAA1Config
from moteur.runtime import InferenceSession
from moteur.runtime.kernels import Kernel

METHODS: list[Method] = ["euler", "midpoint", "heun"]
SEEN = {
    "all": [[1, 1, 1], [1, 1, 1]],
    "one missing in the middle": [[1, 0, 1], [1, 0, 1]],
    "one left": [[0, 1, 0], [0, 1, 0]],
    "none left": [[0, 0, 0], [0, 0, 0]],
    "another one in each sample": [[1, 0, 1], [0, 1, 1]],
}
KERNELS: list[Kernel] = ["aten", "onednn", "measured"]


def drawn(config: InternVLAA1Config, batch: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(11)
    return torch.randn(batch, config.chunk, config.action_dim, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_in_float64_it_gives_the_plain_models_actions_to_rounding(
    toy: InternVLAA1Config, seen: str, batch: int, method: Method
) -> None:
    model = randomised(toy).double()
    views = torch.tensor(SEEN[seen][:batch], dtype=torch.bool)
    inputs = as_dtype(replace(random_inputs(toy, batch, 5), view_valid=views), torch.float64)
    noise = drawn(toy, batch, torch.float64)
    session = InferenceSession(model)
    torch.testing.assert_close(
        session.act(inputs, noise=noise, method=method),
        model.act(inputs, noise=noise, method=method),
        rtol=0,
        atol=1e-7,  # the time features are float32 in both
    )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("seen", SEEN)
def test_in_float32_every_kernel_gives_the_plain_models_actions(
    toy: InternVLAA1Config, model: InternVLAA1, kernel: Kernel, seen: str
) -> None:
    views = torch.tensor(SEEN[seen], dtype=torch.bool)
    inputs, noise = replace(random_inputs(toy, 2, 6), view_valid=views), drawn(toy, 2)
    session = InferenceSession(model, kernel=kernel)
    difference = session.act(inputs, noise=noise) - model.act(inputs, noise=noise)
    assert difference.abs().max() < 1e-5


def test_a_frozen_prefix_other_steps_and_no_noise_work_as_in_the_plain_model(
    toy: InternVLAA1Config, model: InternVLAA1
) -> None:
    inputs, prefix = random_inputs(toy, 2, 7), torch.randn(2, 2, toy.action_dim)
    session = InferenceSession(model)
    options: list[dict[str, Any]] = [{"prefix": prefix}, {"prefix": prefix[:, :0]}, {"steps": 1}, {"steps": 7}]
    for option in options:
        seeds = [torch.Generator().manual_seed(3) for _ in range(2)]
        plain = model.act(inputs, generator=seeds[0], **option)
        torch.testing.assert_close(session.act(inputs, generator=seeds[1], **option), plain, rtol=0, atol=1e-5)
    assert torch.equal(session.act(inputs, prefix=prefix)[:, :2], prefix)


@pytest.mark.parametrize("seen", ["all", "one missing in the middle", "another one in each sample"])
def test_it_imagines_what_the_plain_model_imagines(toy: InternVLAA1Config, model: InternVLAA1, seen: str) -> None:
    views = torch.tensor(SEEN[seen], dtype=torch.bool)
    inputs = replace(random_inputs(toy, 2, 8), view_valid=views)
    ours = InferenceSession(model).imagine(inputs, decode=True)
    plain = model.imagine(inputs, decode=True)
    assert ours.images is not None
    assert plain.images is not None
    torch.testing.assert_close(ours.latents[views], plain.latents[views], rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.images[views], plain.images[views], rtol=0, atol=1e-4)


def test_without_a_generation_expert_it_acts_on_the_present(toy: InternVLAA1Config) -> None:
    model = randomised(toy.without_foresight())
    inputs, noise = random_inputs(toy, 1, 9), drawn(toy, 1)
    present = replace(inputs, frames=inputs.frames[:, :, 1:])
    session = InferenceSession(model)
    torch.testing.assert_close(session.act(present, noise=noise), model.act(inputs, noise=noise), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="imagine: expected a model with a generation expert"):
        session.imagine(inputs)
    with pytest.raises(ValueError, match="observe: expected a model with a generation expert"):
        session.observe(torch.zeros(1, 3, 3, 32, 32))


def test_what_a_missing_camera_holds_changes_nothing_not_even_when_it_is_not_a_number(
    toy: InternVLAA1Config, model: InternVLAA1
) -> None:
    views = torch.tensor(SEEN["another one in each sample"], dtype=torch.bool)
    inputs, noise = replace(random_inputs(toy, 2, 10), view_valid=views), drawn(toy, 2)
    session = InferenceSession(model)
    expected = session.act(inputs, noise=noise)
    frames = torch.where(views[:, :, None, None, None, None], inputs.frames, torch.nan)
    assert torch.equal(session.act(replace(inputs, frames=frames), noise=noise), expected)


def test_masks_that_are_not_given_stand_for_all(toy: InternVLAA1Config, model: InternVLAA1) -> None:
    inputs, noise = saying(random_inputs(toy, 2, 10), toy.text_length), drawn(toy, 2)
    session = InferenceSession(model)
    expected = session.act(inputs, noise=noise)
    assert torch.equal(session.act(replace(inputs, view_valid=None, attention_mask=None), noise=noise), expected)


def test_neither_the_model_nor_the_noise_nor_the_inputs_change(toy: InternVLAA1Config, model: InternVLAA1) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs, noise = random_inputs(toy, 2, 12), drawn(toy, 2)
    copies = {name: value.clone() for name, value in vars(inputs).items() if isinstance(value, torch.Tensor)}
    start = noise.clone()
    InferenceSession(model).act(inputs, noise=noise)
    assert torch.equal(noise, start)
    assert all(torch.equal(getattr(inputs, name), value) for name, value in copies.items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_the_model_learns_later_does_not_reach_the_session(toy: InternVLAA1Config) -> None:
    model, inputs, noise = randomised(toy), random_inputs(toy, 1, 16), drawn(toy, 1)
    sessions = [InferenceSession(model, kernel=kernel) for kernel in KERNELS[:2]]
    before = [session.act(inputs, noise=noise) for session in sessions]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    for session, actions in zip(sessions, before, strict=True):
        assert torch.equal(session.act(inputs, noise=noise), actions)
        fresh = InferenceSession(randomised(toy), kernel="aten").act(inputs, noise=noise, steps=5)
        torch.testing.assert_close(session.act(inputs, noise=noise, steps=5), fresh, rtol=0, atol=1e-5)


def test_making_a_session_draws_nothing_and_its_actions_can_be_changed(toy: InternVLAA1Config) -> None:
    model, inputs = randomised(toy), random_inputs(toy, 1, 17)
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    session = InferenceSession(model)
    assert torch.equal(torch.randn(3), expected)
    session.act(inputs).add_(1)


def test_autocast_around_it_changes_nothing(toy: InternVLAA1Config, model: InternVLAA1) -> None:
    inputs, noise = random_inputs(toy, 1, 18), drawn(toy, 1)
    session = InferenceSession(model)
    expected = session.act(inputs, noise=noise)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(session.act(inputs, noise=noise), expected)


def test_calls_of_different_shapes_do_not_disturb_each_other(toy: InternVLAA1Config, model: InternVLAA1) -> None:
    calls = [saying(random_inputs(toy, batch, 20 + words), words) for batch in (1, 2) for words in range(1, 6)]
    session = InferenceSession(model, shapes=3)
    for _ in range(2):
        for inputs in calls:
            noise = drawn(toy, inputs.state.shape[0])
            torch.testing.assert_close(
                session.act(inputs, noise=noise), model.act(inputs, noise=noise), rtol=0, atol=1e-5
            )


def test_in_bfloat16_it_errs_little_more_than_the_plain_model(toy: InternVLAA1Config) -> None:
    model = randomised(toy).bfloat16()
    inputs = random_inputs(toy, 4, 13)
    noise = drawn(toy, 4)
    exact = randomised(toy).bfloat16().double().act(as_dtype(inputs, torch.float64), noise=noise.double())

    def error(actions: torch.Tensor) -> float:
        return (actions.double() - exact).square().mean().sqrt().item()

    plain = error(model.act(inputs, noise=noise))
    for kernel in KERNELS[:2]:
        session = InferenceSession(model, kernel=kernel, dtype=torch.bfloat16)
        assert error(session.act(inputs, noise=noise)) <= 1.5 * plain
    wide = InferenceSession(model, dtype=torch.float32)
    assert error(wide.act(inputs, noise=noise)) < 0.1 * plain


@pytest.mark.usefixtures("without_shape_checks")
def test_what_does_not_fit_is_named() -> None:
    config = toy_config()
    model, inputs = randomised(config), random_inputs(config, 1, 14)
    session = InferenceSession(model)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"state": torch.full((1, 3), torch.nan)}, "state: expected finite values"),
        ({"attention_mask": torch.zeros(1, 5, dtype=torch.bool)}, "attention_mask: expected a token in every sample"),
        (
            {"frames": 2 * torch.ones_like(inputs.frames)},
            r"frames: expected floats in \[0, 1\], got floats in \[2, 2\]",
        ),
        ({"frames": inputs.frames[..., :16, :16]}, r"frames: expected shape \(1, 3, 3, 32, 32\)"),
        ({"latents": torch.zeros(1, 3, 2, 4, 5, 5)}, r"latents: expected shape \(1, 3, 2, 4, 4, 4\)"),
        ({"view_valid": torch.ones(1, 2, dtype=torch.bool)}, r"view_valid: expected shape \(1, 3\), got \(1, 2\)"),
    ]
    for change, message in wrong:
        with pytest.raises(ValueError, match=message):
            session.act(replace(inputs, **change))
    with pytest.raises(ValueError, match=r"noise: expected shape \(1, 4, 5\), got \(1, 4, 4\)"):
        session.act(inputs, noise=torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="prefix"):
        session.act(inputs, prefix=torch.zeros(1, 5, 5))
    with pytest.raises(ValueError, match=r"method: expected .* got 'rk4'"):
        session.act(inputs, method="rk4")
    with pytest.raises(ValueError, match=r"steps: expected .* 1, got 0"):
        session.act(inputs, steps=0)
    with pytest.raises(ValueError, match="step: expected None for inputs that bring the earlier frame"):
        session.act(inputs, step=3)
    wrong_options: list[tuple[dict[str, Any], str]] = [
        ({"kernel": "onednn", "compiled": True}, "kernel: expected 'aten' or 'measured' with compiled=True"),
        ({"kernel": "mkl"}, "kernel: expected one of 'measured', 'aten', 'onednn', got 'mkl'"),
        ({"float8": True}, r"float8: expected a CUDA device of capability 8\.9 or newer, got cpu"),
        ({"graphs": True}, "graphs: expected a model on CUDA, got one on cpu"),
        ({"shapes": 0}, "shapes: expected at least 1, got 0"),
        ({"batch": 0}, "batch: expected at least 1, got 0"),
    ]
    for options, message in wrong_options:
        with pytest.raises(ValueError, match=message):
            InferenceSession(model, **options)
    with pytest.raises(ValueError, match=r"kernel: expected oneDNN's operators for torch.float64 on cpu"):
        InferenceSession(model.double(), kernel="onednn")


def test_taking_a_model_over_holds_its_weights_once(toy: InternVLAA1Config) -> None:
    inputs, noise = random_inputs(toy, 1, 21), drawn(toy, 1)
    expected = InferenceSession(randomised(toy), kernel="onednn").act(inputs, noise=noise)
    model = randomised(toy)
    weight = weakref.ref(model.mot.expert("act").layer(0).attention.output.weight)
    session = InferenceSession(model, kernel="onednn", take_over=True)
    assert session.model is model
    assert weight() is None  # its packed copy alone is left
    assert torch.equal(session.act(inputs, noise=noise), expected)


def test_a_call_during_another_threads_is_refused(
    toy: InternVLAA1Config, model: InternVLAA1, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, inputs, noise = InferenceSession(model, kernel="aten"), random_inputs(toy, 1, 18), drawn(toy, 1)
    expected = session.act(inputs, noise=noise)
    inside, outside = Event(), Event()
    denoise = session.model.denoise

    def slow(*args: object, **options: object) -> Tensor:
        inside.set()
        assert outside.wait(20)
        return denoise(*args, **options)

    monkeypatch.setattr(session.model, "denoise", slow)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(session.act, inputs, noise=noise)
        assert inside.wait(20)
        for call in (partial(session.act, inputs, noise=noise), partial(session.imagine, inputs), session.reset):
            with pytest.raises(RuntimeError, match="expected one call at a time, got one while another thread's runs"):
                call()
        outside.set()
        assert torch.equal(running.result(20), expected)
    monkeypatch.undo()
    assert torch.equal(session.act(inputs, noise=noise), expected)  # nothing stays locked


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_session_says_why_it_cannot_be_copied(copied: Callable[[object], object], model: InternVLAA1) -> None:
    with pytest.raises(TypeError, match="InferenceSession: cannot be copied or pickled, packed weights"):
        copied(InferenceSession(model, kernel="aten"))


def test_in_place_training_of_any_parameter_leaves_the_session_as_it_is(toy: InternVLAA1Config) -> None:
    model, inputs, noise = randomised(toy), random_inputs(toy, 1, 19), drawn(toy, 1)
    session = InferenceSession(model, kernel="aten")
    actions, imagined = session.act(inputs, noise=noise), session.imagine(inputs).latents
    trained = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held = {tensor.untyped_storage().data_ptr() for tensor in session.model.state_dict().values()}
    assert not trained & held
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    assert torch.equal(session.act(inputs, noise=noise), actions)
    assert torch.equal(session.imagine(inputs).latents, imagined)


def test_latents_of_a_missing_camera_may_be_anything_in_a_ragged_batch(
    toy: InternVLAA1Config, model: InternVLAA1
) -> None:
    valid, noise = torch.tensor([[True, False, True], [False, True, True]]), drawn(toy, 2)
    latents = torch.randn(2, toy.views, 2, *toy.latent_shape, generator=torch.Generator().manual_seed(3))
    inputs = replace(random_inputs(toy, 2, 23), view_valid=valid, latents=latents)
    odd = torch.where(valid[:, :, None, None, None, None], latents, torch.nan)
    session = InferenceSession(model, kernel="aten")
    expected = session.act(inputs, noise=noise)
    assert torch.equal(session.act(replace(inputs, latents=odd), noise=noise), expected)
    torch.testing.assert_close(model.act(inputs, noise=noise), expected, rtol=0, atol=1e-5)
