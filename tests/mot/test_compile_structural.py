"""Three experts and structural attention in one graph: how the recipe runs, values, gradients and recompilations."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from moteur.masks import Layout, Segment, dense_attention, structural_attention
from moteur.mot import MoT, rotary_angles

Streams = dict[str, Tensor]
A1 = Layout([Segment("und", 5), Segment("gen", 4), Segment("state", 1), Segment("action", 2)])

pytestmark = pytest.mark.usefixtures("without_shape_checks", "fresh_compiler")


def ragged(seed: int, device: torch.device) -> Layout:
    """Padding in the first two streams; in the second sample one of them has nothing else."""
    generator = torch.Generator().manual_seed(seed)
    valid = {name: torch.rand(2, length, generator=generator) < 0.7 for name, length in (("und", 5), ("gen", 4))}
    valid["gen"][1] = False
    return A1.with_valid({name: flags.to(device) for name, flags in valid.items()})


def angles(device: torch.device) -> tuple[Tensor, Tensor]:
    positions = torch.randint(0, 9, (3, 2, 12), generator=torch.Generator().manual_seed(1)).to(device)
    return rotary_angles(positions, head_dim=8, base=100.0, sections=[2, 1, 1])


def test_training_is_one_graph_for_every_validity_and_equals_the_dense_way(
    make_mot: Callable[..., MoT], make_streams: Callable[..., Streams], device: torch.device
) -> None:
    mot = make_mot(device=device, depth=1)
    graphs: list[GraphModule] = []

    def backend(graph: GraphModule, example: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, example)

    def step(streams: Streams, rotary: tuple[Tensor, Tensor], layout: Layout) -> Streams:
        attention = partial(structural_attention, layout=layout)
        return mot(streams, attention=attention, rotary=rotary, outputs=("gen", "act"))

    compiled = torch.compile(step, fullgraph=True, backend=backend)
    for seed in range(3):
        layout, rotary, results = ragged(seed, device), angles(device), []
        attention = partial(dense_attention, layout=layout)
        for call in (
            lambda streams: compiled(streams, rotary, layout),  # noqa: B023 - called in this turn of the loop
            lambda streams: mot(streams, attention=attention, rotary=rotary, outputs=("gen", "act")),  # noqa: B023
        ):
            mot.zero_grad()
            streams = {name: tokens.requires_grad_() for name, tokens in make_streams(mot, seed=seed).items()}
            out = call(streams)
            sum(tokens.square().sum() for tokens in out.values()).backward()
            held = [*streams.items(), *mot.named_parameters()]
            results.append(out | {f"{name} gradient": tensor.grad for name, tensor in held if tensor.grad is not None})
        actual, expected = results
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(actual[name], value, rtol=1e-10, atol=1e-11, msg=name)
    assert len(graphs) == 1


def test_a_prefill_and_its_denoising_are_two_graphs_for_every_observation(
    make_mot: Callable[..., MoT], make_streams: Callable[..., Streams], device: torch.device
) -> None:
    mot = make_mot(device=device, depth=1)
    graphs: list[GraphModule] = []

    def backend(graph: GraphModule, _: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(mot, fullgraph=True, backend=backend)
    with torch.no_grad():
        for seed in range(3):
            layout, (cos, sin), streams = ragged(seed, device), angles(device), make_streams(mot, seed=seed)
            attention = partial(structural_attention, layout=layout)
            joint = mot(streams, attention=partial(dense_attention, layout=layout), rotary=(cos, sin))
            cache = mot.new_cache(batch=2, capacity=12)
            seen = {name: streams[name] for name in ("und", "gen")}
            compiled(seen, attention=attention, rotary=(cos[:, :9], sin[:, :9]), cache=cache, outputs=())
            cache = cache.extended(9)
            for _ in range(3):
                rotary = (cos[:, 9:], sin[:, 9:])
                act = compiled({"act": streams["act"]}, attention=attention, rotary=rotary, cache=cache)["act"]
                torch.testing.assert_close(act, joint["act"], rtol=1e-11, atol=1e-12)
            assert len(graphs) == 2
