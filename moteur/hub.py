"""Where weights come from: a file or folder here, or a repository of the Hugging Face Hub."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

_SHOWN = 8
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class HubOptions(TypedDict, total=False):
    """Options of the Hub's client: where its cache is, the access token, whether to download again or not at all."""

    cache_dir: str | Path | None
    token: str | bool | None
    force_download: bool
    local_files_only: bool


@dataclass(frozen=True)
class Location:
    """A folder here or a repository of the Hub, given as an argument; checked without asking the Hub.

    A string `owner/name` whose first part is a folder here is taken for a mistyped path, unless a revision is given.

    Attributes:
        argument: Name of the argument in messages.
        place: Folder or Hub id.
        revision: Branch, tag or commit on the Hub.
        hub: Options of the Hub's client.
        file: A single file will do as well.

    Raises:
        ValueError: The place is neither, or has a revision and is on this machine.
        TypeError: The options have one that the Hub's client does not take: a misspelt argument of the caller.
    """

    argument: str
    place: str | Path
    revision: str | None
    hub: HubOptions
    file: bool = False

    def __post_init__(self) -> None:
        """Refuse what is neither on this machine nor a Hub id, and options that nobody takes."""
        if unknown := sorted(self.hub.keys() - HubOptions.__annotations__.keys()):
            known = ", ".join(HubOptions.__annotations__)
            raise TypeError(f"got unexpected arguments: {', '.join(unknown)}; the Hub's client takes {known}")
        path, named = Path(self.place), "revision" if self.argument == "source" else f"{self.argument}_revision"
        kinds = f"{'a file, ' if self.file else ''}a folder or a Hub id owner/name"
        expected = f"{self.argument}: expected {kinds}, got {str(self.place)!r}"
        if str(self.place) and path.exists():
            if self.revision is not None:
                raise ValueError(f"{named}: expected None for {path}, which is on this machine, got {self.revision!r}")
            if not self.file and not path.is_dir():
                raise ValueError(f"{expected}, which is a file; name the folder with config.json and the weights")
        elif not isinstance(self.place, str) or not _HUB_ID.fullmatch(self.place):
            raise ValueError(f"{expected}; there is no such folder")
        elif path.parent.is_dir() and self.revision is None:
            present = sorted(entry.name for entry in path.parent.iterdir())
            more = f" and {len(present) - _SHOWN} more" if len(present) > _SHOWN else ""
            raise ValueError(
                f"{expected}; there is no such folder, and {path.parent} holds "
                f"{', '.join(present[:_SHOWN]) or 'nothing'}{more}. "
                f"For a repository of that name on the Hub give {named}="
            )

    def folder(self, patterns: Iterable[str]) -> Path:
        """The path itself, or the folder where the Hub's client keeps the repository's files of these patterns.

        Raises:
            FileNotFoundError: The Hub or its cache has no such repository or revision, or the Hub cannot be reached.
        """
        if Path(self.place).exists():
            return Path(self.place)
        # The Hub's client is slow to import, and local files do not need it.
        from huggingface_hub import snapshot_download  # noqa: PLC0415
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415

        place = str(self.place)
        try:
            return Path(snapshot_download(place, revision=self.revision, allow_patterns=list(patterns), **self.hub))
        except (HfHubHTTPError, LocalEntryNotFoundError) as error:
            reason = next(line for line in [*str(error).splitlines(), type(error).__name__] if line.strip())
            raise FileNotFoundError(
                f"{self.argument}: expected a folder or a repository of the Hub, got {place!r}; there is no such "
                f"folder in {Path.cwd()}, and the Hub's client says: {reason}"
            ) from error

    def __str__(self) -> str:
        return str(self.place) if self.revision is None else f"{self.place} at {self.revision}"


def is_hub_id(source: str) -> bool:
    """Whether a name in a report is a Hub id rather than a path."""
    return not Path(source).exists() and _HUB_ID.fullmatch(source.split(" at ", maxsplit=1)[0]) is not None
