"""`moteur info`: what a folder or a file is."""
# ruff: noqa: PLC0415  -- heavy modules are imported where they are needed

import json
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moteur.commands.arguments import counted, file_size, read_robot, table
from moteur.commands.statistics_command import statistics_table

if TYPE_CHECKING:
    from moteur.data import Feature, Robot, Source

_COSMOS = ("encoder.jit", "decoder.jit", "encoder.safetensors", "decoder.safetensors", "cosmos.safetensors")


def info(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder of a LeRobot set, a checkpoint, cached latents or the Cosmos tokenizer; file of a robot "
            "schema or of statistics; name of a built-in robot.",
            metavar="SOURCE",
            show_default=False,
        ),
    ],
) -> None:
    """Say what a folder or a file is.

    Sizes, columns, cameras, robots. Only headers are read.
    """
    path = Path(source)
    if path.is_file() and path.suffix == ".json" and _is_statistics(path):
        from moteur.data import RobotStatistics

        typer.echo(statistics_table(RobotStatistics.load(path)))
    elif path.is_file() and path.suffix in {".json", ".yaml", ".yml"}:
        typer.echo(_robot(read_robot(source)))
    elif (path / "meta" / "info.json").is_file():
        typer.echo(_set(path))
    elif (path / "config.json").is_file():
        typer.echo(_checkpoint(path))
    elif path.is_dir() and (present := [path / name for name in _COSMOS if (path / name).is_file()]):
        rows = [[file.name, file_size(file.stat().st_size)] for file in present]
        typer.echo(f"Cosmos tokenizer: {path}\n{table(rows)}")
    elif path.is_dir() and (files := [file for file in sorted(path.glob("*.safetensors")) if _header(file)]):
        typer.echo(_latents(path, files))
    elif path.exists():
        raise ValueError(
            f"source: expected a set (meta/info.json), a checkpoint (config.json), cached latents (*.safetensors), a "
            f"schema or statistics (.yaml, .json), got {source}"
        )
    else:
        typer.echo(_robot(_built_in(source)))


def _built_in(name: str) -> "Robot":
    from moteur.data import ROBOTS

    if name not in ROBOTS:
        raise FileNotFoundError(
            f"source: expected a folder, a file or one of the robots {sorted(ROBOTS)}, got {name!r}"
        )
    return ROBOTS[name]


def _is_statistics(path: Path) -> bool:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got other text ({error})") from error
    return isinstance(values, dict) and "steps" in values


def _set(root: Path) -> str:
    from moteur.data import read_info

    found = read_info(root)
    hidden = ("timestamp", "frame_index", "episode_index", "index", "task_index")
    columns = {key: feature for key, feature in found.features.items() if key not in hidden}
    lines = [
        ["robot type", found.robot_type or "not named"],
        ["frame rate", f"{found.fps} Hz"],
        ["episodes", f"{found.num_episodes:,}"],
        ["frames", f"{found.num_frames:,} ({timedelta(seconds=round(found.num_frames / found.fps))})"],
    ]
    cameras = [_camera(key, feature) for key, feature in columns.items() if feature.is_visual]
    others = [
        [key, feature.dtype, " × ".join(map(str, feature.shape)), ", ".join(feature.labels or ())]
        for key, feature in columns.items()
        if not feature.is_visual
    ]
    parts = [f"LeRobot set {found.version}: {root}", table(lines)]
    parts += [f"cameras\n{_indented(cameras)}" if cameras else "no cameras"]
    parts += [f"columns\n{_indented(others)}" if others else "no other columns"]
    return "\n".join(parts)


def _camera(key: str, feature: "Feature") -> list[str]:
    height, width = feature.height_and_width
    return [key, f"{width} × {height}", "depth" if feature.is_depth else feature.dtype]


def _robot(robot: "Robot") -> str:
    cameras = [[f"view {place}", camera or "none"] for place, camera in enumerate(robot.cameras)]
    runs = robot.relative or ((-robot.action_dim,) if robot.action else ())
    lines = [
        ["sets of robot_type", ", ".join(robot.robot_types) or "any"],
        ["control rate", "any" if robot.rate is None else f"{robot.rate} Hz"],
        [f"state ({robot.state_dim})", _columns(robot.state)],
        [f"action ({robot.action_dim})", _columns(robot.action)],
        ["", ", ".join(f"{abs(run)} {'relative' if run > 0 else 'absolute'}" for run in runs)],
        ["joints", ", ".join(robot.joints or ("not named",))],
    ]
    slots = "cameras (view 0: head or front, 1: left or only wrist, 2: right wrist)"
    return f"robot schema: {robot.name}\n{table(lines)}\n{slots}\n{_indented(cameras)}"


def _columns(sources: "Sequence[Source]") -> str:
    return ", ".join(f"{part.key}[{part.start}:{part.start + part.size}]" for part in sources) or "none"


def _checkpoint(folder: Path) -> str:
    from moteur.recipes import inspect_checkpoint

    found = inspect_checkpoint(folder)
    config = found.config
    experts = {"und": config.und, "gen": config.gen, "act": config.act}
    widths = ", ".join(f"{name} {size.dim}" for name, size in experts.items() if size is not None)
    formats = ", ".join(f"{dtype} ({count:,})" for dtype, count in found.parameters.items())
    lines = [
        ["layout", "released" if found.released else "moteur's own"],
        ["parameters", f"{sum(found.parameters.values()):,} in {file_size(found.size)}"],
        ["number format", formats if len(found.parameters) > 1 else next(iter(found.parameters))],
        ["experts", f"{config.depth} layers, {config.heads} heads; widths {widths}"],
        ["pictures", f"{config.views} cameras of {config.frame_size} × {config.frame_size}"],
        ["instruction", f"at most {config.text_length} tokens"],
        ["state", f"at most {config.state_dim} dimensions"],
        ["actions", f"{config.chunk} steps of at most {config.action_dim} dimensions"],
        ["foresight", "no generation expert" if config.gen is None else f"{config.history} frames ahead"],
        ["Cosmos encoder", "yes" if found.encoder else "no"],
        ["Cosmos decoder", "yes" if found.decoder else "no"],
        ["text tokenizer", "yes" if found.tokenizer else f"no; released weights use {found.usual_tokenizer}"],
    ]
    robots = [[name, _known(name, values)] for name, values in found.statistics.items()]
    parts = [f"InternVLA-A1 checkpoint, {config.variant} variant: {folder}", table(lines)]
    parts += [f"robots\n{_indented(robots)}" if robots else "no robot's statistics"]
    parts += [f"note: {note}" for note in found.notes]
    return "\n".join(parts)


def _known(name: str, values: Any) -> str:  # noqa: ANN401  # an entry of stats.json
    from moteur.recipes import load_transforms

    try:
        robot = load_transforms({name: values})[name].robot
    except ValueError as error:
        return f"unusable: {error}"
    cameras = ", ".join(camera or "none" for camera in robot.cameras)
    return f"state {robot.state_dim}, action {robot.action_dim}, cameras {cameras}"


def _header(path: Path) -> dict[str, Any] | None:
    """What a file of cached latents says about itself; None for another file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            stored = (file.metadata() or {}).get("ingredients")
            names = [name for name in file.keys() if "/" in name] if stored else []  # noqa: SIM118  # not a dictionary
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a whole safetensors file, got a damaged or other one ({error})") from error
    return None if stored is None else {"ingredients": json.loads(stored), "shapes": shapes}


def _latents(folder: Path, files: list[Path]) -> str:
    counts: Counter[tuple[str, str, str, str]] = Counter()
    for path in files:
        header = _header(path)
        assert header is not None
        ingredients, shapes = header["ingredients"], header["shapes"]
        shape = " × ".join(map(str, next(iter(shapes.values()))[1:]))
        kind = (ingredients["tokenizer"][:12], ingredients["dtype"].removeprefix("torch."), shape)
        for name, size in shapes.items():
            counts[*kind, name.partition("/")[2]] += size[0]
    rows = [["tokenizer", "number format", "latent", "camera", "pictures"]]
    rows += [[*kind, f"{count:,}"] for kind, count in sorted(counts.items())]
    size = file_size(sum(path.stat().st_size for path in files))
    return f"Cached latents: {folder}, {counted(len(files), 'file')}, {size}\n{table(rows)}"


def _indented(rows: list[list[str]]) -> str:
    return "\n".join(f"  {line}" for line in table(rows).splitlines())
