"""One writer of a set at a time."""

import fcntl
import os
import weakref
from contextlib import suppress
from pathlib import Path


class WriterLock:
    """An exclusive lock on a file, held until `release` or until the process ends, however it ends.

    Args:
        root: Folder of the set.
        folder: Where the lock file is kept; made if it is not there.

    Raises:
        ValueError: Another writer holds the lock.
        OSError: The file cannot be made, or its file system knows no locks; the file is named.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self._path = folder / "lock"
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:  # the folder was removed by a writer that was closed in between
                continue
            close = weakref.finalize(self, os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                close()
                raise ValueError(
                    f"root {root} must have one writer at a time; another SetWriter has it open, close that one first"
                ) from error
            except OSError as error:
                close()
                error.filename = str(self._path)
                raise
            if os.fstat(descriptor).st_nlink:
                break
            close()  # the lock of a file that its last holder has removed says nothing about the one there now
        self._close = close

    @property
    def held(self) -> bool:
        """Whether the lock has not been released."""
        return self._close.alive

    def release(self) -> None:
        """Let the next writer in; remove the lock file, and its folder if nothing else is in it."""
        if self.held:
            self._path.unlink(missing_ok=True)
            with suppress(OSError):  # not empty: what a killed writer left, or the next writer's lock
                self._path.parent.rmdir()
            self._close()
