"""What tells two files, sets or checkpoints apart: their content, whatever their sizes and dates."""

import hashlib
import json
from pathlib import Path


def of_path(path: Path) -> str:
    """Digest of a file's bytes; of a folder, of every file in it and of its name there."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    names = [[file.relative_to(path).as_posix(), of_path(file)] for file in files]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()
