"""Calls through a cache, in any split, equal the one joint call; what is cached stays as it is."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from moteur.mot import Expert, KVCache, MoT, rotary_angles
from moteur.mot.mot import AttentionFn

Streams = dict[str, Tensor]
ORDER = ("und", "gen", "act")


def pieces_of(rotary: tuple[Tensor, Tensor], start: int, count: int) -> tuple[Tensor, Tensor]:
    cos, sin = rotary
    return cos[:, start : start + count], sin[:, start : start + count]


# The device is one and the same for all examples of a run, so a fixture of function scope is fine here.
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_split_into_cached_calls_equals_the_joint_call(
    *,
    data: st.DataObject,
    make_mot: Callable[..., MoT],
    make_streams: Callable[..., Streams],
    make_attention: Callable[[Tensor], AttentionFn],
    make_mask: Callable[..., Tensor],
    device: torch.device,
) -> None:
    lengths = {name: data.draw(st.integers(1, 5), label=name) for name in ORDER}
    cuts = data.draw(st.sets(st.integers(1, 2)), label="calls start at these streams too")
    batch, spare = data.draw(st.integers(1, 3), label="batch"), data.draw(st.integers(0, 3), label="spare room")
    rotated = data.draw(st.booleans(), label="rotary")
    heads, kv_heads = data.draw(st.sampled_from([(1, 1), (3, 3), (3, 1), (4, 2)]), label="heads, KV heads")
    total = sum(lengths.values())
    mot = make_mot(device=device, heads=heads, kv_heads=kv_heads, depth=data.draw(st.integers(1, 3), label="depth"))
    streams = make_streams(mot, lengths, batch=batch)
    positions = torch.arange(total, device=device).expand(batch, -1) + torch.arange(batch, device=device)[:, None]
    rotary = rotary_angles(positions, head_dim=8, base=100.0, dtype=torch.float64) if rotated else None
    attention = make_attention(make_mask(lengths, device=device))

    with torch.no_grad():
        joint = mot(streams, attention=attention, rotary=rotary)
        cache = mot.new_cache(batch=batch, capacity=total + spare)
        cached: Streams = {}
        bounds = [0, *sorted(cuts), 3]
        for first, last in pairwise(bounds):
            names = ORDER[first:last]
            new = sum(lengths[name] for name in names)
            angles = None if rotary is None else pieces_of(rotary, cache.length, new)
            cached |= mot({n: streams[n] for n in names}, attention=attention, rotary=angles, cache=cache)
            cache = cache.extended(new)
    assert cache.length == total
    for name in ORDER:
        torch.testing.assert_close(cached[name], joint[name], rtol=1e-11, atol=1e-13)


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_split_of_a_sequence_with_layers_of_their_own_equals_the_joint_call(
    *,
    data: st.DataObject,
    make_mot: Callable[..., MoT],
    make_streams: Callable[..., Streams],
    make_attention: Callable[[Tensor], AttentionFn],
    device: torch.device,
) -> None:
    """Experts that come back, attention and rotary by layer, output gates, and experts in fewer layers at the end."""
    layers = {name: data.draw(st.sets(st.integers(0, 2), min_size=1), label=name) for name in ("gen", "act")}
    layers["act"] = (layers["act"] & layers["gen"]) or layers["gen"]
    alike = [name for name in ORDER if len(layers.get(name, range(3))) == 3]  # in all layers: they may come back
    few = [name for name in ORDER if name not in alike]
    names = data.draw(st.lists(st.sampled_from(alike), min_size=1, max_size=4), label="sequence") + few
    lengths = [data.draw(st.integers(1, 3)) for _ in names]
    mot = make_mot(
        device=device,
        depth=3,
        depths={name: len(own) for name, own in layers.items()},
        at={name: sorted(own) for name, own in layers.items()},
        output_gate=True,
        rotated=4,
    )
    pieces = [
        (name, make_streams(mot, dict.fromkeys(ORDER, length), seed=place)[name])
        for place, (name, length) in enumerate(zip(names, lengths, strict=True))
    ]
    total = sum(lengths)
    place = torch.tensor([place for place, length in enumerate(lengths) for _ in range(length)], device=device)
    before = make_attention(place[None] <= place[:, None])
    apart = make_attention(place[None] == place[:, None])
    rotary = rotary_angles(torch.arange(total, device=device)[None], head_dim=4, base=100.0, dtype=torch.float64)

    def call(now: list[tuple[str, Tensor]], start: int, cache: KVCache | None) -> list[tuple[str, Tensor]]:
        own = pieces_of(rotary, start, sum(x.shape[1] for _, x in now))
        return mot(now, attention=[before, apart, before], rotary=[own, None, own], cache=cache)

    with torch.no_grad():
        joint = call(pieces, 0, None)
        cache = mot.new_cache(batch=2, capacity=total)
        cached: list[tuple[str, Tensor]] = []
        bounds = [0, *sorted(data.draw(st.sets(st.integers(1, len(names))), label="cuts")), len(names)]
        for first, last in pairwise(dict.fromkeys(bounds)):
            cached += call(pieces[first:last], cache.length, cache)
            cache = cache.extended(sum(lengths[first:last]))
    assert [name for name, _ in cached] == names
    for (_, mine), (_, expected) in zip(cached, joint, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-11, atol=1e-13)


def test_a_causal_stream_fed_token_by_token_equals_one_call(
    make_mot: Callable[..., MoT],
    make_streams: Callable[..., Streams],
    make_attention: Callable[[Tensor], AttentionFn],
    device: torch.device,
) -> None:
    mot = make_mot(device=device, names=("und",))
    x = make_streams(mot, {"und": 7})["und"]
    attention = make_attention(torch.ones(7, 7, dtype=torch.bool, device=device).tril())
    rotary = rotary_angles(torch.arange(7, device=device)[None], head_dim=8, base=100.0)
    with torch.no_grad():
        joint = mot({"und": x}, attention=attention, rotary=rotary)["und"]
        cache = mot.new_cache(batch=2, capacity=7)
        steps = []
        for step in range(7):
            token = {"und": x[:, step : step + 1]}
            steps.append(mot(token, attention=attention, rotary=pieces_of(rotary, step, 1), cache=cache)["und"])
            cache = cache.extended(1)
    torch.testing.assert_close(torch.cat(steps, dim=1), joint, rtol=1e-11, atol=1e-13)


def test_denoising_again_and_again_leaves_the_prefix_alone_and_repeats_itself(
    make_mot: Callable[..., MoT],
    make_streams: Callable[..., Streams],
    make_attention: Callable[[Tensor], AttentionFn],
    make_mask: Callable[..., Tensor],
    device: torch.device,
) -> None:
    mot = make_mot(device=device)
    streams = make_streams(mot)
    attention = make_attention(make_mask(device=device))
    with torch.no_grad():
        empty = mot.new_cache(batch=2, capacity=14)
        assert mot({n: streams[n] for n in ("und", "gen")}, attention=attention, cache=empty, outputs=()) == {}
        cache = empty.extended(9)
        keys, values = cache.keys.clone(), cache.values.clone()
        first = mot({"act": streams["act"]}, attention=attention, cache=cache)["act"]
        for seed in range(3):
            mot({"act": make_streams(mot, seed=seed + 1)["act"]}, attention=attention, cache=cache)
        again = mot({"act": streams["act"]}, attention=attention, cache=cache)["act"]
    assert torch.equal(first, again)
    assert (empty.length, cache.length) == (0, 9)
    for now, before in ((cache.keys, keys), (cache.values, values)):
        assert torch.equal(now[..., :9, :], before[..., :9, :])
        assert (now[..., 9:12, :] != 0).all()  # this call's own place
        assert torch.equal(now[..., 12:, :], torch.zeros_like(now[..., 12:, :]))


def test_what_lies_beyond_the_length_is_never_read(
    make_mot: Callable[..., MoT],
    make_streams: Callable[..., Streams],
    make_attention: Callable[[Tensor], AttentionFn],
    make_mask: Callable[..., Tensor],
    device: torch.device,
) -> None:
    mot = make_mot(device=device)
    streams = make_streams(mot)
    attention = make_attention(make_mask(device=device))
    results = []
    for leftover in (0.0, float("nan")):
        cache = mot.new_cache(batch=2, capacity=14)
        cache.keys.fill_(leftover)
        cache.values.fill_(leftover)
        with torch.no_grad():
            results.append(mot({"und": streams["und"]}, attention=attention, cache=cache)["und"])
    assert torch.equal(*results)


def test_no_key_or_value_is_copied_to_be_read(
    make_mot: Callable[..., MoT], make_streams: Callable[..., Streams], device: torch.device
) -> None:
    mot = make_mot(device=device)
    cache = mot.new_cache(batch=2, capacity=5)
    storages = []

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        storages.append((key.untyped_storage().data_ptr(), value.untyped_storage().data_ptr()))
        return query

    with torch.no_grad():
        mot({"und": make_streams(mot)["und"]}, attention=attention, cache=cache)
    assert storages == [(cache.keys.untyped_storage().data_ptr(), cache.values.untyped_storage().data_ptr())] * 2


def test_a_cache_follows_the_weights_unless_told_otherwise() -> None:
    sizes = {"dim": 8, "depth": 2, "heads": 4, "kv_heads": 2, "head_dim": 6, "mlp_dim": 8}
    mot = MoT({"one": Expert(**sizes, dtype=torch.bfloat16)})
    cache = mot.new_cache(batch=3, capacity=5)
    assert cache.keys.shape == cache.values.shape == (2, 3, 2, 5, 6)
    assert (cache.keys.dtype, cache.keys.device.type, cache.length) == (torch.bfloat16, "cpu", 0)
    other = mot.new_cache(batch=3, capacity=5, device="meta", dtype=torch.float32)
    assert (other.keys.dtype, other.keys.device.type) == (torch.float32, "meta")


def one_expert() -> tuple[MoT, Tensor]:
    return MoT({"one": Expert(dim=8, depth=1, heads=2, kv_heads=2, head_dim=4, mlp_dim=8)}), torch.zeros(2, 3, 8)


def first_returned(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    del key, value
    return query


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"capacity": 2}, r"\(2, 2, 3, 4\) of torch.float32 after length=0, got \(2, 2, 2, 4\) of torch.float32"),
        ({"batch": 1}, r"\(2, 2, 3, 4\) of torch.float32 after length=0, got \(1, 2, 3, 4\) of torch.float32"),
        (
            {"dtype": torch.float64},
            r"\(2, 2, 3, 4\) of torch.float32 after length=0, got \(2, 2, 3, 4\) of torch.float64",
        ),
    ],
)
def test_a_cache_that_does_not_fit_is_an_error(change: dict[str, object], message: str) -> None:
    mot, x = one_expert()
    cache = mot.new_cache(**{"batch": 2, "capacity": 5, **change})
    with torch.no_grad(), pytest.raises(ValueError, match=f"cache: expected room for keys {message}"):
        mot({"one": x}, attention=first_returned, cache=cache)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("value", "held", "message"),
    [
        (torch.ones(1, 1, 1, 4), (1, 2, 2, 5, 4), r"\(1, 1, 1, 4\) of torch.float32 .* got \(2, 2, 3, 4\)"),
        (torch.ones(2, 2, 3, 4).int(), (1, 2, 2, 5, 4), r"\(2, 2, 3, 4\) of torch.int32 .* got .* of torch.float32"),
        (torch.ones(2, 2, 3, 4), (1, 2, 2, 5, 6), r"\(2, 2, 3, 4\) of torch.float32 .* got \(2, 2, 3, 6\)"),
    ],
)
def test_values_that_would_be_broadcast_or_converted_are_an_error_and_nothing_is_written(
    value: Tensor, held: tuple[int, ...], message: str
) -> None:
    cache = KVCache(keys=torch.zeros(1, 2, 2, 5, 4), values=torch.zeros(held))
    with pytest.raises(ValueError, match=f"cache: expected room for values {message}"):
        cache.write(0, torch.ones(2, 2, 3, 4), value)
    assert not cache.keys.any()
    assert not cache.values.any()


def test_a_cache_of_another_depth_is_an_error() -> None:
    mot, x = one_expert()
    cache = KVCache(keys=torch.zeros(3, 2, 2, 5, 4), values=torch.zeros(3, 2, 2, 5, 4))
    with torch.no_grad(), pytest.raises(ValueError, match=r"cache: expected 1 layers, got 3"):
        mot({"one": x}, attention=first_returned, cache=cache)


def test_a_gradient_that_the_cache_would_lose_is_an_error() -> None:
    mot, x = one_expert()
    cache = mot.new_cache(batch=2, capacity=5)
    with pytest.raises(ValueError, match=r"cache: expected a call under torch.no_grad\(\)"):
        mot({"one": x}, attention=first_returned, cache=cache)
    mot.requires_grad_(requires_grad=False)
    mot({"one": x}, attention=first_returned, cache=cache)
    with torch.inference_mode():
        mot({"one": x}, attention=first_returned, cache=mot.new_cache(batch=2, capacity=5))


def test_a_length_outside_the_capacity_is_an_error() -> None:
    keys = torch.zeros(1, 2, 2, 5, 4)
    with pytest.raises(ValueError, match=r"length: expected 0 to capacity=5, got -1"):
        KVCache(keys=keys, values=keys.clone(), length=-1)
    cache = KVCache(keys=keys, values=keys.clone(), length=3)
    with pytest.raises(ValueError, match=r"length: expected 0 to capacity=5, got 6"):
        cache.extended(3)
