"""Let the trained model act: a new chunk every few steps, from what the cameras see then."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import gcd

import numpy as np
import torch
from env import ConveyorEnv
from robot import Door, Policy, as_tensor
from torch import Tensor
from tqdm import tqdm


@dataclass
class Episode:
    """One closed-loop episode: how it ended, how long it took, and, if filmed, its pictures."""

    seed: int
    instruction: str
    outcome: str | None = None
    steps: int = 0
    film: list[np.ndarray] = field(default_factory=list)


@torch.no_grad()
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
            _act(policy, group, envs, execute=execute, noise_seed=noise_seed, bar=bar)
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
    """Run one group of episodes to their ends."""
    door, history = policy.door, policy.door.config.history
    look = gcd(execute, history)  # pictures are drawn at these steps, so that one of 15 steps before is there
    seen: list[list[Tensor]] = [[] for _ in group]
    filmed = [bool(episode.film) for episode in group]
    step, chunks = 0, {}
    while active := [place for place, episode in enumerate(group) if episode.outcome is None]:
        if step % look == 0:
            for place in active:
                seen[place].append(as_tensor(envs[place].observe()["pixels"]))
        if step % execute == 0:
            state = torch.from_numpy(np.stack([envs[place].proprioception() for place in active]))
            now = torch.stack([seen[place][-1] for place in active])
            before = torch.stack([seen[place][max(0, len(seen[place]) - 1 - history // look)] for place in active])
            words = torch.tensor([door.number(group[place].instruction) for place in active])
            noise = torch.stack([starting_noise(door, noise_seed, group[place].seed, step) for place in active])
            commands = policy.act(now, before, state, words, noise=noise)
            chunks = dict(zip(active, commands.numpy(), strict=True))
        for place in active:
            episode, env = group[place], envs[place]
            episode.outcome = env.advance(chunks[place][step % execute])
            episode.steps = step + 1
            if filmed[place] and (step % 3 == 0 or episode.outcome is not None):
                episode.film.append(env.render())  # type: ignore[arg-type]
            bar.update(episode.outcome is not None)
        step += 1


def starting_noise(door: Door, *seeds: int) -> Tensor:
    """Where the flow starts, decided by these seeds alone."""
    rng = np.random.default_rng(seeds)
    return torch.from_numpy(rng.standard_normal((door.config.chunk, door.config.action_dim), dtype=np.float32))
