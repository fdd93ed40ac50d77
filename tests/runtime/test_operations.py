"""How many operations a call takes, that none depends on data, and that compiled calls are not compiled again."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_inference import saying, still
from toy_model import random_inputs, randomised, toy_config, without_views

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))  # the benchmarks are no package

from census import census

from moteur.recipes.presets import preset
from moteur.runtime import InferenceSession, fuse_for_inference
from moteur.runtime.choice import Kernel
from moteur.runtime.program import Program, Solver
from moteur.runtime.shape import shape_of

BUDGET = 8_500


def deep() -> tuple[torch.nn.Module, object]:
    """The released model's depths and steps at toy widths: the number of operations does not depend on widths."""
    toy, real = toy_config(), preset("3B")
    config = replace(
        toy,
        depth=real.depth,
        vision=replace(toy.vision, depth=real.vision.depth),
        cosmos=replace(toy.cosmos, residual_blocks=real.cosmos.residual_blocks),
        steps=real.steps,
    )
    assert len(config.cosmos.multipliers) == len(real.cosmos.multipliers)
    return randomised(config), config


@pytest.mark.parametrize(
    ("kernel", "dtype", "budget"),
    [
        ("aten", torch.float32, BUDGET),
        ("onednn", torch.float32, BUDGET),
        ("aten", torch.bfloat16, 10_200),  # norms and rotations widen to float32 and back, gains stay apart
        ("onednn", torch.bfloat16, 9_800),
    ],
)
def test_a_call_keeps_to_its_operations_and_none_depends_on_data(
    kernel: Kernel, dtype: torch.dtype, budget: int
) -> None:
    model, config = deep()
    grid = ((4, 4),) * 3
    inputs = still(config, 1, 1)
    und = sum(4 + 2 for _ in grid) + config.text_length
    inputs = replace(
        inputs,
        image_grid=grid,
        pixel_values=inputs.pixel_values[:, :48],
        input_ids=inputs.input_ids[:, :und],
        und_valid=torch.ones(1, und, dtype=torch.bool),
    )
    parts = fuse_for_inference(model.to(dtype), grid, kernel=kernel, dtype=dtype)
    program = Program(parts, shape_of(inputs, parts.understanding.arrangement))
    assert inputs.frames is not None
    tensors = {
        name: getattr(inputs, name) for name in ("input_ids", "und_valid", "view_valid", "pixel_values", "state")
    }
    tensors |= {"frames_before": inputs.frames[:, :, 0], "frames_now": inputs.frames[:, :, 1]}
    tensors["noise"] = torch.randn(1, config.chunk, config.action_dim)
    with torch.no_grad():
        program.act(tensors, Solver(10, "euler"))
        found = census(lambda: program.act(tensors, Solver(10, "euler")))
    assert not found.dependent
    assert not found.reads
    assert found.kernels.total() <= budget, found.kernels.most_common(12)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_session_looks_at_its_masks_once_and_at_nothing_else_inside_a_call(batch: int) -> None:
    config = toy_config()
    inputs = still(config, batch, 2)  # two samples have instructions of different lengths: ragged
    session = InferenceSession(randomised(config), inputs.image_grid)
    noise = torch.zeros(batch, config.chunk, config.action_dim)
    session.act(inputs, noise=noise)
    found = census(lambda: session.act(inputs, noise=noise))
    assert not found.dependent
    assert found.reads == {"tolist": 2, "numpy": 4}  # masks; state, pixels, frames and cameras, in host memory


@pytest.mark.usefixtures("without_shape_checks")
def test_a_hundred_instructions_compile_nothing_once_lengths_are_known_to_vary() -> None:
    config = replace(toy_config(), depth=2, text_length=12, steps=2)
    model = randomised(config)
    first = random_inputs(config, 1, 3)
    plain = InferenceSession(model, first.image_grid, kernel="aten")
    session = InferenceSession(model, first.image_grid, kernel="aten", shapes=4)
    session.parts.compile(backend="aot_eager")  # graphs and guards are the same, no C++ compiler is needed
    noise = torch.randn(1, config.chunk, config.action_dim)
    for words in (5, 6):
        session.act(saying(still(config, 1, words), config, words), noise=noise)
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiled > 0
    for call in range(100):
        inputs = saying(still(config, 1, call), config, call % config.text_length + 1)
        found = session.act(inputs, noise=noise)
        torch.testing.assert_close(found, plain.act(inputs, noise=noise), rtol=0, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled


@pytest.mark.parametrize("seen", [[[1, 1, 1], [1, 1, 1]], [[1, 0, 1], [0, 1, 1]]])
@pytest.mark.usefixtures("without_shape_checks")
def test_batches_compile_too_ragged_ones_included(seen: list[list[int]]) -> None:
    config = replace(toy_config(), depth=2, steps=2)
    model = randomised(config)
    inputs = without_views(config, still(config, 2, 4), torch.tensor(seen, dtype=torch.bool))
    session = InferenceSession(model, inputs.image_grid, kernel="aten")
    session.parts.compile(backend="aot_eager")
    noise = torch.randn(2, config.chunk, config.action_dim)
    torch.testing.assert_close(session.act(inputs, noise=noise), model.act(inputs, noise=noise), rtol=0, atol=1e-5)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside the compiler
@pytest.mark.usefixtures("without_shape_checks")
def test_a_compiled_layer_gives_the_same_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)
    config = replace(toy_config(), depth=1, steps=2)
    model, inputs = randomised(config), still(config, 1, 3)
    noise = torch.randn(1, config.chunk, config.action_dim)
    session = InferenceSession(model, inputs.image_grid, kernel="aten", compiled=True)
    difference = session.act(inputs, noise=noise) - model.act(inputs, noise=noise)
    assert difference.abs().max() < 1e-5
