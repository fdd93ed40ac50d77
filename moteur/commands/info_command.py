"""`moteur info`: what a folder or a file is."""
# ruff: noqa: PLC0415  -- heavy modules are imported where they are needed

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moteur.commands.arguments import counted, file_size, table
from moteur.commands.statistics_command import statistics_table

if TYPE_CHECKING:
    from moteur.data import Robot, Source

_COSMOS = ("encoder.jit", "decoder.jit", "encoder.safetensors", "decoder.safetensors", "cosmos.safetensors")
_KINDS = "a set (meta/info.json), a checkpoint (config.json), cached latents (*.safetensors), Cosmos weights"
_Source = Annotated[
    str,
    typer.Argument(
        help="Folder of a LeRobot set, a checkpoint, cached latents or the Cosmos tokenizer; file of a robot schema or "
        "of statistics; name of a built-in robot.",
        metavar="SOURCE",
    ),
]


def info(source: _Source) -> None:
    """Say what a folder or a file is.

    Sizes, columns, cameras, robots. Only headers are read.
    """
    from moteur.data import Robot

    path = Path(source)
    if path.suffix == ".json" and path.is_file():
        text = _json(path)
    elif path.suffix in {".yaml", ".yml"} and path.is_file():
        text = _robot(Robot.load(path))
    elif (path / "meta" / "info.json").is_file():
        text = _set(path)
    elif (path / "config.json").is_file():
        text = _checkpoint(path)
    elif present := [path / name for name in _COSMOS if (path / name).is_file()]:
        text = f"Cosmos tokenizer: {path}\n{table([[file.name, file_size(file.stat().st_size)] for file in present])}"
    elif path.is_dir() and (
        files := {file: header for file in path.glob("*.safetensors") if (header := _header(file))}
    ):
        text = _latents(path, files)
    elif path.exists():
        raise ValueError(f"source: expected {_KINDS}, a schema or statistics (.yaml, .json), got {source}")
    else:
        try:
            text = _robot(Robot.known(source))
        except ValueError as error:
            raise FileNotFoundError(
                f"source: expected a folder, a file or a robot such as aloha, got {source!r}; there is none here"
            ) from error
    typer.echo(text)


def _json(path: Path) -> str:
    """A schema or statistics, which have a field `chunk`."""
    from moteur.data import Robot, RobotStatistics
    from moteur.files import read_json

    values = read_json(path)
    is_statistics = isinstance(values, dict) and "chunk" in values
    return statistics_table(RobotStatistics.load(path)) if is_statistics else _robot(Robot.load(path))


def _set(root: Path) -> str:
    from moteur.data import Info

    found = Info.load(root)
    lines = [
        ["robot type", found.robot_type or "not named"],
        ["frame rate", f"{found.fps} Hz"],
        ["episodes", f"{found.num_episodes:,}"],
        ["frames", f"{found.num_frames:,} ({timedelta(seconds=round(found.num_frames / found.fps))})"],
    ]
    cameras: list[list[str]] = []
    columns: list[list[str]] = []
    for key, feature in found.features.items():
        if feature.is_visual:
            height, width = feature.height_and_width
            cameras.append([key, f"{width} × {height}", "depth" if feature.is_depth else feature.dtype])
        else:
            shape = " × ".join(map(str, feature.shape))
            columns.append([key, feature.dtype, shape, ", ".join(feature.labels or ())])
    seen = f"cameras\n{table(cameras, indent=2)}" if cameras else "no cameras"
    return f"LeRobot set {found.version}: {root}\n{table(lines)}\n{seen}\ncolumns\n{table(columns, indent=2)}"


def _robot(robot: "Robot") -> str:
    def columns(sources: "Sequence[Source]") -> str:
        return ", ".join(f"{part.key}[{part.start}:{part.start + part.size}]" for part in sources) or "none"

    runs = robot.relative or ((-robot.action_dim,) if robot.action else ())
    lines = [
        ["sets of robot_type", ", ".join(robot.robot_types) or "any"],
        ["control rate", "any" if robot.rate is None else f"{robot.rate} Hz"],
        [f"state ({robot.state_dim})", columns(robot.state)],
        [f"action ({robot.action_dim})", columns(robot.action)],
        ["", ", ".join(f"{abs(run)} {'relative' if run > 0 else 'absolute'}" for run in runs)],
        ["joints", ", ".join(robot.joints or ("not named",))],
    ]
    cameras = [[f"view {place}", camera or "none"] for place, camera in enumerate(robot.cameras)]
    slots = "cameras (view 0: head or front, 1: left or only wrist, 2: right wrist)"
    return f"robot schema: {robot.name}\n{table(lines)}\n{slots}\n{table(cameras, indent=2)}"


def _checkpoint(folder: Path) -> str:
    from moteur.recipes import InternVLAA1Config, inspect_checkpoint

    found = inspect_checkpoint(folder)
    config = found.config
    foresight = "no generation expert"
    if isinstance(config, InternVLAA1Config) and config.gen is not None:
        foresight = f"{config.history} frames ahead"
    widths = ", ".join(f"{name} {size.dim}" for name, size in config.experts.items())
    lines = [
        ["layout", "released" if found.released else "moteur's own"],
        ["parameters", f"{sum(found.parameters.values()):,} in {file_size(found.size)}"],
        ["number format", ", ".join(f"{dtype} ({count:,})" for dtype, count in found.parameters.items())],
        ["experts", f"{config.depth} layers, {config.heads} heads; widths {widths}"],
        ["pictures", f"{config.views} cameras of {config.frame_size} × {config.frame_size}"],
        ["instruction", f"at most {config.text_length} tokens"],
        ["state", f"at most {config.state_dim} dimensions"],
        ["actions", f"{config.chunk} steps of at most {config.action_dim} dimensions"],
        ["foresight", foresight],
        ["Cosmos encoder", "yes" if found.encoder else "no"],
        ["Cosmos decoder", "yes" if found.decoder else "no"],
        ["text tokenizer", "yes" if found.tokenizer else f"no; released weights use {found.usual_tokenizer}"],
    ]
    robots = [[name, _transform(name, values)] for name, values in found.statistics.items()]
    text = f"{found.model} checkpoint, {config.variant} variant: {folder}\n{table(lines)}\n"
    text += f"robots\n{table(robots, indent=2)}" if robots else "no robot's statistics"
    return "\n".join([text, *(f"note: {note}" for note in found.notes)])


def _transform(name: str, values: Any) -> str:  # noqa: ANN401  # an entry of stats.json
    from moteur.recipes import load_transforms

    try:
        robot = load_transforms({name: values})[name].robot
    except ValueError as error:
        return f"unusable: {error}"
    cameras = ", ".join(camera or "none" for camera in robot.cameras)
    return f"state {robot.state_dim}, action {robot.action_dim}, cameras {cameras}"


def _header(path: Path) -> list[tuple[list[str], int]] | None:
    """Kind (tokenizer, number format, shape, camera) and number of a file's latents; None for another file."""
    from safetensors import SafetensorError, safe_open

    def parts(file: Any, made: dict[str, Any]) -> Iterator[tuple[list[str], int]]:  # noqa: ANN401  # a foreign class
        for name in file.keys():  # noqa: SIM118  # not a dictionary
            if "/" in name:  # episode/camera
                count, *shape = file.get_slice(name).get_shape()
                dtype = made["dtype"].removeprefix("torch.")
                yield [made["tokenizer"][:12], dtype, " × ".join(map(str, shape)), name.partition("/")[2]], count

    try:
        with safe_open(path, framework="np") as file:
            made = (file.metadata() or {}).get("ingredients")
            return None if made is None else list(parts(file, json.loads(made)))
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a whole safetensors file, got a damaged or other one ({error})") from error


def _latents(folder: Path, headers: dict[Path, list[tuple[list[str], int]]]) -> str:
    counts: Counter[tuple[str, ...]] = Counter()
    for header in headers.values():
        for kind, count in header:
            counts[tuple(kind)] += count
    rows = [[*kind, f"{count:,}"] for kind, count in sorted(counts.items())]
    size = file_size(sum(path.stat().st_size for path in headers))
    title = ["tokenizer", "number format", "latent", "camera", "pictures"]
    return f"Cached latents: {folder}, {counted(len(headers), 'file')}, {size}\n{table([title, *rows])}"
