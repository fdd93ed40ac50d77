"""What a killed writer left behind: how far a set got, told from what its last rename vouches for."""

from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq

from moteur.recipes.lerobot.layout import TASKS_FILE
from moteur.recipes.lerobot.summary import Summary, merge_summaries

_PARTS = ("min", "max", "mean", "std", "count")


def recorded_summaries(root: Path, episodes: int) -> dict[str, Summary]:
    """Statistics of the first `episodes` episodes, merged from those kept beside each.

    Not read from `stats.json`, which is renamed into place before `info.json` and may count an episode that is not
    part of the set. A column that some episode has no statistics of is left out.
    """
    found: dict[str, list[Summary]] = defaultdict(list)
    for path in sorted(root.glob("meta/episodes/chunk-*/file-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            if row["episode_index"] >= episodes:
                continue
            for name in [name for name in row if name.startswith("stats/") and name.endswith("/mean")]:
                key = name.removesuffix("/mean")
                summary = {part: row.get(f"{key}/{part}") for part in _PARTS}
                if None not in summary.values():
                    found[key.removeprefix("stats/")].append(summary)
    return {key: merge_summaries(parts) for key, parts in found.items() if len(parts) == episodes}


def is_unborn(root: Path, *, scratch: Path) -> bool:
    """Whether a folder holds nothing but the beginnings of a set whose `info.json` never arrived."""
    files = {path for path in root.rglob("*") if path.is_file() and scratch not in path.parents}
    return files <= {root / TASKS_FILE} and (not files or scratch.exists())
