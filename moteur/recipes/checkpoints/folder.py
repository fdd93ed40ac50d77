"""Checkpoint folders: their files change together, and readers see all of the old ones or all of the new ones.

A save writes a hidden folder inside, `.partial-*`, and renames it `.complete`: from here on the new files count. Then
they are moved into place. Whoever comes next, a reader too, finishes the moves of a save that was cut off. A reader
holds a shared lock on the folder, and moves need the lock alone; locks end with their process. Where the file system
has no locks on folders, a reader that a save came upon says so.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

from moteur.files import to_disk

CONFIG = "config.json"
STATISTICS = "stats.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = "model-*-of-*.safetensors"
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "chat_template.jinja"),
)

_MODEL = (CONFIG, STATISTICS, SINGLE, INDEX, SHARDS)
_DRAFT, _COMPLETE, _NAMES = ".partial-", ".complete", ".names"


@contextmanager
def replacing(folder: Path) -> Generator[Path]:
    """Context with an empty folder for new files, which take their places in `folder` together at the end.

    They are on the disk before they count. Old files of the model (configuration, weights, statistics) go if the new
    ones have none of that name, those of a text tokenizer if the new ones bring any; other files stay. A block that
    raises changes nothing. What killed processes left is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        with _locked(folder):  # else another process could take the draft for that of a killed one
            draft = Path(mkdtemp(prefix=_DRAFT, dir=folder))
            held.enter_context(_locked(draft, fcntl.LOCK_EX))
        try:
            yield draft
            _settle(draft)
            with _locked(folder, fcntl.LOCK_EX):
                _finish(folder)
                draft.rename(folder / _COMPLETE)
                _finish(folder)
                _sweep(folder)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise


@contextmanager
def reading(folder: Path) -> Generator[Path]:
    """Context in which no save moves files of the folder.

    Raises:
        ValueError: A save was cut off while it moved its files, and the folder cannot be written to; or the folder
            changed all the same.
    """
    with _locked(folder) as lock:
        while _is_pending(folder):
            _lock(lock, fcntl.LOCK_EX)
            try:
                _finish(folder)
            except OSError as error:
                raise ValueError(
                    f"{folder}: a save into it was cut off, and it cannot be finished here ({error}); load it once "
                    "where the folder can be written to"
                ) from error
            _lock(lock, fcntl.LOCK_SH)
        before = file_identity(folder / CONFIG)
        yield folder
        if _is_pending(folder) or file_identity(folder / CONFIG) != before:  # somebody who takes no locks
            raise ValueError(f"{folder / CONFIG}: changed while the folder was read, by a save perhaps; load it again")


def file_identity(file: Path | int) -> tuple[int, ...] | None:
    """Identity of a file, a path or a descriptor: differs once it is replaced or changed. None if there is none."""
    try:
        status = os.stat(file)  # noqa: PTH116  # a descriptor has no path
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _is_pending(folder: Path) -> bool:
    complete = folder / _COMPLETE
    return complete.is_dir() and not complete.is_symlink()


def _finish(folder: Path) -> None:
    """Move the files of a save that is complete to their places; it can be cut off and called again."""
    if not _is_pending(folder):
        return
    complete = folder / _COMPLETE
    if (complete / _NAMES).is_file():  # it is removed when all are in their places
        names = set(json.loads((complete / _NAMES).read_text(encoding="utf-8")))
        owned = (*_MODEL, *(TOKENIZER_FILES if names & {*TOKENIZER_FILES} else ()))
        for old in [path for pattern in owned for path in folder.glob(pattern)]:
            if old.name not in names:
                old.unlink()
        for path in _files(complete):
            place = folder / path.relative_to(complete)
            if path.name != _NAMES:
                place.parent.mkdir(parents=True, exist_ok=True)
                path.replace(place)
        to_disk(folder)
        (complete / _NAMES).unlink()
    shutil.rmtree(complete)


def _settle(draft: Path) -> None:
    """List the new files, give them the modes of any new file, and have them on the disk."""
    files = _files(draft)
    names = [str(path.relative_to(draft)) for path in files]
    (draft / _NAMES).write_text(json.dumps(names), encoding="utf-8")
    umask = os.umask(0o022)
    os.umask(umask)
    for path in (*files, draft / _NAMES):
        path.chmod(0o666 & ~umask)  # safetensors makes its own for the owner alone
        to_disk(path)
    for path in {draft, *(path.parent for path in files)}:
        to_disk(path)


def _sweep(folder: Path) -> None:
    """Remove the drafts of killed processes: nobody holds their locks."""
    for draft in folder.glob(f"{_DRAFT}*"):
        with suppress(OSError), _locked(draft, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(draft)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@contextmanager
def _locked(folder: Path, kind: int = fcntl.LOCK_SH) -> Generator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, kind)
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> None:
    """Take a lock; an OSError where another process holds it and `kind` says not to wait."""
    try:
        fcntl.flock(descriptor, kind)
    except OSError:
        if kind & fcntl.LOCK_NB:
            raise
