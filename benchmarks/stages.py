"""Where the time of a session's call goes: a stopwatch around each part of it."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch
from timing import wait

from moteur.runtime import InferenceSession

Seconds = dict[str, list[float]]
"""Durations by stage, in the order in which they were taken."""


@contextmanager
def stopwatch(session: InferenceSession, *, steps: int) -> Iterator[Seconds]:
    """Durations of the parts of one call of `act` with Euler's method.

    `vision` includes the look-up of the words; `und` and `gen` are the experts' layers; `cosmos` is one entry for each
    time that is encoded; `start` of each solver step and `read_out` at its end, from which `split` takes the steps. On
    CUDA every part is waited for, which a call otherwise does not do: the parts then add up to more than the call.
    """
    parts, found, device = session.parts, defaultdict[str, list[float]](list), session.parts.device

    def timed(name: str, run: Callable[..., Any]) -> "_Watched":
        return _Watched(run, found[name], device)

    def stamped(run: Callable[..., Any]) -> Callable[..., Any]:
        def marked(*args: Any) -> Any:  # noqa: ANN401 -- stands in for anything
            wait(device)
            found["start"].append(time.perf_counter())
            return run(*args)

        return marked

    head = parts.head(steps)
    with ExitStack() as changed:
        changed.enter_context(patch.object(session, "graphs", new=False))
        changed.enter_context(patch.object(parts, "understanding", timed("vision", parts.understanding)))
        changed.enter_context(patch.object(parts, "encode", timed("cosmos", parts.encode)))
        owners: dict[int, str] = {}
        for name in ("und", "gen"):
            expert = getattr(parts, name)
            if expert is not None:
                owners |= {id(layer): name for layer in expert.layers}
                watched = replace(expert, closing=timed(name, expert.closing))
                changed.enter_context(patch.object(parts, name, watched))

        def run(layer: Any, *args: Any) -> Any:  # noqa: ANN401 -- stands in for anything
            return timed(owners.get(id(layer), "act"), plainly)(layer, *args)

        plainly = parts.run
        changed.enter_context(patch.object(parts, "run", run))
        changed.enter_context(patch.object(head, "embed_actions", stamped(head.embed_actions)))
        changed.enter_context(patch.object(head, "increment", timed("read_out", head.increment)))
        yield found


class _Watched:
    """Stands in for a callable, and notes how long each call takes."""

    def __init__(self, run: Callable[..., Any], found: list[float], device: torch.device) -> None:
        self._run, self._found, self._device = run, found, device

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- stands in for anything
        wait(self._device)
        start = time.perf_counter()
        result = self._run(*args, **kwargs)
        wait(self._device)
        self._found.append(time.perf_counter() - start)
        return result

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 -- whatever the callable has
        return getattr(self._run, name)


def split(run: Callable[[], torch.Tensor], session: InferenceSession, *, steps: int) -> dict[str, float]:
    """Milliseconds of each stage of one call; they add up to the call.

    Returns:
        `vision`, `und`, `cosmos`, `gen`, `first_step` (it carries the state token too), `other_steps` (the mean of
        one), `read_out` (inside the steps, all of them together), `rest` (checks, embedding of latents, copies).
    """
    wait(session.parts.device)
    with stopwatch(session, steps=steps) as found:
        begin = time.perf_counter()
        run()
        wait(session.parts.device)
        end = time.perf_counter()
    marks = [*found.pop("start"), end]
    lasted = [late - early for early, late in pairwise(marks)]
    stages = {name: sum(found.get(name, [])) for name in ("vision", "und", "cosmos", "gen")}
    rest = end - begin - sum(stages.values()) - sum(lasted)
    stages |= {"first_step": lasted[0], "other_steps": sum(lasted[1:]) / max(1, len(lasted) - 1)}
    stages |= {"read_out": sum(found.get("read_out", [])), "rest": rest, "call": end - begin}
    return {name: 1e3 * seconds for name, seconds in stages.items()}
