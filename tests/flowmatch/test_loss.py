"""The masked loss against a loop over elements, and its gradients at what is padded."""

import itertools
import math
import re
from typing import Literal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moteur.flowmatch import flow_loss


def velocities(device: torch.device, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    predicted, target = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64).to(device, dtype)
    return predicted, target


def slow_loss(
    predicted: torch.Tensor,
    target: torch.Tensor,
    steps: list[list[bool]],
    dims: list[list[bool]],
    samples: list[bool],
) -> float:
    """Mean over valid elements, one by one."""
    squares = [
        float(predicted[b, i, j] - target[b, i, j]) ** 2
        for b in range(predicted.shape[0])
        for i in range(predicted.shape[1])
        for j in range(predicted.shape[2])
        if samples[b] and steps[b][i] and dims[b][j]
    ]
    return math.fsum(squares) / len(squares) if squares else 0.0


def bools(*shape: int) -> st.SearchStrategy:
    strategy: st.SearchStrategy = st.booleans()
    for size in reversed(shape):
        strategy = st.lists(strategy, min_size=size, max_size=size)
    return strategy


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=bools(3, 4), dims=bools(3, 5), samples=bools(3))
def test_the_loss_is_the_mean_over_valid_elements_whatever_the_rest_holds(
    steps: list[list[bool]], dims: list[list[bool]], samples: list[bool]
) -> None:
    predicted, target = velocities(torch.device("cpu"))
    masks = torch.tensor(steps), torch.tensor(dims), torch.tensor(samples)
    valid = masks[0][:, :, None] & masks[1][:, None, :] & masks[2][:, None, None]
    poisoned = torch.where(valid, target, math.nan)
    dirty = torch.where(valid, predicted, math.inf).requires_grad_()
    loss = flow_loss(dirty, poisoned, valid_steps=masks[0], valid_dims=masks[1], valid_samples=masks[2])
    assert loss.item() == pytest.approx(slow_loss(predicted, target, steps, dims, samples), rel=1e-14)
    loss.backward()
    expected = torch.where(valid, 2 * (predicted - target) / valid.sum().clamp(min=1), 0)
    torch.testing.assert_close(dirty.grad, expected, rtol=1e-14, atol=0)
    assert (dirty.grad[~valid] == 0).all()


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=bools(3, 4), dims=bools(3, 5), samples=bools(3), valid=bools(3, 4, 5))
def test_parts_samples_and_elements_are_those_of_a_loop_whatever_the_rest_holds(
    steps: list[list[bool]], dims: list[list[bool]], samples: list[bool], valid: list[list[list[bool]]]
) -> None:
    predicted, target = velocities(torch.device("cpu"))
    expected = torch.zeros_like(predicted)
    counts = [0, 0, 0]
    for b, i, j in itertools.product(range(3), range(4), range(5)):
        if samples[b] and steps[b][i] and dims[b][j] and valid[b][i][j]:
            expected[b, i, j] = (predicted[b, i, j] - target[b, i, j]) ** 2
            counts[b] += 1
        else:
            predicted[b, i, j], target[b, i, j] = math.nan, math.inf
    masks = {
        "valid": torch.tensor(valid),
        "valid_steps": torch.tensor(steps),
        "valid_dims": torch.tensor(dims),
        "valid_samples": torch.tensor(samples),
    }
    close = {"rtol": 1e-14, "atol": 0}
    assert torch.equal(flow_loss(predicted, target, **masks, reduction="none"), expected)
    per_sample = torch.stack([expected[b].sum() / max(counts[b], 1) for b in range(3)])
    torch.testing.assert_close(flow_loss(predicted, target, **masks, reduction="sample"), per_sample, **close)
    total, count = flow_loss(predicted, target, **masks, reduction="parts")
    assert count.item() == sum(counts)
    torch.testing.assert_close(total, expected.sum(), **close)
    torch.testing.assert_close(flow_loss(predicted, target, **masks), expected.sum() / max(sum(counts), 1), **close)


def test_one_mask_of_every_element_equals_a_mask_for_each_axis(device: torch.device) -> None:
    predicted, target = velocities(device)
    steps, dims = torch.rand(3, 4, device=device) > 0.5, torch.rand(3, 5, device=device) > 0.5
    samples = torch.tensor([True, False, True], device=device)
    whole = steps[:, :, None] & dims[:, None, :] & samples[:, None, None]
    for reduction in ("valid", "sample", "none"):
        expected = flow_loss(
            predicted, target, valid_steps=steps, valid_dims=dims, valid_samples=samples, reduction=reduction
        )
        assert torch.equal(flow_loss(predicted, target, valid=whole, reduction=reduction), expected)


@pytest.mark.parametrize("axes", [(), (4,), (2, 3), (2, 1, 3)])
def test_any_number_of_axes_counts_as_one_long_chunk(device: torch.device, axes: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(2)
    steps = math.prod(axes)
    predicted, target = torch.randn(2, 3, *axes, 5, generator=draw, dtype=torch.float64).to(device)
    masks = {
        "valid": torch.rand(3, *axes, 5, generator=draw) > 0.3,
        "valid_steps": torch.rand(3, *axes, generator=draw) > 0.3,
        "valid_dims": torch.rand(3, 5, generator=draw) > 0.3,
        "valid_samples": torch.tensor([True, True, False]),
    }
    shapes = {"valid": (3, steps, 5), "valid_steps": (3, steps)}
    masks = {name: mask.to(device) for name, mask in masks.items()}
    flat = {name: mask.reshape(shapes.get(name, mask.shape)) for name, mask in masks.items()}
    long = predicted.reshape(3, steps, 5), target.reshape(3, steps, 5)
    for reduction in ("valid", "sample", "released"):
        expected = flow_loss(*long, **flat, reduction=reduction)
        torch.testing.assert_close(flow_loss(predicted, target, **masks, reduction=reduction), expected)
    elements = flow_loss(predicted, target, **masks, reduction="none")
    assert torch.equal(elements.reshape(3, steps, 5), flow_loss(*long, **flat, reduction="none"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["valid", "released"])
def test_a_batch_without_actions_gives_zero_with_a_gradient_of_zero(
    device: torch.device, dtype: torch.dtype, reduction: Literal["valid", "released"]
) -> None:
    predicted = torch.full((3, 4, 5), math.nan, device=device, dtype=dtype, requires_grad=True)
    nobody = torch.zeros(3, dtype=torch.bool, device=device)
    loss = flow_loss(predicted, torch.full_like(predicted, math.inf), valid_samples=nobody, reduction=reduction)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(predicted.grad, torch.zeros_like(predicted))


def test_all_steps_padded_or_all_dimensions_padded_gives_zero(device: torch.device) -> None:
    predicted, target = velocities(device)
    for mask in ({"valid_steps": torch.zeros(3, 4)}, {"valid_dims": torch.zeros(3, 5)}):
        leaf = predicted.clone().requires_grad_()
        loss = flow_loss(leaf, target, **{name: value.bool().to(device) for name, value in mask.items()})
        loss.backward()
        assert loss.item() == 0
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


def test_without_masks_it_is_the_plain_mean_squared_error(device: torch.device) -> None:
    predicted, target = velocities(device)
    expected = torch.nn.functional.mse_loss(predicted, target)
    torch.testing.assert_close(flow_loss(predicted, target), expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(flow_loss(predicted, target, reduction="released"), expected, rtol=1e-14, atol=0)


def test_the_released_reduction_counts_padding_but_not_samples_without_actions(device: torch.device) -> None:
    predicted, target = velocities(device)
    steps = torch.rand(3, 4, device=device) > 0.5
    dims = torch.rand(3, 5, device=device) > 0.5
    samples = torch.tensor([True, False, True], device=device)
    target = torch.where(samples[:, None, None], target, math.nan)
    loss = flow_loss(predicted, target, valid_steps=steps, valid_dims=dims, valid_samples=samples, reduction="released")
    expected = torch.nn.functional.mse_loss(predicted[[0, 2]], target[[0, 2]])
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)


def test_half_precision_is_averaged_in_float32(device: torch.device) -> None:
    # 4096 + 1 is 4096 in float16 and bfloat16: a mean taken there would lose the second half of these ones.
    predicted = torch.ones(64, 64, 2, device=device, dtype=torch.bfloat16)
    loss = flow_loss(predicted, torch.zeros_like(predicted))
    assert loss.dtype == torch.float32
    assert loss.item() == 1


def test_padding_a_chunk_changes_nothing(device: torch.device) -> None:
    predicted, target = velocities(device)
    wide = torch.full((3, 9, 8), 7.0, dtype=torch.float64, device=device)
    padded = wide.clone()
    padded[:, :4, :5] = predicted
    padded_target = -wide
    padded_target[:, :4, :5] = target
    steps = (torch.arange(9, device=device) < 4).expand(3, 9)
    dims = (torch.arange(8, device=device) < 5).expand(3, 8)
    own = flow_loss(padded, padded_target, valid_steps=steps, valid_dims=dims)
    torch.testing.assert_close(own, flow_loss(predicted, target), rtol=1e-14, atol=0)


@pytest.mark.usefixtures("without_shape_checks")
def test_the_loss_becomes_one_graph(device: torch.device) -> None:
    predicted, target = velocities(device, torch.float32)
    steps = torch.rand(3, 4, device=device) > 0.5
    compiled = torch.compile(flow_loss, fullgraph=True, backend="eager")
    assert torch.equal(compiled(predicted, target, valid_steps=steps), flow_loss(predicted, target, valid_steps=steps))


@pytest.mark.usefixtures("without_shape_checks")
def test_mistakes_are_named_with_both_numbers(device: torch.device) -> None:
    predicted, target = velocities(device)
    with pytest.raises(ValueError, match=r"target: expected shape \(3, 4, 5\) to fit predicted, got \(3, 4, 1\)"):
        flow_loss(predicted, target[..., :1])
    with pytest.raises(ValueError, match=r"predicted: expected at least the axes \(batch, action\), got shape \(3,\)"):
        flow_loss(predicted[:, 0, 0], target[:, 0, 0])
    for name, wrong, fits in (
        ("valid", (3, 4, 1), (3, 4, 5)),
        ("valid_steps", (3, 5), (3, 4)),
        ("valid_dims", (3, 4), (3, 5)),
        ("valid_samples", (1,), (3,)),
    ):
        mask = torch.ones(wrong, dtype=torch.bool, device=device)
        with pytest.raises(ValueError, match=re.escape(f"{name}: expected shape {fits} to fit predicted, got {wrong}")):
            flow_loss(predicted, target, **{name: mask})
    with pytest.raises(
        ValueError, match="reduction: expected 'valid', 'released', 'parts', 'sample' or 'none', got 'mean'"
    ):
        flow_loss(predicted, target, reduction="mean")


@pytest.mark.usefixtures("without_shape_checks")
def test_velocities_that_are_not_real_and_masks_that_are_not_boolean_are_refused_by_name(device: torch.device) -> None:
    predicted, target = velocities(device)
    with pytest.raises(ValueError, match=r"^predicted: expected floating point, got torch.complex128$"):
        flow_loss(predicted.to(torch.complex128), target)
    with pytest.raises(ValueError, match=r"^target: expected floating point, got torch.int64$"):
        flow_loss(predicted, target.long())
    for name, shape in (("valid", (3, 4, 5)), ("valid_steps", (3, 4)), ("valid_dims", (3, 5)), ("valid_samples", (3,))):
        for dtype in (torch.uint8, torch.int64, torch.float32):
            with pytest.raises(ValueError, match=f"^{name}: expected torch.bool, got {dtype}$"):
                flow_loss(predicted, target, **{name: torch.full(shape, 2, dtype=dtype, device=device)})
