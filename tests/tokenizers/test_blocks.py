"""Sizes of a Cosmos tokenizer."""

from dataclasses import replace
from typing import Any

import pytest

from moteur.tokenizers import CosmosEncoder, CosmosSize


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"channels": 0}, r"channels: expected a positive number, got 0"),
        ({"residual_blocks": 0}, r"residual_blocks: expected a positive number, got 0"),
        ({"eps": 0.0}, r"eps: expected a positive number, got 0.0"),
        ({"multipliers": ()}, r"multipliers: expected one or more positive numbers, got \(\)"),
        ({"multipliers": (1, 0)}, r"multipliers: expected one or more positive numbers, got \(1, 0\)"),
        ({"patch": 3}, r"patch: expected a power of two, got 3"),
        ({"downsamplings": 4}, r"downsamplings: expected 0 to 3, the number of levels, got 4"),
        ({"downsamplings": -1}, r"downsamplings: expected 0 to 3, the number of levels, got -1"),
    ],
)
def test_sizes_that_make_no_tokenizer_are_refused(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CosmosSize.ci8x8(), **sizes)


def test_widths_that_the_groups_do_not_divide_are_refused_by_torch() -> None:
    with pytest.raises(ValueError, match=r"num_channels .* divisible by num_groups"):
        CosmosEncoder(replace(CosmosSize.ci8x8(), channels=40), device="meta")
