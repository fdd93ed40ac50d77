"""Folders and repositories of the Hugging Face Hub as sources of weights."""

import re
from pathlib import Path
from typing import TypedDict

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class HubOptions(TypedDict, total=False):
    """Options of the Hub's client: where its cache is, the access token, whether to download again or not at all."""

    cache_dir: str | Path | None
    token: str | bool | None
    force_download: bool
    local_files_only: bool


def check_source(argument: str, source: str | Path, revision: str | None, *, file: bool = False) -> None:
    """Refuse a source that is neither on this machine nor a Hub id, without asking the Hub.

    A string `owner/name` whose first part is a folder here is taken for a mistyped path, unless a revision is given.

    Args:
        argument: Name of the argument in messages.
        source: Folder or Hub id.
        revision: Branch, tag or commit on the Hub.
        file: A single file will do as well.

    Raises:
        ValueError: The source is neither, or has a revision and is on this machine.
    """
    path, named = Path(source), "revision" if argument == "source" else f"{argument}_revision"
    expected = f"{argument}: expected {'a file, ' if file else ''}a folder or a Hub id owner/name, got {str(source)!r}"
    if path.exists():
        if revision is not None:
            raise ValueError(f"{named}: expected None for {source}, which is on this machine, got {revision!r}")
        if not file and not path.is_dir():
            raise ValueError(f"{expected}, which is a file; name the folder with config.json and the weights")
        return
    if not isinstance(source, str) or not _HUB_ID.fullmatch(source):
        raise ValueError(f"{expected}; there is no such folder")
    if path.parent.is_dir() and revision is None:
        present = sorted(entry.name for entry in path.parent.iterdir())
        listed = ", ".join(present[:8]) + (f" and {len(present) - 8} more" if len(present) > 8 else "")  # noqa: PLR2004
        raise ValueError(
            f"{expected}; there is no such folder, and {path.parent} holds {listed or 'nothing'}. "
            f"For a repository of that name on the Hub give {named}="
        )


def local_folder(
    argument: str, source: str | Path, revision: str | None, patterns: tuple[str, ...], hub: HubOptions
) -> Path:
    """Path of a source: itself, or the folder where the Hub's client keeps the repository's files.

    Args:
        argument: Name of the argument in messages.
        source: Checked by `check_source`.
        revision: Branch, tag or commit on the Hub.
        patterns: Files that may be needed.
        hub: Options of the Hub's client.

    Raises:
        FileNotFoundError: The Hub or its cache has no such repository or revision, or the Hub cannot be reached.
    """
    if Path(source).exists():
        return Path(source)
    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=list(patterns), **hub))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = next(line for line in [*str(error).splitlines(), type(error).__name__] if line.strip())
        raise FileNotFoundError(
            f"{argument}: expected a folder or a repository of the Hub, got {str(source)!r}; there is no such folder "
            f"in {Path.cwd()}, and the Hub's client says: {reason}"
        ) from error


def named(source: str | Path, revision: str | None) -> str:
    """Name of a source in reports."""
    return str(source) if revision is None else f"{source} at {revision}"


def is_hub_id(source: str) -> bool:
    """Whether a name in a report is a Hub id rather than a path."""
    return not Path(source).exists() and _HUB_ID.fullmatch(source.split(" at ", maxsplit=1)[0]) is not None
