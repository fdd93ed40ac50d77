"""The closed loop with an inference session: the plain model acts beside it, and every chunk is compared."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import gcd
from statistics import median

import numpy as np
import torch
from env import CAMERAS, ConveyorEnv
from jaxtyping import UInt8
from robot import text_tokenizer, transform
from rollouts import starting_noise
from torch import Tensor

from moteur.recipes import InternVLAA1, Processor
from moteur.runtime import InferenceSession


@dataclass
class Race:
    """What a session did beside the plain model.

    Attributes:
        outcomes: How each episode ended.
        differences: Of each call, the largest between any two actions, in the model's normalised units.
        plain: Milliseconds of each call of the plain model.
        session: Milliseconds of each call of the session.
        push: Milliseconds of encoding each frame before the calls.
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
def race(model: InternVLAA1, seeds: Sequence[int], *, execute: int = 5, noise_seed: int = 0) -> Race:
    """Act on every seed, one episode at a time: the session's actions are executed, the plain model's compared.

    The session is shown each frame as it arrives and encodes it once; a call encodes nothing. The plain model is given
    the frames of t-15 and t, and encodes both in every call.

    Args:
        model: What acts.
        seeds: Episodes of the environment.
        execute: Steps of a chunk that are executed before the next one is asked for.
        noise_seed: With the seed of the episode and the step it decides where the flow starts.
    """
    result, env, robot, config = Race(), ConveyorEnv(), transform(model), model.config
    session, processor = InferenceSession(model), Processor(config, text_tokenizer())
    look = gcd(
        execute, config.history
    )  # pictures are drawn at these steps, so that the one of 15 steps before is there
    for seed in seeds:
        _, info = env.reset(seed=seed)
        session.reset()
        seen, outcome, step, commands = dict[int, Tensor](), None, 0, np.empty(0)
        while outcome is None:
            if step % look == 0:
                seen[step] = views(env)
            if step % execute == 0:
                pose = torch.from_numpy(env.proprioception())
                noise = starting_noise((config.chunk, config.action_dim), noise_seed, seed, step)[None]
                times = torch.stack([seen[max(0, step - config.history)], seen[step]], dim=1)  # view, time, ...
                both, now = (
                    processor([view[None] for view in frames], robot.state(pose)[None], [info["instruction"]])
                    for frames in (times, times[:, 1:])
                )
                if not result.plain:  # both are warm when they are timed
                    session.act(both, noise=noise)
                    model.act(both, noise=noise)
            if step % look == 0:
                start = time.perf_counter()
                session.observe(seen[step][None], step=step, encode=True)
                result.push.append((time.perf_counter() - start) * 1e3)
            if step % execute == 0:
                start = time.perf_counter()
                actions = session.act(now, noise=noise, step=step)
                between = time.perf_counter()
                plain = model.act(both, noise=noise)
                result.plain.append((time.perf_counter() - between) * 1e3)
                result.session.append((between - start) * 1e3)
                result.differences.append((actions - plain).abs().max().item())
                commands = robot.commands(actions[0], pose).numpy()
            outcome = env.advance(commands[step % execute])
            step += 1
        result.outcomes.append(outcome)
    env.close()
    return result


def views(env: ConveyorEnv) -> UInt8[Tensor, "view 3 height width"]:
    """What the cameras see now, channels first."""
    pixels = env.observe()["pixels"]
    return torch.from_numpy(np.stack([pixels[name] for name in CAMERAS])).permute(0, 3, 1, 2).contiguous()
