"""The closed loop by an inference session: the same actions as the plain model's, in every call."""

import sys
from pathlib import Path
from statistics import median

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "conveyor"))  # the example's files are no package

from pipeline import SHIPPED, load
from realtime import race
from rollouts import rollouts

from moteur.runtime import Policy


@pytest.mark.parametrize("execute", [5, 30])
def test_a_session_acts_as_the_plain_model_does(execute: int) -> None:
    seeds = [1_000_000]
    raced = race(load(SHIPPED), seeds, execute=execute)
    # Rounding in float32; where the trained flow is steep it grows, in both by as much as seen from float64.
    assert median(raced.differences) < 1e-5
    assert max(raced.differences) < 1e-3
    policy = Policy.from_pretrained(SHIPPED, dtype="float32", session={"kernel": "aten"})
    acted = rollouts(policy, seeds, execute=execute, together=1, progress=False)
    assert raced.outcomes == [episode.outcome for episode in acted]
    figures = raced.summary()
    assert figures["calls"] == len(raced.session) == -(-acted[0].steps // execute)
    assert all(figures[name] > 0 for name in ("plain_ms", "session_ms", "push_ms"))
