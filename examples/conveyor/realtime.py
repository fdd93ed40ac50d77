"""The closed loop with an inference session: the plain model acts beside it, and every chunk is compared."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import gcd
from statistics import median

import numpy as np
import torch
from env import ConveyorEnv
from policy import starting_noise
from robot import Policy, as_tensor

from moteur.runtime import InferenceSession


@dataclass
class Race:
    """What a session did beside the plain model.

    Attributes:
        outcomes: How each episode ended.
        differences: Of each call, the largest between any two actions, in the model's normalised units.
        plain: Milliseconds of each call of the plain model.
        session: Milliseconds of each call of the session.
        push: Milliseconds of encoding each frame between the calls.
    """

    outcomes: list[str | None] = field(default_factory=list)
    differences: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    session: list[float] = field(default_factory=list)
    push: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, object]:
        """The figures for the report."""
        return {
            "episodes": len(self.outcomes),
            "successes": self.outcomes.count("success"),
            "calls": len(self.plain),
            "largest_difference": max(self.differences),
            "median_difference": median(self.differences),
            "plain_ms": round(median(self.plain), 2),
            "session_ms": round(median(self.session), 2),
            "push_ms": round(median(self.push), 2),
        }


@torch.no_grad()
def race(policy: Policy, seeds: Sequence[int], *, execute: int = 5, noise_seed: int = 0) -> Race:
    """Act on every seed, one episode at a time: the session's actions are executed, the plain model's compared.

    The session streams: each frame is pushed as it arrives and encoded once; a call encodes nothing.

    Args:
        policy: What acts.
        seeds: Episodes of the environment.
        execute: Steps of a chunk that are executed before the next one is asked for.
        noise_seed: With the seed of the episode and the step it decides where the flow starts.
    """
    result, env, session = Race(), ConveyorEnv(render_mode="rgb_array"), None
    history = policy.door.config.history
    look = gcd(execute, history)  # pictures are drawn at these steps, so that one of 15 steps before is there
    for seed in seeds:
        _, info = env.reset(seed=seed)
        number = torch.tensor([policy.door.number(info["instruction"])])
        seen, outcome, step, commands = {}, None, 0, np.empty(0)
        while outcome is None:
            if step % look == 0:
                seen[step] = as_tensor(env.observe()["pixels"])[None]
                if session is not None and step:
                    start = time.perf_counter()
                    session.push(step, seen[step].float() / 255)
                    result.push.append((time.perf_counter() - start) * 1e3)
            if step % execute == 0:
                before = max(0, step - history)
                pose = torch.from_numpy(env.proprioception()[None])
                noise = starting_noise(policy.door, noise_seed, seed, step)[None]
                inputs = policy.door.inputs(seen[step], policy.preparation.state(pose), number, before=seen[before])
                if session is None:
                    session = InferenceSession(policy.model, inputs.image_grid)
                    session.act(inputs, noise=noise)  # both are warm when they are timed
                    policy.model.act(inputs, noise=noise)
                if step == 0:
                    session.reset()
                    session.push(0, seen[0].float() / 255)
                start = time.perf_counter()
                actions = session.act(inputs, noise=noise, times=(before, step))
                between = time.perf_counter()
                plain = policy.model.act(inputs, noise=noise)
                result.plain.append((time.perf_counter() - between) * 1e3)
                result.session.append((between - start) * 1e3)
                result.differences.append((actions - plain).abs().max().item())
                commands = policy.commands(actions, pose)[0].numpy()
            outcome = env.advance(commands[step % execute])
            step += 1
        result.outcomes.append(outcome)
    env.close()
    return result
