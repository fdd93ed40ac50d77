"""What may be named as the place of a model, and how it comes from there."""

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Hub:
    """What the Hub's client is told besides repository, revision and files; see there."""

    cache_dir: str | Path | None = None
    token: str | bool | None = None
    force_download: bool = False
    local_files_only: bool = False

    def folder(self, source: str | Path, revision: str | None, patterns: tuple[str, ...]) -> Path:
        """The folder itself, or where the client keeps these files of a repository."""
        if Path(source).is_dir():
            return Path(source)
        found = snapshot_download(
            str(source),
            revision=revision,
            cache_dir=self.cache_dir,
            token=self.token,
            force_download=self.force_download,
            local_files_only=self.local_files_only,
            allow_patterns=list(patterns),
        )
        return Path(found)


def expect_source(argument: str, source: str | Path, revision: str | None) -> None:
    """Refuse what is neither a folder nor a Hub id, before anybody looks for it on the network.

    Raises:
        ValueError: The argument is named.
    """
    path = Path(source)
    if path.is_dir():
        _expect_no_revision("revision", source, "a folder", revision)
    elif path.exists():
        raise ValueError(f"{argument}: expected the folder with config.json and the weights, got the file {source}")
    elif not isinstance(source, str) or not _HUB_ID.fullmatch(source):
        raise ValueError(f"{argument}: expected a folder or a Hub id owner/name, got {source}")


@dataclass(frozen=True)
class Place:
    """Where the Cosmos tokenizer is: folder, file or Hub id, and what is needed to fetch it."""

    source: str | Path
    revision: str | None
    hub: Hub

    def __str__(self) -> str:
        return str(self.source) if self.revision is None else f"{self.source} at {self.revision}"


def place_of_cosmos(cosmos: str | Path | None, revision: str | None, hub: Hub) -> Place | None:
    """The place, or None for none; what can be no place is refused before anything is read.

    Raises:
        ValueError: `cosmos` or `cosmos_revision` is named.
    """
    if cosmos is None:
        if revision is not None:
            raise ValueError(f"cosmos_revision: expected None without cosmos=, got {revision!r}")
        return None
    if Path(cosmos).exists():
        _expect_no_revision("cosmos_revision", cosmos, "on this machine", revision)
    elif not isinstance(cosmos, str) or not _HUB_ID.fullmatch(cosmos):
        raise ValueError(f"cosmos: expected a file, a folder or a Hub id owner/name, got {cosmos}")
    return Place(cosmos, revision, hub)


def _expect_no_revision(argument: str, source: str | Path, what: str, revision: str | None) -> None:
    if revision is not None:
        raise ValueError(f"{argument}: only the Hub has revisions, and {source} is {what}; got {revision!r}")
