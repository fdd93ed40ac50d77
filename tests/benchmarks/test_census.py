"""The census counts what is known by hand: operations, those that look at values, floating-point operations."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # the benchmarks are no package

from census import census


def test_views_and_allocations_are_no_kernels() -> None:
    x = torch.ones(4, 6)
    found = census(lambda: torch.empty_like(x).view(6, 4).mT[1:].unflatten(0, (3, 1)).chunk(2))
    assert not found.kernels
    assert found.views >= 4


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_linear_map_is_one_product_whichever_way_gradients_are_switched_off(context: type) -> None:
    x, weight, bias = torch.ones(5, 3), torch.ones(4, 3), torch.ones(4)
    with context():
        found = census(lambda: F.linear(x, weight, bias))
    assert found.kernels == {"addmm": 1}
    assert found.flops == 2 * 5 * 3 * 4


def test_attention_and_packed_products_count_a_multiply_add_as_two() -> None:
    query, key = torch.ones(1, 2, 5, 8), torch.ones(1, 2, 7, 8)
    with torch.no_grad():
        assert census(lambda: F.scaled_dot_product_attention(query, key, key)).flops == 2 * (2 * 2 * 5 * 7 * 8)
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return
    packed = torch.ops.mkldnn._reorder_linear_weight(torch.ones(16, 8), 5)
    found = census(lambda: torch.ops.mkldnn._linear_pointwise(torch.ones(5, 8), packed, None, "none", [], ""))
    assert found.flops == 2 * 5 * 8 * 16


def test_what_depends_on_values_is_named() -> None:
    x, mask, numbers = torch.arange(4.0), torch.tensor([True, False, True, True]), torch.tensor([2, 0])
    found = census(
        lambda: (x[numbers], x[numbers], x[mask], mask.nonzero(), x.sum().item(), x.index_select(0, numbers))
    )
    assert set(found.dependent) == {"index", "nonzero", "_local_scalar_dense"}
    assert found.dependent["index"] == 1


def test_lists_and_arrays_made_of_tensors_are_counted_and_still_made() -> None:
    x = torch.arange(3)
    lists: list[object] = []
    found = census(lambda: lists.extend([x.tolist(), x.numpy().sum()]))
    assert lists == [[0, 1, 2], 3]
    assert found.reads == {"tolist": 1, "numpy": 1}
    assert "patch" not in torch.Tensor.tolist.__qualname__
