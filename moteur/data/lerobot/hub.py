"""Fetching a LeRobot set from the Hugging Face Hub, on request only."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, RevisionNotFoundError

from moteur.data.lerobot.info import VERSIONS


def fetch(repo_id: str, *, revision: str | None = None, cache_dir: Path | None = None) -> Path:
    """Download a LeRobot set (or find it in the cache) and return its folder.

    LeRobot marks format versions by Git tags, so the newest known version's tag is asked for first, then the older
    one's, then the main branch, whose `info.json` says what it is.

    Args:
        repo_id: Name on the Hub, such as `"lerobot/pusht"`.
        revision: A tag, branch or commit to take instead.
        cache_dir: Where to keep it; the Hub's own cache if not given.

    Raises:
        ValueError: None of the revisions exists.
        FileNotFoundError: The Hub cannot be reached, and none of the revisions is in the cache.
    """
    tried = (revision,) if revision else (*VERSIONS, "main")
    unreachable: LocalEntryNotFoundError | None = None
    for candidate in tried:
        try:
            return Path(snapshot_download(repo_id, repo_type="dataset", revision=candidate, cache_dir=cache_dir))
        except RevisionNotFoundError:
            continue
        except LocalEntryNotFoundError as error:  # offline: an older version may be in the cache
            unreachable = unreachable or error
    if unreachable is not None:
        raise unreachable
    raise ValueError(f"repo_id {repo_id!r} has none of the revisions {', '.join(tried)}")
