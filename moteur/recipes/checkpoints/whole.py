"""Files that are there whole or not at all."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp


@contextmanager
def whole_folder(folder: Path, *, last: str, stale: tuple[str, ...] = ()) -> Generator[Path]:
    """A folder to write files into, which are moved into `folder` together when the block ends well.

    Until then `folder` is as it was. Then `last`, without which readers believe nothing in the folder, is taken away,
    the other files are moved, and `last` is put there at the end: a process that is killed, or a move that fails,
    leaves what was there before, what is new, or something that is refused, and perhaps a hidden `.partial-` folder
    with what it had written. Other files in `folder` stay.

    Args:
        folder: Made if needed.
        last: The file without which the folder is not read.
        stale: Files that are removed if the new ones do not include them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stage = Path(mkdtemp(prefix=".partial-", dir=folder))
    try:
        yield stage
        names = sorted(path.name for path in stage.iterdir())
        for name in names:
            (stage / name).chmod(0o666 & ~_umask())  # as any new file; safetensors makes its own for the owner alone
    except BaseException:
        for path in stage.iterdir():
            path.unlink()
        stage.rmdir()
        raise
    # From here on what fails leaves the rest of the new files in the stage: they are the only whole copy there is.
    for name in (last, *stale):
        (folder / name).unlink(missing_ok=True)
    for name in sorted(names, key=lambda name: name == last):
        os.replace(stage / name, folder / name)  # noqa: PTH105 -- the tests cut the process off at this call
    stage.rmdir()


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current
