"""`moteur act`: a checkpoint's commands on a recorded episode, beside the recorded ones."""
# ruff: noqa: PLC0415  -- heavy modules are imported where they are needed

import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moteur.commands.arguments import Checkpoint, Device, Dtype, Force, Revision, Set, check_output, counted, table

if TYPE_CHECKING:
    import numpy as np

    from moteur.runtime import Policy

_Every = Annotated[
    int | None, typer.Option(min=1, help="Control steps from chunk to chunk.", show_default="length of a chunk")
]
_Tokenizer = Annotated[
    str | None, typer.Option(help="Text tokenizer: folder or Hub id.", show_default="the checkpoint's")
]


def act(
    checkpoint: Checkpoint,
    source: Set,
    *,
    episode: Annotated[int, typer.Option(help="Number of the episode.")],
    robot: Annotated[str | None, typer.Option(help="Robot of the checkpoint.", show_default="the only one")] = None,
    every: _Every = None,
    out: Annotated[Path | None, typer.Option(help="Write predicted and recorded chunks to this .npz file.")] = None,
    tokenizer: _Tokenizer = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Solver steps.", show_default="the checkpoint's")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise that chunks start from.")] = 0,
    dtype: Dtype = None,
    device: Device = "cpu",
    revision: Revision = None,
    force: Force = False,
) -> None:
    """Let a checkpoint act on a recorded episode.

    The policy sees every recorded picture, state and task as it would on the robot. Its commands are compared in the
    robot's own units: those until the next chunk, which would be carried out, and the whole chunk.
    """
    from moteur.runtime import Policy

    if out is not None and out.suffix != ".npz":
        raise ValueError(f"--out: expected a name that ends in .npz, got {out.name!r}")
    if out is not None:
        check_output(out, force=force)
    policy = Policy.from_pretrained(
        checkpoint, robot=robot, tokenizer=tokenizer, dtype=dtype, device=device, revision=revision
    )
    every = every or policy.session.config.chunk
    found = predicted_chunks(policy, source, episode, every=every, seed=seed, solver_steps=steps)
    typer.echo(_comparison(found, policy, f"{source}, episode {episode}", every))
    if out is not None:
        _write(out, found)
        typer.echo(f"wrote {out}: {', '.join(found)}")


def predicted_chunks(
    policy: "Policy", root: Path, episode: int, *, every: int, seed: int, solver_steps: int | None
) -> "dict[str, np.ndarray]":
    """Run a policy over a recorded episode.

    Returns:
        `step` (chunk): control steps at which it acted; `predicted` and `recorded` (chunk, step, action): absolute
        commands, NaN after the recorded end; `name` (action).

    Raises:
        ValueError: The set does not fit the robot, records no actions, or has no such episode.
    """
    import numpy as np
    import torch
    from tqdm import tqdm

    from moteur.data import Info, LeRobotSet

    robot = policy.robot
    robot.check(Info.load(root), root)
    if not robot.action:
        raise ValueError(f"{root}: expected recorded actions to compare with, robot {robot.name!r} has none")
    recording = LeRobotSet(root, keys=robot.keys, episodes=[episode])

    def column(sources: Any) -> "np.ndarray":  # noqa: ANN401  # tuple[Source, ...]
        parts = [
            recording.column(part.key, episode).reshape(len(recording), -1)[:, part.start : part.start + part.size]
            for part in sources
        ]
        return np.concatenate(parts, axis=1).astype(np.float32)

    states, actions = column(robot.state), column(robot.action)
    generator = torch.Generator(device=policy.session.device).manual_seed(seed)
    at: list[int] = []
    predicted: list[np.ndarray] = []
    recorded: list[np.ndarray] = []
    for step in tqdm(range(len(recording)), desc="acting", unit="step"):
        item = recording[step]
        pictures = {camera: item[camera] for camera in policy.cameras}
        if step % every:
            policy.observe(pictures, step=step)
            continue
        chunk = policy.act(pictures, states[step], item["task"], step=step, generator=generator, steps=solver_steps)
        rest = actions[step : step + len(chunk)]
        at.append(step)
        predicted.append(chunk.actions)
        recorded.append(np.pad(rest, ((0, len(chunk) - len(rest)), (0, 0)), constant_values=np.nan))
    return {
        "step": np.array(at),
        "predicted": np.stack(predicted),
        "recorded": np.stack(recorded),
        "name": np.array(policy.names),
    }


def _comparison(found: "dict[str, np.ndarray]", policy: "Policy", what: str, every: int) -> str:
    """Mean absolute error of each joint, over the steps until the next chunk and over whole chunks."""
    import numpy as np

    error = np.abs(found["predicted"] - found["recorded"])
    chunks, length, _ = error.shape
    first = min(every, length)
    rows = [["mean absolute error", f"first {counted(first, 'step')}", f"whole chunk of {length}"]]
    means = (np.nanmean(error[:, :count], axis=(0, 1)) for count in (first, length))
    for name, near, whole in zip(policy.names, *means, strict=True):
        rows.append([name, f"{near:.4g}", f"{whole:.4g}"])
    title = f"robot {policy.robot.name}, {what}: {counted(chunks, 'chunk')}, one every {every} control steps"
    return f"{title}\n\n{table(rows, right=True)}"


def _write(path: Path, arrays: "dict[str, np.ndarray]") -> None:
    """Write an .npz file."""
    import numpy as np

    from moteur.files import write_whole

    content = io.BytesIO()
    np.savez(content, **arrays)  # pyright: ignore[reportArgumentType]
    write_whole(path, content.getvalue())
