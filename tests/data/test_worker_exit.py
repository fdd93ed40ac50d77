"""Workers that are told to stop in the middle of their work end in silence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moteur.data import loader

ROOT = Path(__file__).parents[2]

# The collation leaves its tensor in the worker's own memory. A thread of the queue then copies it to shared memory
# without holding the interpreter, which takes long enough here that a worker is always caught in it.
BREAKS_OFF = """
import torch
from moteur.data import Loader
from moteur.sampling import EpochOrder, DatasetPool, Sampler

class Large:
    def __getitem__(self, index):
        return torch.full((5_000_000,), float(index))

def stacked(items):
    return torch.stack(items)

if __name__ == "__main__":
    sampler = Sampler(EpochOrder({"large": 100}))
    batches = Loader(DatasetPool({"large": Large()}.__getitem__), sampler, batch_size=4, workers=2, collate=stacked)
    for turn, batch in enumerate(batches):
        if turn == 1:
            break
    workers = batches._batches._iterator._workers
    del batches, batch
    print([worker.exitcode for worker in workers])
"""


def test_workers_stopped_in_the_middle_of_a_batch_end_in_silence(tmp_path: Path) -> None:
    script = tmp_path / "breaks_off.py"
    script.write_text(BREAKS_OFF, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(  # noqa: S603  # our own script
        [sys.executable, "-W", "ignore:This DataLoader will create", str(script)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("[0, 0]\n", "", 0)


def test_a_worker_that_failed_is_left_to_tell_why(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    try:
        int("no number")
    except ValueError:
        loader._leave_worker()
    assert codes == []
    loader._leave_worker()
    assert codes == [0]
