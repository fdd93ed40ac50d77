"""Steps of a run, whose results are kept in the run's folder and used again.

A step is taken from the folder if everything that decides it is the same: settings, the content of the sets and
checkpoints that it starts from, and the files that it left. This code is not among them: who changes it names another
folder.
"""

import hashlib
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import digests
import torch
from collect import collect
from cosmos import train_tokenizer
from demonstrations import Demonstrations
from measure import EVERY, LATENT, PIXEL, Success, as_json, foresight_errors
from robot import ROBOT, config, text_tokenizer, untrained
from rollouts import rollouts
from train import Plan, chunk_error, train_policy

from moteur.data import RobotStatistics, compute_statistics
from moteur.files import write_whole
from moteur.recipes import InternVLAA1
from moteur.runtime import Policy

SHIPPED = Path(__file__).parent / "checkpoint"
RECORD = Path(__file__).parents[2] / "benchmarks" / "results" / "conveyor_checkpoint.json"
HELD_OUT_SEED = 500_000  # recordings that no training sees count from here
UNSEEN_SEED = 1_000_000  # episodes on which success is counted start here
RECORDING: dict[str, Any] = {"image_size": config().frame_size, "noise": 0.015, "moved_starts": 0.5}
ACTING = {"together": 10, "noise_seed": 0}
KERNEL = "aten"  # the same on every run: what is measured to be fastest may round otherwise
COMPARED = 512  # moments of held-out recordings whose chunks are compared, about


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
        """Result of a step (as JSON): from the folder if it was made with the same settings, else computed.

        Args:
            name: Of the step.
            settings: Everything that its result depends on.
            compute: Computes it.
            *needs: Files that it writes; if one is missing or has changed, it is computed again.
        """
        path = self.folder / f"{name}.json"
        settings = json.loads(json.dumps(settings))
        if path.exists() and all(need.exists() for need in needs):
            kept = json.loads(path.read_text())
            if (kept["settings"], kept.get("files")) == (settings, _contents(needs)):
                self.seconds[name] = kept["seconds"]
                self.reused.append(name)
                return kept["result"]
        start = time.perf_counter()
        result = compute()
        self.seconds[name] = time.perf_counter() - start
        kept = {"settings": settings, "files": _contents(needs), "seconds": self.seconds[name], "result": result}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(kept))
        return json.loads(json.dumps(result))

    def encode(self, data: Demonstrations, model: InternVLAA1) -> None:
        """Latents of all frames, from the run's cache."""
        data.encode(model, self.folder / "latents", progress=self.progress)

    def held_out(self, job: Job, root: Path, model: InternVLAA1) -> Demonstrations:
        """Held-out recordings with this model's latents."""
        data = Demonstrations(root, model, episodes=range(job.held_out))
        self.encode(data, model)
        return data


def _contents(files: Sequence[Path]) -> dict[str, str]:
    return {file.name: digests.of_path(file) for file in files}


def record(run: Run, job: Job) -> tuple[Path, Path]:
    """Sets of demonstrations to learn from, and of held-out ones."""
    roots: list[Path] = []
    plans = {"demonstrations": (job.episodes, job.first_seed), "held_out": (job.held_out, HELD_OUT_SEED)}
    for name, (episodes, seed) in plans.items():
        root = run.folder / name

        def compute(root: Path = root, episodes: int = episodes, seed: int = seed) -> None:
            collect(root, episodes, first_seed=seed, progress=run.progress, **RECORDING)

        settings = {"episodes": episodes, "first_seed": seed} | RECORDING
        run.once(f"collected_{name}", settings, compute, root / "meta" / "info.json")
        roots.append(root)
    return roots[0], roots[1]


def learn(run: Run, job: Job, root: Path, start: Path | None) -> tuple[Path, dict[str, Any]]:
    """Train tokenizer and policy, from the checkpoint in `start` or from nothing.

    Returns:
        The folder of the new checkpoint, and the losses of tokenizer, action and foresight.
    """
    tokenizer, trained = run.folder / "tokenizer.pt", run.folder / "policy"
    begin = start or without_training(run, statistics(run, root))
    model = load(begin)  # a checkpoint keeps the statistics it was trained with
    assert model.foresight is not None
    data = Demonstrations(root, model, episodes=range(job.episodes))
    common = {"set": digests.of_path(root), "episodes": job.episodes, "start": digests.of_path(begin)}
    copying: dict[str, Any] = {"steps": job.tokenizer_steps, "rate": 2e-3, "decoder_only": False}
    if start is not None:
        copying |= {"rate": 5e-4, "decoder_only": True}

    def copy() -> list[float]:
        assert model.foresight is not None
        losses = train_tokenizer(model, data, progress=run.progress, **copying)
        torch.save(model.foresight.state_dict(), tokenizer)
        return losses

    def follow() -> dict[str, Any]:
        run.encode(data, model)
        history = train_policy(model, data, job.policy, state=state, compiled=job.compiled, progress=run.progress)
        model.save_pretrained(trained, tokenizer=text_tokenizer())
        return asdict(history) | {"pictures": len(data)}

    copied = run.once("tokenizer", common | copying, copy, tokenizer)
    model.foresight.load_state_dict(torch.load(tokenizer, weights_only=True))
    following = common | {"tokenizer": digests.of_path(tokenizer), "plan": asdict(job.policy), "compiled": job.compiled}
    digest = hashlib.sha256(json.dumps(following).encode()).hexdigest()[:12]  # half of another training is no start
    state = run.folder / f"training_{digest}.pt"
    history = run.once("policy", following, follow, trained)
    state.unlink(missing_ok=True)
    return trained, {"tokenizer": copied} | history


def statistics(run: Run, root: Path) -> RobotStatistics:
    """Of states and of the real steps of action chunks, over the set."""

    def compute() -> dict[str, Any]:
        found = compute_statistics([root], ROBOT, chunk=config().chunk, progress=run.progress)
        return found.to_dict()

    settings = {"set": digests.of_path(root), "chunk": config().chunk}
    return RobotStatistics.from_dict(run.once("statistics", settings, compute))


def without_training(run: Run, statistics: RobotStatistics) -> Path:
    """Checkpoint of the model with random weights, for data of these statistics."""
    folder = run.folder / "untrained"
    untrained(statistics).save_pretrained(folder, tokenizer=text_tokenizer())
    return folder


def load(checkpoint: Path) -> InternVLAA1:
    """The model of a checkpoint, to train it or to look into it; stored halves become float32."""
    return InternVLAA1.from_pretrained(checkpoint, dtype="float32")


def judged(run: Run, job: Job, root: Path, checkpoint: Path, label: str) -> dict[str, Any]:
    """What `judge` finds, from the folder if it judged this very checkpoint on these recordings in the same way."""
    settings = {
        "checkpoint": digests.of_path(checkpoint),
        "held_out": [job.held_out, digests.of_path(root)],
        "acting": {"first_seed": UNSEEN_SEED, "trials": job.trials, "execute": job.execute, "kernel": KERNEL} | ACTING,
        "foresight": {"every": EVERY, "pixel": PIXEL, "latent": LATENT},
        "chunks": COMPARED,
        "versions": versions(),
    }
    return run.once(f"judged_{label.replace(' ', '_')}", settings, lambda: judge(run, job, root, checkpoint, label))


def judge(run: Run, job: Job, root: Path, checkpoint: Path, label: str) -> dict[str, Any]:
    """Success on unseen seeds; foresight and chunk errors on held-out recordings."""
    seeds = range(UNSEEN_SEED, UNSEEN_SEED + job.trials)
    policy = Policy.from_pretrained(checkpoint, dtype="float32", session={"kernel": KERNEL})
    label = f"acting, {label}"
    episodes = rollouts(policy, seeds, execute=job.execute, progress=run.progress, label=label, **ACTING)
    model = load(checkpoint)
    held_out = run.held_out(job, root, model)
    index = torch.arange(len(held_out))[:: max(1, len(held_out) // COMPARED)]
    return {
        "success": asdict(Success.of(episodes)),
        "foresight": as_json(foresight_errors(model, held_out, progress=run.progress)),
        "chunk_error": chunk_error(model, held_out, index),
    }


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    packages = ("torch", "transformers", "mujoco", "gymnasium", "numpy", "safetensors")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
