"""How many operations a call takes, that none depends on data, and that compiled calls are not compiled again."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_model import random_inputs, randomised, saying, toy_config

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # the benchmarks are no package

from census import census

from moteur.recipes import InternVLAA1, preset
from moteur.runtime import InferenceSession
from moteur.runtime.kernels import Kernel

BUDGET = 8_500


def deep() -> InternVLAA1:
    """The released model's depths and steps at toy widths: the number of operations does not depend on widths."""
    toy, real = toy_config(), preset("3B")
    return randomised(
        replace(
            toy,
            depth=real.depth,
            vision=replace(toy.vision, depth=real.vision.depth),
            cosmos=replace(toy.cosmos, residual_blocks=real.cosmos.residual_blocks),
            steps=real.steps,
        )
    )


@pytest.mark.parametrize(
    ("kernel", "dtype", "budget"),
    [("aten", torch.float32, BUDGET), ("onednn", torch.float32, BUDGET), ("aten", torch.bfloat16, 10_300)],
)
def test_a_call_keeps_to_its_operations_and_none_depends_on_data(
    kernel: Kernel, dtype: torch.dtype, budget: int
) -> None:
    model = deep()
    inputs = saying(random_inputs(model.config, 1, 1), model.config.text_length)
    session = InferenceSession(model.to(dtype), kernel=kernel, dtype=dtype)
    call = session._arrived(inputs, None)
    call.tensors["noise"] = torch.randn(1, model.config.chunk, model.config.action_dim)
    with torch.no_grad():
        found = census(lambda: session._act(call.tensors, steps=10, method="euler"))
    assert not found.dependent
    assert not found.reads
    # On the CPU a session computes an RMS norm in four operations; on CUDA it is one.
    assert found.kernels.total() - 3 * found.kernels["hypot"] <= budget, found.kernels.most_common(12)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_session_looks_at_its_masks_once_and_at_nothing_else_inside_a_call(batch: int) -> None:
    config = toy_config()
    inputs = random_inputs(config, batch, 2)  # two samples have instructions of different lengths: ragged
    session = InferenceSession(randomised(config))
    noise = torch.zeros(batch, config.chunk, config.action_dim)
    session.act(inputs, noise=noise)
    found = census(lambda: session.act(inputs, noise=noise))
    assert not found.dependent
    assert found.reads["tolist"] == 2  # the two masks; frames, cameras and state are looked at in host memory
    assert set(found.reads) <= {"tolist", "numpy"}


@pytest.mark.usefixtures("without_shape_checks")
def test_a_hundred_instructions_compile_nothing_once_lengths_are_known_to_vary() -> None:
    config = replace(toy_config(), depth=2, text_length=12, steps=2)
    model = randomised(config)
    plain = InferenceSession(model, kernel="aten")
    session = InferenceSession(model, kernel="aten")
    session.compile(backend="aot_eager")  # graphs and guards are the same, no C++ compiler is needed
    noise = torch.randn(1, config.chunk, config.action_dim)
    for words in (5, 6):
        session.act(saying(random_inputs(config, 1, words), words), noise=noise)
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiled > 0
    for call in range(100):
        inputs = saying(random_inputs(config, 1, call), call % config.text_length + 1)
        found = session.act(inputs, noise=noise)
        torch.testing.assert_close(found, plain.act(inputs, noise=noise), rtol=0, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled


@pytest.mark.parametrize("seen", [[[1, 1, 1], [1, 1, 1]], [[1, 0, 1], [0, 1, 1]]])
@pytest.mark.usefixtures("without_shape_checks")
def test_batches_compile_too_ragged_ones_included(seen: list[list[int]]) -> None:
    config = replace(toy_config(), depth=2, steps=2)
    model = randomised(config)
    inputs = replace(random_inputs(config, 2, 4), view_valid=torch.tensor(seen, dtype=torch.bool))
    session = InferenceSession(model, kernel="aten")
    session.compile(backend="aot_eager")
    noise = torch.randn(2, config.chunk, config.action_dim)
    torch.testing.assert_close(session.act(inputs, noise=noise), model.act(inputs, noise=noise), rtol=0, atol=1e-5)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside the compiler
@pytest.mark.usefixtures("without_shape_checks")
def test_a_compiled_layer_gives_the_same_actions() -> None:
    config = replace(toy_config(), depth=1, steps=2)
    model, inputs = randomised(config), random_inputs(config, 1, 3)
    noise = torch.randn(1, config.chunk, config.action_dim)
    session = InferenceSession(model, kernel="aten", compiled=True)
    with torch._inductor.config.patch(compile_threads=1):
        difference = session.act(inputs, noise=noise) - model.act(inputs, noise=noise)
    assert difference.abs().max() < 1e-5
