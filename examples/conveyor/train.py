"""Train the policy on demonstrations with both losses; an interrupted training continues where it stopped."""

import io
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from demonstrations import Demonstrations
from jaxtyping import Int
from robot import ROBOT
from torch import Tensor
from tqdm import tqdm

from moteur.data import Loader
from moteur.files import write_whole
from moteur.recipes import InternVLAA1
from moteur.recipes.training import Schedule, adamw, train_step
from moteur.sampling import DatasetPool, Sampler, WeightedOrder


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train.

    Attributes:
        steps: Optimiser steps.
        batch: Samples of a step.
        rate: Peak learning rate.
        warmup: Steps until the peak.
        final: Rate of the last step, as a share of the peak.
        seed: Decides samples, noise and flow times of every step.
    """

    steps: int
    batch: int = 64
    rate: float = 1e-3
    warmup: int = 200
    final: float = 0.02
    seed: int = 0


@dataclass
class History:
    """Losses of every step so far, and the seconds they took, interruptions left out."""

    action: list[float] = field(default_factory=list)
    foresight: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.action)

    def latest(self) -> dict[str, str]:
        """Means over the last fifty steps, to be shown."""
        curves = {"action": self.action[-50:], "foresight": self.foresight[-50:]}
        return {name: f"{sum(values) / len(values):.3f}" for name, values in curves.items()}


def train_policy(
    model: InternVLAA1,
    demonstrations: Demonstrations,
    plan: Plan,
    *,
    state: Path | None = None,
    every: int = 200,
    compiled: bool = False,
    progress: bool = True,
) -> History:
    """Run the plan; the Cosmos tokenizer stays as it is, everything else learns.

    Args:
        model: Trained in place.
        demonstrations: With their latents.
        plan: How long and how fast.
        state: File for weights, optimiser, position in the data and losses, to continue from.
        every: Steps between two savings.
        compiled: Compile the Mixture-of-Transformers first: a minute that long runs earn back. Needs a C++ compiler.
        progress: Show a progress bar.

    Returns:
        The losses of every step.
    """
    assert demonstrations.latents is not None
    order = WeightedOrder({ROBOT.name: len(demonstrations)}, {ROBOT.name: 1.0}, seed=plan.seed)
    pool = DatasetPool({ROBOT.name: demonstrations.latents})
    loader = Loader(pool, Sampler(order), batch_size=plan.batch, collate=demonstrations.collate)
    optimizer = adamw(model, rate=plan.rate)
    schedule = Schedule(steps=plan.steps, warmup=plan.warmup, final=plan.final)
    history = History()
    if state is not None and state.exists():
        kept = torch.load(state, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        loader.load_state_dict(kept["loader"])
        history = History(**kept["history"])
    if compiled:
        model.mot.compile(dynamic=False)
    model.train()
    begin = time.perf_counter() - history.seconds
    with tqdm(total=plan.steps, initial=len(history), desc="policy", unit="step", disable=not progress) as bar:
        for step, batch in zip(range(len(history), plan.steps), loader, strict=False):  # the order has no end
            generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
            loss = model(batch.inputs, batch.targets, generator=generator)
            train_step(optimizer, loss.total, rate=plan.rate * schedule(step))
            history.action.append(loss.action.item())
            history.foresight.append(loss.foresight.item())
            history.seconds = time.perf_counter() - begin
            bar.update()
            bar.set_postfix(history.latest(), refresh=False)
            if state is not None and ((step + 1) % every == 0 or step + 1 == plan.steps):
                parts = {"model": model, "optimizer": optimizer, "loader": loader}
                _keep(state, {name: part.state_dict() for name, part in parts.items()}, history)
    model.eval()
    return history


def _keep(path: Path, state: dict[str, object], history: History) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    torch.save(state | {"history": asdict(history)}, content)
    write_whole(path, content.getvalue())


@torch.no_grad()
def chunk_error(
    model: InternVLAA1, demonstrations: Demonstrations, index: Int[Tensor, " sample"], *, batch: int = 128
) -> float:
    """Mean squared difference of predicted and the expert's chunks, in units of the actions' variance."""
    generator = torch.Generator().manual_seed(0)
    total, count = 0.0, 0
    for part in index.split(batch):
        moments = demonstrations.batch(part)
        targets = moments.targets
        assert targets.valid_steps is not None
        error = (model.act(moments.inputs, generator=generator) - targets.actions)[targets.valid_steps]
        total, count = total + float(error.square().sum()), count + error.numel()
    return total / count
