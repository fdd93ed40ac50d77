"""Where the time of a session's call goes: a stopwatch around each part of the model."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch
from timing import wait
from torch import Tensor

from moteur.runtime import InferenceSession

Seconds = dict[str, list[float]]
"""Durations by stage, in the order in which they were taken."""


@contextmanager
def stopwatch(session: InferenceSession) -> Iterator[Seconds]:
    """Durations of the parts of one call of `act` with Euler's method.

    `vision` is the backbone with the look-up of the words; `cosmos` has an entry for each time that is encoded;
    `context` is the pass of `und` and `gen` through the experts, `act` that of each solver step. `start` holds the
    moments at which solver steps begin, from which `split` takes their durations. On CUDA every part is waited for,
    which a call otherwise does not do: the parts then add up to more than the call.
    """
    model, found, device = session.model, defaultdict[str, list[float]](list), session.device

    def timed(run: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- stands in for anything
            wait(device)
            start = time.perf_counter()
            result = run(*args, **kwargs)
            wait(device)
            found[name(*args)].append(time.perf_counter() - start)
            return result

        return watched

    def stamped(run: Callable[..., Any]) -> Callable[..., Any]:
        def marked(*args: Any) -> Any:  # noqa: ANN401 -- stands in for anything
            wait(device)
            found["start"].append(time.perf_counter())
            return run(*args)

        return marked

    def stage(streams: Mapping[str, Tensor]) -> str:
        return "act" if "act" in streams else "context"

    with ExitStack() as changed:
        changed.enter_context(patch.object(session, "graphs", new=False))
        watched = [(model.backbone, lambda *_: "vision"), (model.mot, stage)]
        for part, name in watched:
            changed.enter_context(patch.object(part, "forward", timed(part.forward, name)))
        if model.foresight is not None:
            encode = timed(model.foresight.encode, lambda *_: "cosmos")
            changed.enter_context(patch.object(model.foresight, "encode", encode))
        embed = stamped(model.action.embed_actions)
        changed.enter_context(patch.object(model.action, "embed_actions", embed))
        yield found


def split(run: Callable[[], torch.Tensor], session: InferenceSession) -> dict[str, float]:
    """Milliseconds of each stage of one call; they add up to the call.

    Returns:
        `vision`, `cosmos`, `context`, `first_step` (it carries the state token too), `other_steps` (the mean of one),
        `rest` (checks, embedding of latents and state, copies), `call`.
    """
    wait(session.device)
    with stopwatch(session) as found:
        begin = time.perf_counter()
        run()
        wait(session.device)
        end = time.perf_counter()
    lasted = [late - early for early, late in pairwise([*found["start"], end])]
    stages = {name: sum(found.get(name, [])) for name in ("vision", "cosmos", "context")}
    rest = end - begin - sum(stages.values()) - sum(lasted)
    stages |= {"first_step": lasted[0], "other_steps": sum(lasted[1:]) / max(1, len(lasted) - 1)}
    return {name: 1e3 * seconds for name, seconds in (stages | {"rest": rest, "call": end - begin}).items()}
