"""Mistakes of the caller are errors that name the argument, what was expected and what came."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moteur.mot import Expert, MoT


def first_returned(query: Tensor, _key: Tensor, _value: Tensor) -> Tensor:
    return query


SIZES = {"dim": 8, "depth": 1, "heads": 4, "kv_heads": 2, "head_dim": 4, "mlp_dim": 8}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_heads": 3}, r"kv_heads: expected a divisor of heads=4, got 3"),
        ({"norm": "batch"}, r"norm: expected one of rms, rms_unit_offset, layer, got 'batch'"),
        ({"activation": "relu"}, r"activation: expected one of swiglu, geglu, geglu_tanh, gelu, gelu_tanh, got 'relu'"),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")  # they would refuse an unknown name first
def test_an_expert_of_impossible_parts_is_an_error(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Expert(**{**SIZES, **change}, device="meta")


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"depth": 2}, r"\(2, 4, 2, 4\)"),
        ({"heads": 2}, r"\(1, 2, 2, 4\)"),
        ({"kv_heads": 4}, r"\(1, 4, 4, 4\)"),
        ({"head_dim": 8}, r"\(1, 4, 2, 8\)"),
    ],
)
def test_the_constructor_names_the_expert_that_does_not_fit(change: dict[str, int], shown: str) -> None:
    experts = {"und": Expert(**SIZES), "gen": Expert(**SIZES), "act": Expert(**{**SIZES, **change})}
    message = r"same depth, heads, kv_heads and head_dim, got {'und': \(1, 4, 2, 4\), 'gen': \(1, 4, 2, 4\), 'act': "
    with pytest.raises(ValueError, match=message + shown):
        MoT(experts)


def test_no_expert_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"experts: expected at least one, .* got {}"):
        MoT({})


@pytest.mark.parametrize(
    ("streams", "outputs", "message"),
    [
        ({}, None, r"streams: expected some of \['und', 'act'\], got \[\]"),
        ({"gen": (2, 3, 8)}, None, r"streams: expected some of \['und', 'act'\], got \['gen'\]"),
        ({"und": (2, 3, 8)}, ("act",), r"outputs: expected some of the given streams \['und'\], got \['act'\]"),
    ],
)
def test_streams_that_are_not_there_are_an_error(
    streams: dict[str, tuple[int, ...]], outputs: tuple[str, ...] | None, message: str
) -> None:
    mot = MoT({"und": Expert(**SIZES), "act": Expert(**SIZES)})
    tokens = {name: torch.zeros(shape) for name, shape in streams.items()}
    with pytest.raises(ValueError, match=message):
        mot(tokens, attention=lambda query, _key, _value: query, outputs=outputs)


def test_a_sequence_with_a_stranger_is_an_error() -> None:
    mot = MoT({"und": Expert(**SIZES), "act": Expert(**SIZES)})
    with pytest.raises(ValueError, match=r"streams: expected some of \['und', 'act'\], got \['und', 'gen', 'und'\]"):
        mot([(name, torch.zeros(2, 3, 8)) for name in ("und", "gen", "und")], attention=first_returned)


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ({"act": (0, 1), "gen": (0,)}, r"at: expected names out of \['und', 'act'\], got \['act', 'gen'\]"),
        ({"act": (0,)}, r"at: expected for act 2 increasing layers out of \[0, 1, 2\], .* got \[0\]"),
        ({"act": (2, 0)}, r"at: expected for act .* got \[2, 0\]"),
        ({"act": (1, 1)}, r"at: expected for act .* got \[1, 1\]"),
        ({"act": (1, 3)}, r"at: expected for act .* got \[1, 3\]"),
        ({"und": (0, 1, 3), "act": (0, 1)}, r"at: expected for und 3 increasing layers out of \[0, 1, 2\]"),
    ],
)
def test_layers_that_do_not_exist_are_an_error(at: dict[str, tuple[int, ...]], message: str) -> None:
    experts = {"und": Expert(**{**SIZES, "depth": 3}), "act": Expert(**{**SIZES, "depth": 2})}
    with pytest.raises(ValueError, match=message):
        MoT(experts, at=at)


@pytest.mark.parametrize("rotated", [0, 3, 6, -2])
def test_features_that_a_head_cannot_rotate_are_an_error(rotated: int) -> None:
    with pytest.raises(ValueError, match=f"rotated: expected an even number up to head_dim=4, got {rotated}"):
        MoT({"und": Expert(**SIZES)}, rotated=rotated)


def test_an_expert_is_in_no_layer_that_one_before_it_skips() -> None:
    experts = {name: Expert(**{**SIZES, "depth": depth}) for name, depth in (("und", 4), ("gen", 2), ("act", 2))}
    with pytest.raises(ValueError, match=r"at: expected for act 2 increasing layers out of \[0, 2\], .* got \[0, 1\]"):
        MoT(experts, at={"gen": (0, 2), "act": (0, 1)})
    mot = MoT(experts, at={"gen": (0, 2), "act": (0, 2)})
    tokens = torch.zeros(2, 3, 8)
    with pytest.raises(
        ValueError, match=r"streams: expected nobody after an expert of fewer layers, got \['act', 'und'\]"
    ):
        mot([("act", tokens), ("und", tokens)], attention=first_returned)


@pytest.mark.usefixtures("without_shape_checks")  # they would refuse another batch first
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention": [first_returned] * 3}, "attention: expected one, or one for each of 2 layers, got 3"),
        ({"rotary": [None]}, "rotary: expected one, or one for each of 2 layers, got 1"),
        ({"rotary": (torch.ones(3, 3, 4),) * 2}, "rotary: expected a batch of 1 or 2, got 3"),
        ({"rotary": (torch.ones(1, 3, 2),) * 2}, "rotary: expected angles for 4 features of a head, got 2"),
        ({"rotary": [None, (torch.ones(1, 3, 8),) * 2]}, "rotary: expected angles for 4 features of a head, got 8"),
    ],
)
def test_attention_and_angles_for_other_layers_or_heads_are_an_error(change: dict[str, object], message: str) -> None:
    mot = MoT({"und": Expert(**{**SIZES, "depth": 2})})
    with pytest.raises(ValueError, match=message):
        mot({"und": torch.zeros(2, 3, 8)}, **({"attention": first_returned} | change))


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    "streams", [{"und": (2, 3, 9)}, {"und": (2, 3, 1)}, {"und": (3, 8)}, {"und": (2, 3, 8), "act": (1, 3, 8)}]
)
def test_tokens_of_the_wrong_shape_are_refused_by_torch(streams: dict[str, tuple[int, ...]]) -> None:
    # No hand-written check: this holds that nothing broadcasts in silence.
    mot = MoT({"und": Expert(**SIZES), "act": Expert(**SIZES)})
    tokens = {name: torch.zeros(shape) for name, shape in streams.items()}
    with pytest.raises((RuntimeError, IndexError)):
        mot(tokens, attention=lambda query, _key, _value: query)


def heads_last(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    del key, value
    return query.transpose(1, 2)


@pytest.mark.parametrize("attention", [heads_last, lambda query, _key, _value: query[:, :, 1:]])
def test_attention_that_returns_another_shape_is_an_error(attention: Callable[..., Tensor]) -> None:
    mot = MoT({"und": Expert(**SIZES)})
    with pytest.raises(ValueError, match=r"attention: expected .* \(2, 4, 3, 4\), got \(2, "):
        mot({"und": torch.zeros(2, 3, 8)}, attention=attention)


@pytest.mark.parametrize("name", ["", "a.b", "keys", "pop"])
def test_a_name_that_cannot_be_held_is_an_error(name: str) -> None:
    with pytest.raises(KeyError, match=r"module name|already exists"):  # torch's own
        MoT({name: Expert(**SIZES)})
