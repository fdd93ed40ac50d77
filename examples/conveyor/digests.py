"""What tells two files, two sets or two policies apart: their content, whatever their names, sizes and dates."""

import hashlib
import json
from pathlib import Path

import torch
from robot import Policy


def of_path(path: Path) -> str:
    """Digest of a file's bytes; of a folder, of every file in it and of its name there."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    names = [[file.relative_to(path).as_posix(), of_path(file)] for file in files]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def of_policy(policy: Policy) -> str:
    """Digest of all that a policy acts by: sizes, statistics, and every tensor with its name."""
    found = hashlib.sha256(repr((policy.model.config, policy.statistics.to_dict())).encode())
    for name, value in policy.model.state_dict().items():
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
