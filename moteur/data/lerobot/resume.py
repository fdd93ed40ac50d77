"""Whether an existing set is one that the writer can go on with: what it says of itself must stay true."""

from collections.abc import Mapping
from pathlib import Path

from moteur.data.lerobot.info import INFO_FILE, Feature, Info
from moteur.data.lerobot.layout import CHUNKS_SIZE, DATA_PATH, SCALARS, VIDEO_PATH


def check_continues(
    root: Path, stored: Info, *, fps: int, features: Mapping[str, Feature], robot_type: str | None
) -> None:
    """Compare a set's `info.json` with what is about to be recorded into it.

    Args:
        root: The set's folder.
        stored: What its `info.json` says.
        fps: Frames per second that will be recorded.
        features: The columns that will be recorded, without bookkeeping; entry names are compared where they are given.
        robot_type: The robot's name, or None for whatever the set says.

    Raises:
        ValueError: Something differs; the file, the field and both values are named.
    """
    where = root / INFO_FILE
    if stored.version != "v3.0":
        raise ValueError(f"root {root} is a {stored.version} set; only v3.0 can be continued")
    if stored.fps != fps:
        raise ValueError(f"{where}: fps is {stored.fps}, the argument fps is {fps}")
    if robot_type not in (None, stored.robot_type):
        raise ValueError(f"{where}: robot_type is {stored.robot_type!r}, the argument robot_type is {robot_type!r}")
    layout = {"chunks_size": CHUNKS_SIZE, "data_path": DATA_PATH, "video_path": VIDEO_PATH}
    for name, written in layout.items():
        found = getattr(stored, name)
        if found != written and not (name == "video_path" and not stored.video_keys):
            raise ValueError(f"{where}: {name} is {found!r}, only sets with {written!r} can be continued")
    given = dict(features) | SCALARS
    if set(given) != set(stored.features):
        missing, unknown = sorted(set(stored.features) - set(given)), sorted(set(given) - set(stored.features))
        raise ValueError(f"features must be those of {where}; missing {missing}, unknown {unknown}")
    for key, feature in given.items():
        _check_feature(f"{where}: features[{key!r}]", stored.features[key], feature)


def ordered_tasks(root: Path, tasks: Mapping[int, str]) -> list[str]:
    """Return the task texts by number; a new one gets the next number.

    Raises:
        ValueError: The numbers have gaps, or two have the same text, so that numbers in the data would change meaning.
    """
    if sorted(tasks) != list(range(len(tasks))) or len(set(tasks.values())) != len(tasks):
        raise ValueError(f"{root / 'meta'}: task_index must be 0 to {len(tasks) - 1}, each with a text of its own")
    return [tasks[number] for number in range(len(tasks))]


def _check_feature(where: str, stored: Feature, given: Feature) -> None:
    pairs: dict[str, tuple[object, object]] = {
        "dtype": (stored.dtype, given.dtype),
        "shape": (stored.shape, given.shape),
    }
    if given.names is not None and not given.is_visual:  # a picture's axes have had several names
        pairs["names"] = (stored.labels, given.labels)
    pairs |= {name: (stored.video[name], value) for name, value in given.video.items() if name in stored.video}
    for name, (found, wanted) in pairs.items():
        if found != wanted:
            raise ValueError(f"{where}: {name} is {found!r}, what would be recorded has {wanted!r}")
