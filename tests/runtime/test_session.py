"""The session against the plain model: the same answers, whatever is missing."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from toy_inference import as_dtype, saying, still
from toy_model import randomised, toy_config, without_views

from moteur.flowmatch import Method
from moteur.recipes.config import InternVLAA1Config
from moteur.recipes.internvla_a1 import InternVLAA1
from moteur.runtime import InferenceSession, Kernel

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
    inputs = as_dtype(without_views(toy, still(toy, batch, 5), views), torch.float64)
    noise = drawn(toy, batch, torch.float64)
    session = InferenceSession(model, inputs.image_grid)
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
    inputs, noise = without_views(toy, still(toy, 2, 6), views), drawn(toy, 2)
    session = InferenceSession(model, inputs.image_grid, kernel=kernel)
    difference = session.act(inputs, noise=noise) - model.act(inputs, noise=noise)
    assert difference.abs().max() < 1e-5


def test_a_frozen_prefix_other_steps_and_no_noise_work_as_in_the_plain_model(
    toy: InternVLAA1Config, model: InternVLAA1
) -> None:
    inputs, prefix = still(toy, 2, 7), torch.randn(2, 2, toy.action_dim)
    session = InferenceSession(model, inputs.image_grid)
    options: list[dict[str, Any]] = [{"prefix": prefix}, {"prefix": prefix[:, :0]}, {"steps": 1}, {"steps": 7}]
    for option in options:
        seeds = [torch.Generator().manual_seed(3) for _ in range(2)]
        plain = model.act(inputs, generator=seeds[0], **option)
        torch.testing.assert_close(session.act(inputs, generator=seeds[1], **option), plain, rtol=0, atol=1e-5)
    assert torch.equal(session.act(inputs, prefix=prefix)[:, :2], prefix)


@pytest.mark.parametrize("seen", ["all", "one missing in the middle", "another one in each sample"])
def test_it_imagines_what_the_plain_model_imagines(toy: InternVLAA1Config, model: InternVLAA1, seen: str) -> None:
    views = torch.tensor(SEEN[seen], dtype=torch.bool)
    inputs = without_views(toy, still(toy, 2, 8), views)
    ours = InferenceSession(model, inputs.image_grid).imagine(inputs, decode=True)
    plain = model.imagine(inputs, decode=True)
    assert ours.images is not None
    assert plain.images is not None
    torch.testing.assert_close(ours.latents[views], plain.latents[views], rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.images[views], plain.images[views], rtol=0, atol=1e-4)


def test_without_a_generation_expert_it_acts(toy: InternVLAA1Config) -> None:
    model = randomised(toy.without_foresight())
    inputs, noise = replace(still(toy, 1, 9), frames=None), drawn(toy, 1)
    session = InferenceSession(model, inputs.image_grid)
    torch.testing.assert_close(session.act(inputs, noise=noise), model.act(inputs, noise=noise), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="imagine: expected a model with a generation expert"):
        session.imagine(inputs)
    with pytest.raises(ValueError, match="push: expected a model with a generation expert"):
        session.push(0, torch.zeros(1, 3, 3, 32, 32))


def test_what_a_missing_camera_holds_changes_nothing_not_even_when_it_is_not_a_number(
    toy: InternVLAA1Config, model: InternVLAA1
) -> None:
    views = torch.tensor(SEEN["another one in each sample"], dtype=torch.bool)
    inputs, noise = without_views(toy, still(toy, 2, 10), views), drawn(toy, 2)
    session = InferenceSession(model, inputs.image_grid)
    expected = session.act(inputs, noise=noise)
    assert inputs.frames is not None
    frames = torch.where(views[:, :, None, None, None, None], inputs.frames, torch.nan)
    rows = [view for view, (row, column) in enumerate(inputs.image_grid) for _ in range(row * column)]
    pixels = torch.where(views[:, rows][..., None], inputs.pixel_values, torch.nan)
    assert torch.equal(session.act(replace(inputs, frames=frames, pixel_values=pixels), noise=noise), expected)


def test_neither_the_model_nor_the_noise_nor_the_inputs_change(toy: InternVLAA1Config, model: InternVLAA1) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs, noise = still(toy, 2, 12), drawn(toy, 2)
    copies = {name: value.clone() for name, value in vars(inputs).items() if isinstance(value, torch.Tensor)}
    start = noise.clone()
    InferenceSession(model, inputs.image_grid).act(inputs, noise=noise)
    assert torch.equal(noise, start)
    assert all(torch.equal(getattr(inputs, name), value) for name, value in copies.items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_the_model_learns_later_does_not_reach_the_session(toy: InternVLAA1Config) -> None:
    model, inputs, noise = randomised(toy), still(toy, 1, 16), drawn(toy, 1)
    sessions = [InferenceSession(model, inputs.image_grid, kernel=kernel) for kernel in KERNELS[:2]]
    before = [session.act(inputs, noise=noise) for session in sessions]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(1.0 if "text_embedding" in name else 1.3)
    for session, actions in zip(sessions, before, strict=True):
        assert torch.equal(session.act(inputs, noise=noise), actions)
        fresh = InferenceSession(randomised(toy), inputs.image_grid, kernel="aten").act(inputs, noise=noise, steps=5)
        torch.testing.assert_close(session.act(inputs, noise=noise, steps=5), fresh, rtol=0, atol=1e-5)


def test_making_a_session_draws_nothing_and_its_actions_can_be_changed(toy: InternVLAA1Config) -> None:
    model, inputs = randomised(toy), still(toy, 1, 17)
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    session = InferenceSession(model, inputs.image_grid)
    assert torch.equal(torch.randn(3), expected)
    session.act(inputs).add_(1)


def test_autocast_around_it_changes_nothing(toy: InternVLAA1Config, model: InternVLAA1) -> None:
    inputs, noise = still(toy, 1, 18), drawn(toy, 1)
    session = InferenceSession(model, inputs.image_grid)
    expected = session.act(inputs, noise=noise)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(session.act(inputs, noise=noise), expected)


def test_calls_of_different_shapes_do_not_disturb_each_other(toy: InternVLAA1Config, model: InternVLAA1) -> None:
    calls = [saying(still(toy, batch, 20 + words), toy, words) for batch in (1, 2) for words in range(1, 6)]
    session = InferenceSession(model, calls[0].image_grid, shapes=3)
    for _ in range(2):
        for inputs in calls:
            noise = drawn(toy, inputs.state.shape[0])
            torch.testing.assert_close(
                session.act(inputs, noise=noise), model.act(inputs, noise=noise), rtol=0, atol=1e-5
            )
    assert len(session._programs) == 3


def test_in_bfloat16_it_errs_little_more_than_the_plain_model(toy: InternVLAA1Config) -> None:
    model = randomised(toy).bfloat16()
    inputs = still(toy, 4, 13)
    noise = drawn(toy, 4)
    exact = randomised(toy).bfloat16().double().act(as_dtype(inputs, torch.float64), noise=noise.double())

    def error(actions: torch.Tensor) -> float:
        return (actions.double() - exact).square().mean().sqrt().item()

    plain = error(model.act(inputs, noise=noise))
    for kernel in KERNELS[:2]:
        session = InferenceSession(model, inputs.image_grid, kernel=kernel, dtype=torch.bfloat16)
        assert error(session.act(inputs, noise=noise)) <= 1.5 * plain
    wide = InferenceSession(model, inputs.image_grid, dtype=torch.float32)
    assert error(wide.act(inputs, noise=noise)) < 0.1 * plain


@pytest.mark.usefixtures("without_shape_checks")
def test_what_does_not_fit_is_named() -> None:
    config = toy_config()
    model, inputs = randomised(config), still(config, 1, 14)
    session = InferenceSession(model, inputs.image_grid)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"image_grid": ((4, 4), (4, 4), (4, 4))}, r"pixel_values: expected shape \(1, 48\)"),
        ({"state": torch.full((1, 3), torch.nan)}, "state: expected finite values"),
        ({"und_valid": torch.zeros_like(inputs.und_valid)}, r"und_valid: expected a valid token.* in samples \[0\]"),
        ({"pixel_values": torch.rand_like(inputs.pixel_values)}, "pixel_values: expected still images"),
        ({"frames": None}, "inputs: expected frames or latents for the generation expert, got neither"),
        (
            {"frames": 2 * torch.ones_like(inputs.frames)},
            r"frames: expected floats in \[0, 1\], got floats in \[2, 2\]",
        ),
        ({"latents": torch.zeros(1, 3, 2, 4, 4, 4)}, "inputs: expected either frames or latents .*, got both"),
        (
            {"latents": torch.zeros(1, 3, 2, 4, 5, 5), "frames": None},
            r"latents: expected shape \(4, 4, 4\), got \(4, 5, 5\)",
        ),
        ({"pixel_values": inputs.pixel_values[..., :64]}, r"pixel_values: expected shape \(384,\), got \(64,\)"),
    ]
    for change, message in wrong:
        with pytest.raises(ValueError, match=message):
            session.act(replace(inputs, **change))
    with pytest.raises(ValueError, match=r"noise: expected shape \(1, 4, 5\), got \(1, 4, 4\)"):
        session.act(inputs, noise=torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="prefix: expected the first steps"):
        session.act(inputs, prefix=torch.zeros(1, 5, 5))
    with pytest.raises(ValueError, match="method: expected one of 'euler', 'midpoint', 'heun', got 'rk4'"):
        session.act(inputs, method="rk4")
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        session.act(inputs, steps=0)
    with pytest.raises(ValueError, match="kernel: expected 'aten' or 'measured' with compiled=True, got 'onednn'"):
        InferenceSession(model, inputs.image_grid, kernel="onednn", compiled=True)
    with pytest.raises(ValueError, match="grid: expected 3 views, got 1"):
        InferenceSession(model, ((4, 4),))
    with pytest.raises(ValueError, match="kernel: expected one of 'measured', 'aten', 'onednn', got 'mkl'"):
        InferenceSession(model, inputs.image_grid, kernel="mkl")
    with pytest.raises(ValueError, match=r"kernel: expected oneDNN's operators for torch.float64 on cpu"):
        InferenceSession(model.double(), inputs.image_grid, kernel="onednn")
    with pytest.raises(ValueError, match=r"float8: expected a CUDA device of capability 8\.9 or newer, got cpu"):
        InferenceSession(model, inputs.image_grid, float8=True)
    with pytest.raises(ValueError, match="graphs: expected a model on CUDA, got one on cpu"):
        InferenceSession(model, inputs.image_grid, graphs=True)
    with pytest.raises(ValueError, match="shapes: expected at least 1, got 0"):
        InferenceSession(model, inputs.image_grid, shapes=0)
    with pytest.raises(ValueError, match="batch: expected at least 1, got 0"):
        InferenceSession(model, inputs.image_grid, batch=0)
