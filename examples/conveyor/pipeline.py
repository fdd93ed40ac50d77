"""The steps of a run, each kept in the run's folder, so that what was done is not done again."""

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from collect import collect
from cosmos import train_tokenizer
from demonstrations import Demonstrations
from measure import Success, as_json, foresight_errors
from policy import rollouts
from robot import ROBOT, Door, Policy, config, load, save
from train import Plan, chunk_error, train_policy

from moteur.recipes import InternVLAA1
from moteur.recipes.robots import RobotStatistics, compute_statistics

SHIPPED = Path(__file__).parent / "checkpoint" / "tiny.safetensors"
RECORD = Path(__file__).parents[2] / "benchmarks" / "results" / "conveyor_checkpoint.json"
HELD_OUT_SEED = 500_000  # recordings that no training sees count from here
UNSEEN_SEED = 1_000_000  # episodes on which success is counted start here


@dataclass(frozen=True)
class Job:
    """Sizes of a run.

    Attributes:
        episodes: Demonstrations to learn from.
        first_seed: Seeds of the demonstrations count up from here.
        held_out: Demonstrations to measure foresight and chunks on.
        tokenizer_steps: Training steps of the Cosmos tokenizer.
        policy: How the policy is trained.
        trials: Closed-loop episodes on unseen seeds.
        execute: Steps of a chunk that are executed before the next one is asked for.
        compiled: Compile the Mixture-of-Transformers for training.
    """

    episodes: int
    first_seed: int
    held_out: int
    tokenizer_steps: int
    policy: Plan
    trials: int
    execute: int = 5
    compiled: bool = False


@dataclass
class Run:
    """A folder with the results of finished steps, each beside the settings it was made with, and its duration."""

    folder: Path
    progress: bool = True
    seconds: dict[str, float] = field(default_factory=dict)
    reused: list[str] = field(default_factory=list)

    def once(self, name: str, settings: dict[str, Any], compute: Callable[[], Any], *needs: Path) -> Any:  # noqa: ANN401
        """What `compute` returns (as JSON), from the folder if it was made with the same settings and `needs` exist."""
        path = self.folder / f"{name}.json"
        settings = json.loads(json.dumps(settings))
        if path.exists() and all(need.exists() for need in needs):
            kept = json.loads(path.read_text())
            if kept["settings"] == settings:
                self.seconds[name] = kept["seconds"]
                self.reused.append(name)
                return kept["result"]
        start = time.perf_counter()
        result = compute()
        self.seconds[name] = time.perf_counter() - start
        write(path, json.dumps({"settings": settings, "seconds": self.seconds[name], "result": result}))
        return json.loads(json.dumps(result))

    def encode(self, data: Demonstrations, policy: Policy) -> None:
        """Latents of all frames, from the run's cache."""
        data.encode(policy, self.folder / "latents", progress=self.progress)

    def held_out(self, job: Job, root: Path, policy: Policy) -> Demonstrations:
        """Held-out recordings with this policy's latents and the pictures of t+15."""
        data = Demonstrations(root, policy, episodes=range(job.held_out), future=True)
        self.encode(data, policy)
        return data


def write(path: Path, text: str) -> None:
    """Write beside and rename: a file of that name is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    draft.write_text(text)
    os.replace(draft, path)  # noqa: PTH105 - the same, said plainly


def record(run: Run, job: Job) -> tuple[Path, Path]:
    """Sets of demonstrations to learn from, and of held-out ones."""
    roots: list[Path] = []
    plans = {"demonstrations": (job.episodes, job.first_seed), "held_out": (job.held_out, HELD_OUT_SEED)}
    for name, (episodes, seed) in plans.items():
        root = run.folder / name

        def compute(root: Path = root, episodes: int = episodes, seed: int = seed) -> None:
            collect(root, episodes, first_seed=seed, progress=run.progress)

        run.once(f"collected_{name}", {"episodes": episodes, "first_seed": seed}, compute, root / "meta" / "info.json")
        roots.append(root)
    return roots[0], roots[1]


def learn(run: Run, job: Job, root: Path, start: Path | None) -> tuple[Path, dict[str, Any]]:
    """Train tokenizer and policy, from the weights in `start` or from nothing.

    Returns:
        The file the weights are in, and the losses of tokenizer, action and foresight.
    """
    settings = asdict(job) | {"start": None if start is None else [start.name, start.stat().st_size]}
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]  # half of another training is no start
    names = ("tokenizer.pt", f"training_{digest}.pt", "policy.safetensors")
    tokenizer, state, weights = (run.folder / name for name in names)
    found = statistics(run, job, root)
    policy = untrained(found) if start is None else load(start)  # weights keep the statistics they were trained with
    model = policy.model
    assert model.foresight is not None
    data = Demonstrations(root, policy, episodes=range(job.episodes))

    def copy() -> list[float]:
        assert model.foresight is not None
        losses = train_tokenizer(
            model,
            data,
            steps=job.tokenizer_steps,
            rate=2e-3 if start is None else 5e-4,
            decoder_only=start is not None,
            progress=run.progress,
        )
        torch.save(model.foresight.state_dict(), tokenizer)
        return losses

    def follow() -> dict[str, Any]:
        run.encode(data, policy)
        history = train_policy(policy, data, job.policy, state=state, compiled=job.compiled, progress=run.progress)
        save(weights, policy, dtype=torch.float32, notes={})
        return asdict(history) | {"pictures": len(data)}

    copying = run.once("tokenizer", settings, copy, tokenizer)
    model.foresight.load_state_dict(torch.load(tokenizer, weights_only=True))
    history = run.once("policy", settings, follow, weights)
    state.unlink(missing_ok=True)
    return weights, {"tokenizer": copying} | history


def statistics(run: Run, job: Job, root: Path) -> RobotStatistics:
    """Of states and of the real steps of action chunks, over the set."""

    def compute() -> dict[str, Any]:
        found = compute_statistics([root], ROBOT, steps=config().chunk, progress=run.progress)
        return found.to_dict()

    settings = {"episodes": job.episodes, "first_seed": job.first_seed}
    return RobotStatistics.from_dict(run.once("statistics", settings, compute))


def untrained(statistics: RobotStatistics) -> Policy:
    """The model with random weights from a fixed seed, tokenizer included."""
    torch.manual_seed(0)
    return Policy(InternVLAA1(config(), decoder=True).eval(), Door(config()), statistics)


def judge(run: Run, job: Job, root: Path, policy: Policy, label: str) -> dict[str, Any]:
    """Success on unseen seeds; foresight and chunk errors on held-out recordings."""
    seeds = range(UNSEEN_SEED, UNSEEN_SEED + job.trials)
    episodes = rollouts(policy, seeds, execute=job.execute, progress=run.progress, label=f"acting, {label}")
    held_out = run.held_out(job, root, policy)
    index = torch.arange(len(held_out))[:: max(1, len(held_out) // 512)]
    return {
        "success": asdict(Success.of(episodes)),
        "foresight": as_json(foresight_errors(policy, held_out, progress=run.progress)),
        "chunk_error": chunk_error(policy, held_out, index),
    }


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    packages = ("torch", "transformers", "mujoco", "gymnasium", "numpy", "safetensors")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
