"""Hold this checkout against an older one: sessions, loader, loading and statistics, in turn in the same run.

    git worktree add ../old 941df50
    make before-after BEFORE=../old
    python benchmarks/before_after.py --before ../old session --dtype bfloat16 --depth 14 --rounds 5

Each version works in a process of its own on one thread, and both are asked in turn. Compared are CPU times, which
other programs on the machine disturb least, and the ratio of the two in each round; also without the time in the
kernel, which goes to finding pages where memory is short. What is called differently in the two is in
`version_before.py` and `version_after.py`. Each part replaces its own entry of
`benchmarks/results/before_after.json`.

- `session`: 3B widths and the full Cosmos encoder; depth and vocabulary are cut, so that both models and both sessions
  fit in memory. `plain` is `model.act`; `stateless` encodes both frames, `steady` that of t, `pushed` none; `push` is
  the encoding of a frame when it arrives.
- `loader`: 24 samples of three cameras of 224 pixels, decoded and collated, no workers; the collator alone; the bytes
  that travel for each sample.
- `loading`: `from_pretrained` of a checkpoint in the released layout, each time in a new process.
- `statistics`: of a set of 14 joints, with chunks of 50 steps.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from loader import write
from loading import runs, update
from loading_files import write_checkpoint
from timing import machine
from version_work import BATCH, BATCHES, Version

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "before_after.json"
PARTS = ("session", "loader", "loading", "statistics")
NAMES = ("before", "after")
FLOAT32_BOUND = 1e-4  # of actions, as in inference_arms.py
BFLOAT16_BOUND = 0.05  # two orders of rounding; the largest action is about 4


def main() -> None:
    """Measure the parts, print and write them."""
    options = _arguments()
    roots = dict(zip(NAMES, (options.before.resolve(), ROOT), strict=True))
    torch.set_num_threads(1)
    for part in options.parts or PARTS:
        found: dict[str, Any] = {
            "command": shlex.join(["python", "benchmarks/before_after.py", *_told(options), part]),
            "commits": {name: commit(root) for name, root in roots.items()},
            "rounds": options.rounds,
            "machine": machine(torch.device("cpu")),
        }
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            found |= {"session": session, "loader": loader, "loading": loading, "statistics": numbers}[part](
                roots, Path(folder), options
            )
        name = f"session, {options.dtype}, depth {options.depth}" if part == "session" else part
        print(json.dumps({name: found}, indent=2), flush=True)
        update(options.output, {name: found})


def session(roots: dict[str, Path], folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Ways to act, and whether both versions return the same."""
    write_checkpoint(folder / "checkpoint", sizes(options))
    given = sizes(options) | {"dtype": options.dtype, "sessions_only": options.sessions_only}
    with pair(roots, "session", folder, given) as versions:
        found = {"sizes": given} | facts(versions, "parameters", "session_computes_in")
        found["arms"] = in_turn(versions, options.rounds)
        old, new = (
            {arm: version.result(arm)["actions"].float() for arm in found["arms"] if arm != "push"}
            for version in versions
        )
    found["largest_action"] = max(actions.abs().max().item() for actions in old.values())
    found["max_difference_of_actions"] = {arm: (new[arm] - old[arm]).abs().max().item() for arm in old}
    found["bound"] = FLOAT32_BOUND if options.dtype == "float32" else BFLOAT16_BOUND
    found["within_bound"] = max(found["max_difference_of_actions"].values()) <= found["bound"]
    return found


def loader(roots: dict[str, Path], folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Samples a second and bytes a sample."""
    recorded = write(folder / "set", episodes=6, length=120)
    with pair(roots, "loader", folder, {}) as versions:
        found = {"set": recorded, "batch": BATCH} | facts(versions, "bytes_per_sample", "largest_tensors")
        found["arms"] = in_turn(versions, options.rounds)
        old, new = (version.result("loader") for version in versions)
    found["samples_per_cpu_second"] = {
        name: round(BATCH * BATCHES / found["arms"]["loader"][name]["median_s"], 1) for name in NAMES
    }
    found["pictures_states_and_actions_equal"] = all(torch.equal(old[name], new[name]) for name in old)
    return found


def loading(roots: dict[str, Path], folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds of `from_pretrained`, and the peak of memory over what the weights take."""
    path = write_checkpoint(folder / "checkpoint", sizes(options))
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
    for turn in range(options.rounds + 1):
        for name, root in roots.items():
            once = runs("moteur", path, 1, warm=True, root=root, sizes=sizes(options))
            taken[name] += once if turn else []  # the first fills the page cache
    found: dict[str, Any] = {"sizes": sizes(options), "file_bytes": path.stat().st_size}
    found["arms"] = {
        "from_pretrained": compared({name: [each["cpu_seconds"] for each in taken[name]] for name in NAMES})
    }
    found["held_bytes"] = {name: taken[name][0]["held_bytes"] for name in NAMES}
    found["peak_resident_over_held"] = {
        name: round(max(each["peak_resident_bytes"] for each in taken[name]) / found["held_bytes"][name], 3)
        for name in NAMES
    }
    return found


def numbers(roots: dict[str, Path], folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds of `compute_statistics`, and the largest difference of what it finds."""
    recorded = write(folder / "numbers", 32, episodes=20, length=300)
    with pair(roots, "statistics", folder, {}) as versions:
        found: dict[str, Any] = {"set": recorded, "arms": in_turn(versions, options.rounds)}
        old, new = (version.result("statistics") for version in versions)
    found["rows"] = {name: int(old[f"{name}.count"]) for name in ("state", "action")}
    spread = {group: old[f"{group}.std"] for group in found["rows"]}
    found["max_difference_in_standard_deviations"] = {
        name: ((new[name] - old[name]).abs() / spread[name.partition(".")[0]]).max().item()
        for name in old
        if not name.endswith("count")
    }
    return found


@contextmanager
def pair(roots: dict[str, Path], part: str, folder: Path, options: dict[str, Any]) -> Iterator[list[Version]]:
    """Both versions at work on a part, in processes that end with the block."""
    versions: list[Version] = []
    try:
        for name, root in roots.items():  # one after the other: making a session takes most memory
            versions.append(Version(name, root, part, folder, options))
        yield versions
    finally:
        for version in versions:
            version.close()


def in_turn(versions: list[Version], rounds: int) -> dict[str, Any]:
    """Run every arm of both versions in each round; the first round warms up, and the order alternates."""
    arms = list(versions[0].facts["arms"])
    taken: dict[str, dict[str, list[dict[str, float]]]] = {arm: {name: [] for name in NAMES} for arm in arms}
    for turn in range(rounds + 1):
        for arm in arms:
            for version in versions if turn % 2 else reversed(versions):
                once = version.run(arm)
                taken[arm][version.name] += [once] if turn else []
        print(f"round {turn} of {rounds}", taken, file=sys.stderr, flush=True)
    found: dict[str, Any] = {}
    for arm in arms:
        cpu, user = (
            compared({name: [once[kind] for once in taken[arm][name]] for name in NAMES})
            for kind in ("cpu_seconds", "user_seconds")
        )
        found[arm] = cpu
        if user["before"]["min_s"] >= 1:  # it is counted in hundredths of a second
            found[arm]["after_over_before_outside_the_kernel"] = user["after_over_before"]
    return found


def compared(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """CPU seconds of both versions, and the ratio of each pair."""
    ratios = [after / max(before, 1e-9) for before, after in zip(seconds["before"], seconds["after"], strict=True)]
    found = {name: {f"{key}_s": value for key, value in spread(values).items()} for name, values in seconds.items()}
    return found | {"after_over_before": spread(ratios)}


def spread(values: list[float]) -> dict[str, float]:
    """Median and extremes."""
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 4) for name, value in found.items()}


def facts(versions: list[Version], *names: str) -> dict[str, Any]:
    """What the versions said of themselves."""
    return {name: {version.name: version.facts[name] for version in versions} for name in names}


def sizes(options: argparse.Namespace) -> dict[str, int]:
    """Depth and vocabulary of the cut model; widths are those of 3B."""
    return {"depth": options.depth, "vision_depth": 24 * options.depth // 28, "vocabulary": 2000}


def commit(root: Path) -> str:
    """The commit that is checked out, with a mark if something was changed."""
    asked = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603 -- no input


def _told(options: argparse.Namespace) -> list[str]:
    """The options as one would type them; the folder of the older checkout has another name elsewhere."""
    told = ["--before", "../old", "--rounds", str(options.rounds), "--depth", str(options.depth)]
    told += ["--dtype", options.dtype]
    return [*told, "--sessions-only"] if options.sessions_only else told


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}; all if none is named")
    parser.add_argument("--before", type=Path, required=True, help="checkout of commit 941df50")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of sessions")
    parser.add_argument("--depth", type=int, default=7, help="layers of the experts; the vision tower is cut alike")
    parser.add_argument("--sessions-only", action="store_true", help="without plain, whose weights need memory")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="for temporary files")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"parts: expected some of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    return options


if __name__ == "__main__":
    main()
