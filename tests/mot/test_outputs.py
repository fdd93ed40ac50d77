"""A stream whose result nobody asked for ends with the keys and values of its last layer."""

from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from torch import Tensor

from moteur.mot import MoT, rotary_angles
from moteur.mot.mot import AttentionFn

SUBSETS = [subset for size in range(4) for subset in combinations(("und", "gen", "act"), size)]


@pytest.mark.parametrize("wanted", SUBSETS, ids="-".join)
def test_what_is_asked_for_is_unchanged_and_what_is_not_is_not_computed(
    wanted: tuple[str, ...],
    make_mot: Callable[..., MoT],
    make_streams: Callable[..., dict[str, Tensor]],
    make_attention: Callable[[Tensor], AttentionFn],
    device: torch.device,
) -> None:
    mot = make_mot(device=device)
    streams = make_streams(mot)
    everything = make_attention(torch.ones(12, 12, dtype=torch.bool, device=device))  # nobody's rows may go missing
    rotary = rotary_angles(torch.arange(12, device=device)[None], head_dim=8, base=100.0)

    full = mot(streams, attention=everything, rotary=rotary)
    some = mot(streams, attention=everything, rotary=rotary, outputs=wanted)
    assert list(some) == list(wanted)
    for name in wanted:
        torch.testing.assert_close(some[name], full[name], rtol=1e-12, atol=1e-13)

    weights = dict(mot.named_parameters())
    if wanted:
        sum(x.square().sum() for x in some.values()).backward()
    idle = {name for name, weight in weights.items() if weight.grad is None}
    last = mot.depth - 1
    for name in mot.experts:
        used = ("attention_norm", "attention.qkv", "attention.key_norm", "attention.query_norm")
        tail = {
            weight
            for weight in weights
            if weight.startswith(f"experts.{name}.norm")
            or (
                weight.startswith(f"experts.{name}.layers.{last}.")
                and not weight.removeprefix(f"experts.{name}.layers.{last}.").startswith(used)
            )
        }
        assert len(tail) >= 4  # output, MLP and its norm, final norm
        expected = set() if name in wanted else tail
        if wanted:
            # Queries of an unwanted stream after a wanted one keep its place in attention; their output is dropped.
            mine = {weight for weight in idle if weight.startswith(f"experts.{name}.") and "query_norm" not in weight}
            assert mine == expected


def test_the_rows_that_attention_sees_are_the_last_positions_of_its_keys(
    make_mot: Callable[..., MoT], make_streams: Callable[..., dict[str, Tensor]], device: torch.device
) -> None:
    mot = make_mot(device=device)
    seen: list[int] = []

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        assert value.shape == key.shape == (2, mot.kv_heads, 12, 8)
        seen.append(query.shape[2])
        return torch.zeros_like(query)

    for outputs in (("act",), ("gen",), ("und", "act"), None):
        mot(make_streams(mot), attention=attention, outputs=outputs)
    # rows in the first layer, then in the last: from the first wanted stream on
    assert seen == [12, 3, 12, 7, 12, 12, 12, 12]


def test_the_order_of_the_mapping_does_not_matter(
    make_mot: Callable[..., MoT],
    make_streams: Callable[..., dict[str, Tensor]],
    make_attention: Callable[[Tensor], AttentionFn],
    make_mask: Callable[..., Tensor],
    device: torch.device,
) -> None:
    mot = make_mot(device=device)
    streams = make_streams(mot)
    attention = make_attention(make_mask(device=device))
    forward = mot(streams, attention=attention)
    backward = mot(dict(reversed(streams.items())), attention=attention, outputs=("act", "gen", "und"))
    assert list(forward) == list(backward) == ["und", "gen", "act"]
    assert all(torch.equal(forward[name], backward[name]) for name in forward)


def test_inputs_are_not_written_to(
    make_mot: Callable[..., MoT], make_streams: Callable[..., dict[str, Tensor]], device: torch.device
) -> None:
    mot = make_mot(device=device)
    streams = make_streams(mot)
    copies = {name: x.clone() for name, x in streams.items()}
    mot(streams, attention=lambda query, _key, _value: query)
    assert list(streams) == list(copies)
    assert all(torch.equal(streams[name], copies[name]) for name in streams)
