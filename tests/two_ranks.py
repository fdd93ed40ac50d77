"""Two processes of one training, each with its half of a batch; the second half is video without actions."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from toy_model import random_inputs, randomised, toy_config

from moteur.flowmatch import ActionHead, StraightPath, flow_loss, mean_count, mean_over
from moteur.recipes import Inputs, Targets
from moteur.recipes.inputs import each_tensor

SAMPLES = 6
STEPS, ACTIONS = 4, 5
Batch = tuple[Inputs, Targets, Tensor, Tensor]


def whole_batch() -> Batch:
    """Inputs, targets, noise and times of all samples; half of them have actions, each a different number of steps."""
    config, draw = toy_config(), torch.Generator().manual_seed(5)
    shape, side = (SAMPLES, config.chunk, config.action_dim), config.frame_size
    targets = Targets(
        actions=torch.randn(shape, generator=draw),
        valid_steps=torch.arange(config.chunk) < torch.tensor([1, 4, 2, 4, 4, 4])[:, None],
        valid_dims=torch.arange(config.action_dim) < torch.tensor([2, 5, 3, 5, 5, 5])[:, None],
        valid_samples=torch.arange(SAMPLES) < SAMPLES // 2,
        future_frames=torch.rand(SAMPLES, config.views, 3, side, side, generator=draw),
        valid_future=torch.rand(SAMPLES, config.views, generator=draw) > 0.4,
    )
    inputs = random_inputs(config, SAMPLES, seed=6)
    seen = torch.ones(SAMPLES, config.views, dtype=torch.bool)
    seen[1, 2] = seen[4, 0] = seen[5, 0] = False
    time = torch.rand(SAMPLES, generator=draw)
    return replace(inputs, view_valid=seen), targets, torch.randn(shape, generator=draw), time


def part(batch: Batch, start: int, stop: int) -> Batch:
    """Some samples of a batch."""
    inputs, targets, noise, time = batch
    inputs, targets = (each_tensor(half, lambda value: value[start:stop]) for half in (inputs, targets))
    return inputs, targets, noise[start:stop], time[start:stop]


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """What lies in the parameters' `grad`."""
    return {name: value.grad for name, value in module.named_parameters() if value.grad is not None}


def head_loss(head: nn.Module, read: ActionHead, batch: Batch) -> tuple[Tensor, Tensor]:
    """Sum and number of squared errors of an action head on its own."""
    _, targets, noise, time = batch
    noisy, velocity = StraightPath(noise_at=1).sample(noise, targets.actions, time)
    masks = {name: getattr(targets, name) for name in ("valid_steps", "valid_dims", "valid_samples")}
    return flow_loss(read.velocity(head(noisy, time)), velocity, **masks, reduction="parts")


def small_head() -> ActionHead:
    """An action head that is the same in every process."""
    torch.manual_seed(1)
    return ActionHead(dim=8, state_dim=None, action_dim=ACTIONS)


def train(rank: int, folder: str) -> None:
    """One rank: gradients of a head and of the model, in one step and accumulated, saved into the folder."""
    torch.set_num_threads(1)
    store, patience = (
        f"file://{folder}/store",
        timedelta(seconds=120),
    )  # to fail, not to wait, if one process is left alone
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=patience)
    half = SAMPLES // 2
    own = part(whole_batch(), rank * half, (rank + 1) * half)
    found = {}

    head = DistributedDataParallel(small_head())
    mean_over(head_loss(head, head.module, own)).backward()
    found["head"] = gradients(head.module)

    model = DistributedDataParallel(randomised(toy_config()))
    inputs, targets, noise, time = own
    losses = model(inputs, targets, noise=noise, time=time)
    losses.total.backward()
    found["model"] = {name: value.clone() for name, value in gradients(model.module).items()}
    found["losses"] = dict(losses._asdict())

    model.zero_grad()
    micro = list(halves(own))
    counts = mean_count(*(targets.counts(inputs, toy_config()) for inputs, targets, *_ in micro))
    for index, (inputs, targets, noise, time) in enumerate(micro):
        with nullcontext() if index + 1 == len(micro) else model.no_sync():
            losses = model(inputs, targets, noise=noise, time=time, counts=counts)
            (losses.total / len(micro)).backward()
    found["accumulated"] = gradients(model.module)

    if rank == 0:  # alone: nothing may wait for the other process
        with torch.no_grad():
            inputs, targets, noise, time = own
            found["alone"] = dict(model.module(inputs, targets, noise=noise, time=time)._asdict())
    torch.save(found, Path(folder, f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()


def halves(batch: Batch) -> Iterator[Batch]:
    """Micro-batches of different sizes."""
    return (part(batch, start, stop) for start, stop in pairwise((0, 1, SAMPLES // 2)))
