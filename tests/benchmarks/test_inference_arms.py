"""The inference benchmark at toy size: its arms agree, its bounds bite, its stages add up."""

import sys
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # the benchmarks are no package

from inference_arms import Bench
from random_model import random_model, sized
from stages import split, stopwatch
from timing import Arm, in_turn, spread
from toy_model import toy_config_2b

CPU = torch.device("cpu")


@lru_cache
def bench(dtype: torch.dtype) -> tuple[Bench, list[Arm]]:
    made = Bench(sized("tiny", 2), dtype=dtype, device=CPU)
    arms = made.arms()
    in_turn(arms, rounds=1, warmups=0, device=CPU)
    return made, arms


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_arms_agree_and_an_arm_that_errs_is_told(dtype: torch.dtype) -> None:
    made, arms = bench(dtype)
    found = made.agreement(arms)
    assert found["within_bound"], found
    assert found["largest_action"] > 0.1
    right = arms[-1].result
    arms[-1].result = right + 2 * found["bound"]
    assert not made.agreement(arms)["within_bound"]
    arms[-1].result = right


def test_the_model_of_a_bfloat16_run_is_back_in_the_released_formats_after_its_reference() -> None:
    made, _ = bench(torch.bfloat16)
    fresh = random_model(made.config, dtype=torch.bfloat16, device=CPU).state_dict()
    assert {value.dtype for value in fresh.values()} == {torch.bfloat16, torch.float32}
    for name, value in made.model.state_dict().items():
        assert value.dtype == fresh[name].dtype, name
        assert torch.equal(value, fresh[name]), name


def test_every_word_of_an_observation_has_an_embedding_of_its_own() -> None:
    made, _ = bench(torch.float32)
    rows = made.model.backbone.text_embedding.weight[made.inputs.instruction.unique()]
    assert rows.abs().sum(dim=1).min() > 0
    assert len(rows.unique(dim=0)) == len(rows) == 1 + made.config.text_length // 3


@pytest.mark.usefixtures("without_shape_checks")  # a stopwatch stands in for a module, and is none
def test_stages_add_up_to_the_call_and_the_session_is_left_as_it_was() -> None:
    made, _ = bench(torch.float32)
    model, steps = made.session.model, made.config.steps
    parts = [model, model.backbone, model.mot, model.foresight, model.action]
    held = [dict(vars(part)) for part in parts]
    made.seen(0)
    found = split(made.steady, made.session)
    whole = sum(found[name] for name in ("vision", "cosmos", "context", "first_step", "rest"))
    assert whole + (steps - 1) * found["other_steps"] == pytest.approx(found["call"], rel=1e-9)
    assert min(found.values()) > 0
    assert [dict(vars(part)) for part in parts] == held


@pytest.mark.usefixtures("without_shape_checks")
def test_the_stopwatch_sees_every_solver_step() -> None:
    made, _ = bench(torch.float32)
    steps = made.config.steps
    made.seen(0)
    with stopwatch(made.session) as found:
        made.steady()
    counts = {name: len(taken) for name, taken in found.items()}
    assert counts == {"vision": 1, "cosmos": 1, "context": 1, "act": steps, "start": steps}


@pytest.mark.usefixtures("without_shape_checks")
def test_the_other_variant_is_measured_as_well() -> None:
    made = Bench(toy_config_2b(), dtype=torch.float32, device=CPU)
    arms = made.arms()
    in_turn(arms, rounds=1, warmups=0, device=CPU)
    assert made.agreement(arms)["within_bound"]
    found = made.beside_transformers(1)
    assert list(found["max_abs_difference"]) == ["vision tower"]
    assert found["max_abs_difference"]["vision tower"] < 1e-4  # as for actions


def test_a_call_in_a_running_episode_does_less_and_reads_no_value_back() -> None:
    made, _ = bench(torch.float32)
    found = made.census()
    stateless, steady, pushed = (found[f"session, {name}"] for name in ("stateless", "steady state", "frame pushed"))
    assert stateless["gflop"] > steady["gflop"] > pushed["gflop"]
    assert not stateless["data_dependent"]
    assert found["plain"]["kernel_operations"] > stateless["kernel_operations"]


@pytest.mark.skipif(version("transformers").startswith("4."), reason="the benchmark's rivals are of transformers 5")
@pytest.mark.usefixtures("without_shape_checks")
def test_transformers_modules_compute_what_the_stages_compute() -> None:
    made, _ = bench(torch.float32)
    assert max(made.beside_transformers(1)["max_abs_difference"].values()) < 1e-4  # as for actions


def test_quantiles_are_those_of_the_rounds_and_need_a_round_beyond_them() -> None:
    found = spread([0.001 * value for value in range(1, 102)])
    assert found == {"median_ms": 51, "p90_ms": 91, "p99_ms": 100, "min_ms": 1, "max_ms": 101}
    assert "p99_ms" not in spread([0.001] * 99)
    assert spread([0.001] * 9) == {"median_ms": 1, "min_ms": 1, "max_ms": 1}
