"""What may be named as the place of a model."""

import re
from pathlib import Path

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def expect_source(argument: str, source: str | Path, revision: str | None) -> None:
    """Refuse what is neither a folder nor a Hub id, before anybody looks for it on the network.

    Raises:
        ValueError: The argument is named.
    """
    path = Path(source)
    if path.is_dir():
        if revision is not None:
            raise ValueError(f"revision: only the Hub has revisions, and {source} is a folder; got {revision!r}")
    elif path.exists():
        raise ValueError(f"{argument}: expected the folder with config.json and the weights, got the file {source}")
    elif not isinstance(source, str) or not _HUB_ID.fullmatch(source):
        raise ValueError(f"{argument}: expected a folder or a Hub id owner/name, got {source}")
