"""`torch.compile(fullgraph=True)`: the same numbers, one graph for each subset of streams, checkpointing included."""

import shutil
from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from moteur.mot import KVCache, MoT, rotary_angles
from moteur.mot.mot import AttentionFn

Streams = dict[str, Tensor]
LENGTHS = {"und": 5, "gen": 4, "act": 3}

pytestmark = pytest.mark.usefixtures("without_shape_checks", "fresh_compiler")


class CountedGraphs:
    """A compiler backend that runs graphs as they are and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        self.count += 1
        return graph.forward


def angles(start: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    return rotary_angles(torch.arange(start, start + count, device=device)[None], head_dim=8, base=100.0)


def test_each_subset_compiles_once_and_never_again(
    make_mot: Callable[..., MoT],
    make_streams: Callable[..., Streams],
    make_attention: Callable[[Tensor], AttentionFn],
    make_mask: Callable[..., Tensor],
    device: torch.device,
) -> None:
    names = ("und", "act")  # two experts for the sake of time: three subsets
    mot = make_mot(device=device, depth=1, names=names)
    attention = make_attention(make_mask({name: LENGTHS[name] for name in names}, device=device))
    subsets = [subset for size in (1, 2) for subset in combinations(names, size)]
    graphs = CountedGraphs()
    compiled = torch.compile(mot, fullgraph=True, backend=graphs)
    for repeat in range(2):
        for index, subset in enumerate(subsets):
            streams = {name: make_streams(mot, seed=repeat)[name] for name in subset}
            rotary = angles(0, sum(LENGTHS[name] for name in subset), device)
            actual = compiled(streams, attention=attention, rotary=rotary)
            expected = mot(streams, attention=attention, rotary=rotary)
            for name in subset:
                torch.testing.assert_close(actual[name], expected[name], rtol=1e-12, atol=1e-13)
            assert graphs.count == (len(subsets) if repeat else index + 1)


def test_acting_compiles_one_graph_for_each_phase_however_often_it_denoises(
    make_mot: Callable[..., MoT],
    make_streams: Callable[..., Streams],
    make_attention: Callable[[Tensor], AttentionFn],
    make_mask: Callable[..., Tensor],
    device: torch.device,
) -> None:
    mot = make_mot(device=device, depth=1)
    attention = make_attention(make_mask(device=device))
    graphs = CountedGraphs()
    compiled = torch.compile(mot, fullgraph=True, backend=graphs)
    with torch.no_grad():
        for chunk in range(3):
            streams = make_streams(mot, seed=chunk)
            joint = mot(streams, attention=attention, rotary=angles(0, 12, device))
            cache = mot.new_cache(batch=2, capacity=12)
            for name, count in LENGTHS.items():
                for _ in range(4 if name == "act" else 1):
                    rotary = angles(cache.length, count, device)
                    out = compiled({name: streams[name]}, attention=attention, rotary=rotary, cache=cache)
                    torch.testing.assert_close(out[name], joint[name], rtol=1e-12, atol=1e-13)
                cache = cache.extended(count)
            assert graphs.count == 3


def test_prefixes_of_any_length_share_at_most_two_graphs(
    make_mot: Callable[..., MoT], make_streams: Callable[..., Streams], device: torch.device
) -> None:
    """The first length is compiled as a constant, the second as a symbol that serves all others."""
    mot = make_mot(device=device, depth=1, names=("act",))
    act = {"act": make_streams(mot)["act"]}

    def everything(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)

    graphs = CountedGraphs()
    compiled = torch.compile(mot, fullgraph=True, backend=graphs)
    empty = mot.new_cache(batch=2, capacity=20)
    empty.keys.normal_()
    empty.values.normal_()
    with torch.no_grad():
        for length in (9, 10, 4, 17, 11, 9):
            cache = KVCache(keys=empty.keys, values=empty.values, length=length)
            rotary = angles(length, 3, device)
            actual = compiled(act, attention=everything, rotary=rotary, cache=cache)["act"]
            expected = mot(act, attention=everything, rotary=rotary, cache=cache)["act"]
            torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)
    assert graphs.count == 2


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_values_and_gradients_survive_compilation_and_checkpointing(
    *,
    backend: str | None,
    checkpointing: bool,
    make_mot: Callable[..., MoT],
    make_streams: Callable[..., Streams],
    make_attention: Callable[[Tensor], AttentionFn],
    make_mask: Callable[..., Tensor],
    device: torch.device,
) -> None:
    names = ("und", "gen")
    plain = make_mot(device=device, names=names)
    mot = make_mot(device=device, names=names, activation_checkpointing=checkpointing)
    attention = make_attention(make_mask({name: LENGTHS[name] for name in names}, device=device))
    rotary = angles(0, 9, device)
    run = mot if backend is None else torch.compile(mot, fullgraph=True, backend=backend)
    seeds = {name: torch.randn_like(x) for name, x in make_streams(mot).items()}

    results = []
    for model, call in ((plain, plain), (mot, run)):
        streams = {name: x.requires_grad_() for name, x in make_streams(model).items()}
        out = call(streams, attention=attention, rotary=rotary, outputs=("gen",))
        sum((x * seeds[name]).sum() for name, x in out.items()).backward()
        grads = {name: x.grad for name, x in [*streams.items(), *model.named_parameters()]}
        results.append((out, grads))
    (expected, expected_grads), (actual, actual_grads) = results
    torch.testing.assert_close(actual["gen"], expected["gen"], rtol=1e-12, atol=1e-13)
    for name, grad in expected_grads.items():
        assert (grad is None) == (actual_grads[name] is None), name
        if grad is not None:
            torch.testing.assert_close(actual_grads[name], grad, rtol=1e-10, atol=1e-11, msg=name)


def test_a_sequence_with_layers_of_their_own_compiles_to_one_graph(
    make_mot: Callable[..., MoT],
    make_streams: Callable[..., Streams],
    make_attention: Callable[[Tensor], AttentionFn],
    device: torch.device,
) -> None:
    options = {"names": ("und", "act"), "depth": 2, "depths": {"act": 1}, "output_gate": True, "rotated": 4}
    plain = make_mot(device=device, at={"act": (1,)}, **options)
    mot = make_mot(device=device, at={"act": (1,)}, activation_checkpointing=True, **options)
    attentions = [make_attention(torch.ones(n, n, dtype=torch.bool, device=device)) for n in (8, 11)]
    rotary = rotary_angles(torch.arange(11, device=device)[None], head_dim=4, base=100.0)
    graphs = CountedGraphs()
    results = []
    for model, call in ((plain, plain), (mot, torch.compile(mot, fullgraph=True, backend=graphs))):
        streams = make_streams(model, {"und": 5, "act": 3})
        und = streams["und"].requires_grad_()
        sequence = [("und", und), ("und", make_streams(model, {"und": 3, "act": 3})["und"]), ("act", streams["act"])]
        out = call(sequence, attention=attentions, rotary=[rotary, None])
        sum(x.square().sum() for _, x in out).backward()
        results.append((out, und.grad))
    assert graphs.count == 1
    for (name, x), (_, expected) in zip(results[1][0], results[0][0], strict=True):
        torch.testing.assert_close(x, expected, rtol=1e-12, atol=1e-13, msg=name)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-10, atol=1e-11)


def test_hidden_states_beyond_the_one_that_is_looked_at_are_not_computed(
    make_mot: Callable[..., MoT], make_streams: Callable[..., Streams], device: torch.device
) -> None:
    mot = make_mot(device=device, depth=3)
    streams = make_streams(mot)
    calls = []

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        calls.append(len(calls))
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)

    hidden = mot.walk(streams, attention=attention, outputs=("act",))
    assert next(hidden) == streams
    assert calls == []
    first = next(hidden)
    assert (list(first), calls) == (["und", "gen", "act"], [0])
    *_, last = hidden
    assert (list(last), calls) == (["act"], [0, 1, 2])
    out = mot(streams, attention=attention, outputs=("act",))
    assert torch.equal(out["act"], mot.expert("act").norm(last["act"]))


def test_checkpointing_runs_each_layer_once_more_and_only_when_gradients_are_recorded(
    make_mot: Callable[..., MoT], make_streams: Callable[..., Streams], device: torch.device
) -> None:
    mot = make_mot(device=device, depth=3, activation_checkpointing=True)
    calls = []

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        calls.append(len(calls))
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)

    out = mot(make_streams(mot), attention=attention)
    assert len(calls) == 3
    sum(x.sum() for x in out.values()).backward()
    assert len(calls) == 6
    with torch.no_grad():
        mot(make_streams(mot), attention=attention)
    assert len(calls) == 9


@pytest.mark.skipif(shutil.which("g++") is None, reason="the default compiler needs a C++ compiler on the CPU")
# Importing the default compiler makes torch warn about its own use of torch.jit.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_the_default_compiler_writes_the_cache_and_gives_the_same_numbers(
    make_mot: Callable[..., MoT],
    make_streams: Callable[..., Streams],
    make_attention: Callable[[Tensor], AttentionFn],
    device: torch.device,
) -> None:
    mot = make_mot(device=device, depth=1, names=("act",))
    streams = make_streams(mot)
    attention = make_attention(torch.ones(3, 3, dtype=torch.bool, device=device))
    caches = [mot.new_cache(batch=2, capacity=12) for _ in range(2)]
    with torch.no_grad():
        expected, actual = (
            call(streams, attention=attention, rotary=angles(0, 3, device), cache=cache)["act"]
            for call, cache in zip((mot, torch.compile(mot, fullgraph=True)), caches, strict=True)
        )
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(caches[1].keys, caches[0].keys, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(caches[1].values, caches[0].values, rtol=1e-11, atol=1e-12)


def test_no_operation_waits_for_the_device(
    make_mot: Callable[..., MoT], make_streams: Callable[..., Streams], device: torch.device
) -> None:
    """Nothing in a call turns a tensor into a Python number: tracing on `meta`, which has none, succeeds."""
    del device
    mot = make_mot(device=torch.device("meta"))
    rotary = rotary_angles(
        torch.zeros(3, 2, 12, dtype=torch.long, device="meta"), head_dim=8, base=9.0, sections=[2, 1, 1]
    )
    with torch.no_grad():
        out = mot(
            make_streams(mot),
            attention=lambda query, _key, _value: query,
            rotary=rotary,
            cache=mot.new_cache(batch=2, capacity=12),
        )
    assert {name: tuple(x.shape) for name, x in out.items()} == {
        "und": (2, 5, 24),
        "gen": (2, 4, 16),
        "act": (2, 3, 12),
    }
