"""Who shards: processes that train together read every frame once, in torch and in the trainers around it.

Trainers that are not installed are skipped: `pip install accelerate lightning webdataset torchdata` runs them all.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BEGIN = """
import json, os, sys, warnings
from itertools import islice
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from moteur.data import Loader
from moteur.sampling import DatasetPool, EpochOrder, Interleave, Sampler, WeightedOrder

warnings.simplefilter("ignore")
folder, rank, ranks = sys.argv[1], int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
frames = {"kitchen": 700, "lab": 300}
numbers = {"kitchen": range(700), "lab": range(1000, 1300)}

def ours(rank, ranks):
    return Loader(DatasetPool(numbers), Sampler(EpochOrder(frames, rank=rank, ranks=ranks)), batch_size=16)

def plain(rank, ranks):
    sampler = Sampler(EpochOrder(frames, rank=rank, ranks=ranks), concatenated=frames)
    return DataLoader([*numbers["kitchen"], *numbers["lab"]], batch_size=10, sampler=sampler)

def read(batches):
    return [int(number) for batch in batches for number in batch]
"""
END = """
with open(f"{folder}/{rank}.json", "w") as file:
    json.dump(found, file)
"""
EVERY_FRAME = [*range(700), *range(1000, 1300)]

TORCH = """
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
model = torch.nn.Linear(1, 1)
fully_shard(model)
steps = []
for batch in ours(rank, ranks):
    model(batch[:, None].float() / 1000).mean().backward()  # waits for the other process
    steps.append(batch.tolist())
mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "tensor"))
data = mesh["data"]
found = {"steps": len(steps), "frames": read(steps), "same data": read(ours(data.get_local_rank(), data.size()))}
dist.barrier()
dist.destroy_process_group()
"""

ACCELERATE = """
from accelerate import Accelerator

accelerator = Accelerator(cpu=True)
rank, ranks = accelerator.process_index, accelerator.num_processes
loader = ours(rank, ranks)
found = {
    "handed back": accelerator.prepare(loader) is loader,
    "frames": read(accelerator.prepare(ours(rank, ranks))),
    "sharded twice": read(accelerator.prepare(plain(rank, ranks))),
    "sharded by accelerate": read(accelerator.prepare(plain(0, 1))),
    "left out of prepare": read(plain(rank, ranks)),
}
"""

LIGHTNING = """
import lightning

class Reads(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.frames = torch.nn.Linear(1, 1), []

    def training_step(self, batch, index):
        self.frames += batch.tolist()
        return self.layer(batch[:, None].float()).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

def fit(made, resumed=None, saved=None, **options):
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    options = {"accelerator": "cpu", "devices": ranks, "strategy": "ddp", "max_epochs": 1} | options
    trainer = lightning.Trainer(**dict.fromkeys(quiet, False), **options)
    trainer.fit(model := Reads(), made(trainer.global_rank, trainer.world_size), ckpt_path=resumed)
    if saved:
        trainer.save_checkpoint(saved)
    return model.frames

saved = f"{folder}/lightning.ckpt"
found = {
    "frames": fit(ours),
    "sharded twice": fit(plain),
    "not sharded by Lightning": fit(plain, use_distributed_sampler=False),
    "resumed": fit(ours, saved=saved, max_steps=7, max_epochs=-1)
    + fit(ours, resumed=saved, max_steps=20, max_epochs=-1),
    "unbroken": read(islice(ours(rank, ranks), 20)),
}
"""

WEBDATASET = """
import webdataset
from torch.utils.data import IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

class Streams(Interleave, IterableDataset):
    pass

def opened(name):
    urls = [f"{folder}/{name}-{shard}.tar" for shard in range(4)]
    shards = webdataset.WebDataset(urls, nodesplitter=webdataset.split_by_node, shardshuffle=False)
    return shards.decode().map(lambda sample: sample["json"])

dist.init_process_group("gloo")
if rank == 0:
    for name, held in numbers.items():
        for shard in range(4):
            with webdataset.TarWriter(f"{folder}/{name}-{shard}.tar") as file:
                for number in held[shard :: 4]:
                    file.write({"__key__": f"{number:06d}", "json": number})
dist.barrier()
halves = {name: count // 2 for name, count in frames.items()}
quarters = {name: count // 4 for name, count in frames.items()}
mixture = WeightedOrder(dict.fromkeys(frames, 1), {"kitchen": 0.8, "lab": 0.2}, seed=rank)

def batches():
    return StatefulDataLoader(Streams(mixture, opened), batch_size=8, num_workers=2)

loader = batches()
begun = list(islice(loader, 13))
resumed = batches()
resumed.load_state_dict(loader.state_dict())
found = {
    "frames": list(Interleave(EpochOrder(halves), opened)),
    "two workers": list(DataLoader(Streams(EpochOrder(quarters), opened), batch_size=None, num_workers=2)),
    "sharded twice": list(Interleave(EpochOrder(frames, rank=rank, ranks=ranks), opened)),
    "resumed": read(begun) + read(islice(resumed, 20)),
    "unbroken": read(islice(batches(), 33)),
}
"""


def found_by_two_processes(folder: Path, script: str, *, torchrun: bool = False) -> list[dict[str, Any]]:
    """What the script found in each of two processes, started by `torchrun` or as it would start them."""
    program = folder / "program.py"
    program.write_text(BEGIN + script + END)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    command = [sys.executable, str(program), str(folder)]
    if torchrun:
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    processes = [
        subprocess.Popen(  # noqa: S603 - our own interpreter and script
            command, env=environment | {"RANK": str(rank)}, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for rank in range(1 if torchrun else 2)
    ]
    for process in processes:
        said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_with_a_sharded_model_read_every_frame_once_in_as_many_steps(tmp_path: Path) -> None:
    one, other = found_by_two_processes(tmp_path, TORCH)
    assert sorted(one["frames"] + other["frames"]) == EVERY_FRAME
    assert one["steps"] == other["steps"] == 32
    # Ranks that share the layers of one replica read the same data.
    assert one["same data"] == other["same data"]
    assert sorted(one["same data"]) == EVERY_FRAME


@pytest.mark.skipif(find_spec("accelerate") is None, reason="accelerate is not installed")
def test_accelerate_hands_a_loader_back_and_loses_half_of_a_plain_one_that_is_sharded_already(tmp_path: Path) -> None:
    one, other = found_by_two_processes(tmp_path, ACCELERATE, torchrun=True)
    assert one["handed back"]
    for way in ("frames", "sharded by accelerate", "left out of prepare"):
        assert sorted(one[way] + other[way]) == EVERY_FRAME, way
    assert len(set(one["sharded twice"] + other["sharded twice"])) == 500


@pytest.mark.skipif(find_spec("lightning") is None, reason="lightning is not installed")
def test_lightning_reads_a_loader_as_it_is_and_resumes_it_exactly(tmp_path: Path) -> None:
    one, other = found_by_two_processes(tmp_path, LIGHTNING, torchrun=True)
    for way in ("frames", "not sharded by Lightning"):
        assert sorted(one[way] + other[way]) == EVERY_FRAME, way
    assert len(set(one["sharded twice"] + other["sharded twice"])) == 500
    for process in (one, other):
        assert process["resumed"] == process["unbroken"]


@pytest.mark.skipif(not (find_spec("webdataset") and find_spec("torchdata")), reason="webdataset is not installed")
def test_webdatasets_that_shard_themselves_are_read_once_interleaved_by_the_order_of_one_rank(tmp_path: Path) -> None:
    one, other = found_by_two_processes(tmp_path, WEBDATASET, torchrun=True)
    for way in ("frames", "two workers"):
        assert sorted(one[way] + other[way]) == EVERY_FRAME, way
    assert len(set(one["sharded twice"] + other["sharded twice"])) == 700
    for process in (one, other):
        assert process["resumed"] == process["unbroken"]
