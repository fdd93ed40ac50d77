"""Let a policy act in closed loop: a new chunk every few steps, from what the cameras see then."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import gcd

import numpy as np
import torch
from env import CAMERAS, ConveyorEnv
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from moteur.runtime import Policy


@dataclass
class Episode:
    """One closed-loop episode: how it ended, how long it took, and, if filmed, its pictures."""

    seed: int
    instruction: str
    outcome: str | None = None
    steps: int = 0
    film: list[np.ndarray] = field(default_factory=list)


def rollouts(
    policy: Policy,
    seeds: Sequence[int],
    *,
    execute: int = 5,
    together: int = 10,
    film: int = 0,
    noise_seed: int = 0,
    progress: bool = True,
    label: str = "acting",
) -> list[Episode]:
    """Act once on every seed; a few episodes run side by side and share the model's batches.

    Args:
        policy: What acts.
        seeds: Episodes of the environment.
        execute: Steps of a chunk that are executed before the next one is asked for.
        together: Episodes side by side.
        film: Film the first so many episodes.
        noise_seed: With the seed of the episode and the step it decides where the flow starts.
        progress: Show a progress bar.
        label: Name on the bar.
    """
    episodes = [Episode(seed, "") for seed in seeds]
    envs = [ConveyorEnv(render_mode="rgb_array") for _ in range(min(together, len(seeds)))]
    with tqdm(total=len(seeds), desc=label, unit="episode", disable=not progress) as bar:
        for start in range(0, len(episodes), len(envs)):
            group = episodes[start : start + len(envs)]
            for place, (episode, env) in enumerate(zip(group, envs, strict=False)):
                _, info = env.reset(seed=episode.seed)
                episode.instruction = info["instruction"]
                episode.film += [env.render()] if start + place < film else []  # type: ignore[list-item]
            _act(policy, group, envs[: len(group)], execute=execute, noise_seed=noise_seed, bar=bar)
    for env in envs:
        env.close()
    return episodes


def _act(
    policy: Policy,
    group: list[Episode],
    envs: list[ConveyorEnv],
    *,
    execute: int,
    noise_seed: int,
    bar: tqdm,
) -> None:
    """Run one group of episodes to their ends.

    A policy's episode has one size of batch, so an episode that has ended stays in it, with its last picture.
    """
    config = policy.session.config
    foresees = policy.session.model.foresight is not None
    # Pictures are drawn at these steps, so that the one of 15 steps before is there.
    look = gcd(execute, policy.session.history.reach) if foresees else execute
    instructions, filmed = [episode.instruction for episode in group], [bool(episode.film) for episode in group]
    seen = [env.observe() for env in envs]
    step, chunk = 0, np.empty(0)
    policy.reset()
    while active := [place for place, episode in enumerate(group) if episode.outcome is None]:
        if step % look == 0:
            for place in active if step else ():
                seen[place] = envs[place].observe()
            pictures = stacked(seen)
            if step % execute == 0:
                state = np.stack([observation["agent_pos"] for observation in seen])
                shape = (config.chunk, config.action_dim)
                noise = torch.stack([starting_noise(shape, noise_seed, episode.seed, step) for episode in group])
                chunk = policy.act(pictures, state, instructions, step=step, noise=noise).actions
            else:
                policy.observe(pictures, step=step)
        for place in active:
            episode, env = group[place], envs[place]
            episode.outcome = env.advance(chunk[place, step % execute])
            episode.steps = step + 1
            if filmed[place] and (step % 3 == 0 or episode.outcome is not None):
                episode.film.append(env.render())  # type: ignore[arg-type]
            bar.update(episode.outcome is not None)
        step += 1


def stacked(seen: Sequence[dict[str, dict[str, np.ndarray]]]) -> dict[str, UInt8[np.ndarray, "batch height width 3"]]:
    """Pictures of several observations as one batch for each camera."""
    return {name: np.stack([observation["pixels"][name] for observation in seen]) for name in CAMERAS}


def starting_noise(shape: tuple[int, int], *seeds: int) -> Float[Tensor, "step action"]:
    """Where the flow starts, decided by these seeds alone."""
    return torch.from_numpy(np.random.default_rng(seeds).standard_normal(shape, dtype=np.float32))
