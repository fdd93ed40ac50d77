"""Text files that are there whole: as they were, or as they shall be."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a file beside its name, have it on the disk, and rename it.

    A process that is killed leaves the old file, or the new one, and perhaps a hidden one that ends in `.part`.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)  # noqa: PTH105 - the tests cut the process off at this call
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
