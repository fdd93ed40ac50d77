"""Putting several files into place so that a killed process leaves either the old or the new state."""

import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any


class Commit:
    """Prepares files aside and renames them into place, in the order they were named, when the block ends well.

    Each rename is atomic. The sequence as a whole is made atomic by its last file: readers believe nothing that the
    last file does not mention. When the block raises, nothing is moved.

    Args:
        root: Folder that the files belong to.
        scratch: Folder on the same file system to prepare them in.
    """

    def __init__(self, root: Path, scratch: Path) -> None:
        self.root, self.scratch = root, scratch
        self._moves: list[tuple[Path, Path]] = []

    def file(self, target: str) -> Path:
        """Return where to write a file that will end up at `target`, a path below the root."""
        source = self.scratch / f"commit-{len(self._moves)}"
        self._moves.append((source, self.root / target))
        return source

    def adopt(self, source: Path, target: str) -> None:
        """Move an existing file to `target` with the others."""
        self._moves.append((source, self.root / target))

    def __enter__(self) -> "Commit":  # noqa: PYI034  # the run-time shape checks cannot resolve Self here
        self.scratch.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        for source, target in self._moves:
            if target.exists() and not source.exists():
                continue  # moved by an earlier attempt, which failed further on
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)  # noqa: PTH105  # the tests cut the process off at this call


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file the way LeRobot formats it."""
    path.write_text(json.dumps(value, indent=4, ensure_ascii=False), encoding="utf-8")


def empty_folder(path: Path) -> Path:
    """Make `path` an existing, empty folder."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path
