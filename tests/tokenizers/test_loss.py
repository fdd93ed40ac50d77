from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moteur.tokenizers import foresight_loss

GoldenTensors = Callable[[str], dict[str, torch.Tensor]]


@pytest.mark.parametrize("case", ["all_cameras", "dropped_camera"])
def test_loss_equals_the_recorded_one(golden_tensors: GoldenTensors, device: torch.device, case: str) -> None:
    recorded = golden_tensors(f"internvla_a1_3b/{case}")
    loss = foresight_loss(
        recorded["train.pred_latent"].to(device),
        recorded["cosmos.latent"][:, :, 2].to(device),
        recorded["in.img_masks"].to(device),
    )
    torch.testing.assert_close(loss.cpu(), recorded["train.loss_gen"].squeeze(), rtol=1e-6, atol=0)


@given(valid=st.lists(st.booleans(), min_size=6, max_size=6), seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_loss_and_gradient_are_those_of_the_valid_views_alone(valid: list[bool], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    view_valid = torch.tensor(valid).reshape(2, 3)
    predicted, target = torch.randn(2, 2, 3, 4, 5, 6, dtype=torch.float64, generator=generator)
    predicted[~view_valid] = float("nan")
    target[~view_valid] = float("inf")
    predicted.requires_grad_()
    loss = foresight_loss(predicted, target, view_valid)
    loss.backward()
    difference = predicted.detach()[view_valid] - target[view_valid]
    count = max(difference.numel(), 1)
    torch.testing.assert_close(loss.detach(), difference.square().sum() / count, rtol=1e-13, atol=0)
    expected = torch.zeros_like(predicted)
    expected[view_valid] = 2 * difference / count
    torch.testing.assert_close(predicted.grad, expected, rtol=1e-13, atol=0)
    assert (predicted.grad[~view_valid] == 0).all()


@pytest.mark.parametrize("fill", [0.0, float("nan"), float("inf")])
def test_without_any_view_the_loss_and_its_gradient_are_zero(device: torch.device, fill: float) -> None:
    predicted = torch.full((2, 3, 4, 5, 6), fill, device=device, requires_grad=True)
    loss = foresight_loss(
        predicted, torch.full_like(predicted, fill), torch.zeros(2, 3, dtype=torch.bool, device=device)
    )
    loss.backward()
    assert loss.item() == 0
    assert (predicted.grad == 0).all()


def test_no_mask_means_every_view(device: torch.device) -> None:
    predicted, target = torch.randn(2, 2, 3, 4, 5, 6, dtype=torch.float64, device=device)
    everywhere = torch.ones(2, 3, dtype=torch.bool, device=device)
    torch.testing.assert_close(foresight_loss(predicted, target), foresight_loss(predicted, target, everywhere))


def test_no_gradient_enters_the_target() -> None:
    predicted = torch.randn(1, 1, 2, 2, 2, requires_grad=True)
    target = torch.randn(1, 1, 2, 2, 2, requires_grad=True)
    foresight_loss(predicted, target).backward()
    assert predicted.grad is not None
    assert target.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_adds_up_in_float32(device: torch.device, dtype: torch.dtype) -> None:
    # 300² alone exceeds what float16 can hold.
    predicted = torch.full((2, 3, 16, 32, 32), 300.0, dtype=dtype, device=device)
    loss = foresight_loss(predicted, torch.zeros_like(predicted))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(90_000)


@pytest.mark.usefixtures("without_shape_checks")
def test_it_compiles_into_one_graph(device: torch.device) -> None:
    predicted, target = torch.randn(2, 2, 3, 4, 5, 6, device=device)
    view_valid = torch.tensor([[True, False, True], [False, False, True]], device=device)
    compiled = torch.compile(foresight_loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(predicted, target, view_valid), foresight_loss(predicted, target, view_valid))


@pytest.mark.usefixtures("without_shape_checks")
def test_shapes_that_do_not_fit_are_refused() -> None:
    # The run-time shape checker would refuse them first; users run without it.
    latents = torch.zeros(1, 2, 3, 4, 4)
    with pytest.raises(
        ValueError, match=r"target: expected the shape of predicted \(1, 2, 3, 4, 4\), got \(1, 2, 3, 4, 5\)"
    ):
        foresight_loss(latents, torch.zeros(1, 2, 3, 4, 5))
    with pytest.raises(
        ValueError, match=r"view_valid: expected torch.bool of shape \(1, 2\), got torch.bool of \(1, 3\)"
    ):
        foresight_loss(latents, latents, torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"view_valid: expected torch.bool of shape .*, got torch.float32 of"):
        foresight_loss(latents, latents, torch.ones(1, 2))
