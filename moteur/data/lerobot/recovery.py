"""What a killed writer left behind: how far a set got, told from what its last rename vouches for."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moteur.data.lerobot.episodes import EPISODES_GLOB, read_table
from moteur.data.lerobot.layout import TASKS_FILE
from moteur.data.lerobot.summary import Summary, merge_summaries

_PARTS = ("min", "max", "mean", "std", "count")


def recorded_summaries(root: Path, episodes: int) -> dict[str, Summary]:
    """Statistics of the first `episodes` episodes, merged from those kept beside each.

    Not read from `stats.json`, which is renamed into place before `info.json` and may count an episode that is not
    part of the set. A column that some episode has no statistics of is left out.

    Raises:
        ValueError: An episode's statistics are no numbers, or not of the shape of another's; file and column are named.
            A text is no UTF-8; the file is named.
    """
    found: dict[str, list[Summary]] = defaultdict(list)
    for path in sorted(root.glob(EPISODES_GLOB)):
        try:
            rows = read_table(path).to_pylist()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: a column of texts is no UTF-8 ({error})") from error
        for row in rows:
            if row["episode_index"] >= episodes:
                continue
            for name in [name for name in row if name.startswith("stats/") and name.endswith("/mean")]:
                key = name.removeprefix("stats/").removesuffix("/mean")
                summary = {part: row.get(f"stats/{key}/{part}") for part in _PARTS}
                if None not in summary.values():
                    _check(f"{path}: stats/{key} of episode {row['episode_index']}", summary, found[key][:1])
                    found[key].append(summary)
    return {key: merge_summaries(parts) for key, parts in found.items() if len(parts) == episodes}


def _check(where: str, summary: Summary, before: Sequence[Summary]) -> None:
    try:
        arrays = {name: np.asarray(value, dtype=np.float64) for name, value in summary.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} must hold numbers, got {summary!r:.200}") from error
    shapes = {array.shape for name, array in arrays.items() if name != "count"}
    shapes |= {np.shape(other["mean"]) for other in before}
    if len(shapes) > 1 or arrays["count"].shape != (1,) or not arrays["count"][0] >= 1:
        raise ValueError(f"{where} must have one shape and a count of at least 1, got {summary!r:.200}")


def is_unborn(root: Path, *, scratch: Path) -> bool:
    """Whether a folder holds nothing but the beginnings of a set whose `info.json` never arrived."""
    files = {path for path in root.rglob("*") if path.is_file() and scratch not in path.parents}
    return files <= {root / TASKS_FILE} and (not files or scratch.exists())
