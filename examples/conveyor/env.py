"""A conveyor belt, coloured blocks, and an arm that puts the block named by the instruction in the bin.

Units are metres and seconds. The belt runs along x with its top at z = 0; the bin stands beside it at +y. State and
actions share one scale: [x, y, z, gap] of the gripper, each mapped from [LOW, HIGH] to [-1, 1].
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
from cameras import Cameras, mujoco  # cameras first: it chooses how MuJoCo draws

CAMERAS = ("overhead", "side", "wrist")
COLORS = ("red", "green", "blue", "yellow")
INSTRUCTIONS = (
    "put the {} block in the bin",
    "pick up the {} block and drop it in the bin",
    "take the {} block off the belt and put it in the bin",
    "the {} block goes in the bin",
    "move the {} cube into the bin",
)
FPS = 30
SUBSTEPS = 8  # physics runs at 240 Hz

LOW = np.array([-0.30, -0.10, 0.025, 0.0])
HIGH = np.array([0.30, 0.26, 0.135, 0.13])
HOME = np.array([0.0, 0.235, 0.125, 0.13])  # above the bin, open
REACH = np.array([0.025, 0.025, 0.02, 0.03])  # how far ahead of the arm its servos look; this bounds its speed
BIN = np.array([0.0, 0.235])
BIN_HALF = np.array([0.085, 0.075])
BLOCK = 0.05  # edge length
LANE = 0.045  # blocks lie within this distance of the belt's middle line
UPSTREAM, DOWNSTREAM = -0.26, 0.06  # where blocks start, along the direction of travel
SPACING = 0.115  # between the middles of two blocks, along x
EDGE = 0.36  # a block beyond this is out of reach for good


@dataclass(frozen=True)
class Situation:
    """What the scripted expert may know and the policy must see: exact positions and velocities, in metres."""

    grip: np.ndarray  # x, y, z between the finger tips
    gap: float  # distance between the fingers
    block: np.ndarray  # x, y, z of the named block
    velocity: np.ndarray  # of the named block


class ConveyorEnv(gymnasium.Env[dict[str, Any], np.ndarray]):
    """Take the named block off the moving belt and put it in the bin, at 30 Hz.

    Observation: ``pixels`` (uint8, one (size, size, 3) picture for each of ``overhead``, ``side``, ``wrist``) and
    ``agent_pos`` (float32, measured [x, y, z, gap] of the gripper on the action's scale). The instruction is
    ``info["instruction"]`` and ``env.task``. Action: float32 [x, y, z, gap], the pose to go to, in [-1, 1].
    Reward is 1 on success and 0 before. An episode ends with ``info["outcome"]``: "success", "wrong block" (another
    one is in the bin), "lost" (the named one left the belt or passed out of reach), or is cut with "time".

    Args:
        image_size: Height and width of every picture, in pixels.
        colors: Colours in play, out of red, green, blue, yellow.
        blocks: Fewest and most blocks on the belt; no two have the same colour.
        speed: Slowest and fastest belt, in m/s. The direction is drawn for each episode.
        time_limit: Control steps before an episode is cut.
        render_mode: ``"rgb_array"`` for `render`, or nothing.
        render_size: Height and width of the picture that `render` returns, at most 640.

    Raises:
        ValueError: For an argument outside its range; the message names it.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": FPS}

    def __init__(
        self,
        *,
        image_size: int = 64,
        colors: tuple[str, ...] = ("red", "green", "blue"),
        blocks: tuple[int, int] = (2, 3),
        speed: tuple[float, float] = (0.04, 0.10),
        time_limit: int = 150,
        render_mode: str | None = None,
        render_size: int = 320,
    ) -> None:
        for name, size in {"image_size": image_size, "render_size": render_size}.items():
            if not 16 <= size <= 640:
                raise ValueError(f"{name} must be between 16 and 640 pixels, got {size}")
        if not colors or len(set(colors)) != len(colors) or not set(colors) <= set(COLORS):
            raise ValueError(f"colors must be different ones out of {COLORS}, got {colors}")
        if not 1 <= blocks[0] <= blocks[1] <= min(3, len(colors)):
            raise ValueError(f"blocks must satisfy 1 <= fewest <= most <= {min(3, len(colors))}, got {blocks}")
        if not 0 <= speed[0] <= speed[1] <= 0.15:
            raise ValueError(f"speed must satisfy 0 <= slowest <= fastest <= 0.15 m/s, got {speed}")
        if time_limit < 1:
            raise ValueError(f"time_limit must be at least 1 step, got {time_limit}")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode must be None or one of {self.metadata['render_modes']}, got {render_mode!r}")
        self.image_size, self.render_size, self.render_mode = image_size, render_size, render_mode
        self.colors, self.blocks, self.speed, self.time_limit = tuple(colors), blocks, speed, time_limit
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)
        picture = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.observation_space = gymnasium.spaces.Dict(
            {
                "pixels": gymnasium.spaces.Dict(dict.fromkeys(CAMERAS, picture)),
                "agent_pos": gymnasium.spaces.Box(-2.0, 2.0, (4,), np.float32),
            }
        )
        self._model = mujoco.MjModel.from_xml_path(str(Path(__file__).with_name("scene.xml")))
        self._data = mujoco.MjData(self._model)
        self._cameras: Cameras | None = None
        self._film: Cameras | None = None
        self.task, self.target, self.belt_speed, self._steps = "", "", 0.0, 0
        self._present: tuple[str, ...] = ()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode. Everything random in it is drawn here, from `seed`.

        Args:
            seed: Same seed, same episode.
            options: ``"target"``: the colour to name; ``"belt_speed"``: signed, in m/s; ``"arm"``: the pose the arm
                starts in, on the action's scale. What is not given is drawn; the arm starts above the bin.

        Raises:
            ValueError: For an unknown option or a value outside its range.
        """
        super().reset(seed=seed)
        options = self._checked(options or {})
        draw = self.np_random
        drawn_speed = draw.uniform(*self.speed) * draw.choice([-1.0, 1.0])
        present = list(draw.permutation(self.colors)[: draw.integers(self.blocks[0], self.blocks[1], endpoint=True)])
        drawn_target = str(draw.choice(present))
        self.belt_speed = float(options.get("belt_speed", drawn_speed))
        self.target = options.get("target", drawn_target)
        if self.target not in present:
            present[0] = self.target
        self._present = tuple(str(color) for color in present)
        self.task = str(draw.choice(INSTRUCTIONS)).format(self.target)
        self._steps = 0

        mujoco.mj_resetData(self._model, self._data)
        for parked, color in enumerate(COLORS):  # on the floor, behind the cameras
            self._place(color, x=-1.2 - 0.1 * parked, y=-1.2, z=-0.15 + BLOCK / 2)
        starts = draw.uniform(UPSTREAM, DOWNSTREAM, len(present))
        while len(starts) > 1 and np.diff(np.sort(starts)).min() < SPACING:
            starts = draw.uniform(UPSTREAM, DOWNSTREAM, len(present))
        for color, start in zip(self._present, starts, strict=True):
            x = start if self.belt_speed >= 0 else -start
            self._place(color, x=x, y=draw.uniform(-LANE, LANE), z=BLOCK / 2, yaw=draw.uniform(-0.2, 0.2))
            self._data.joint(color).qvel[0] = self.belt_speed
        self._data.joint("belt").qpos[0] = draw.uniform(-0.07, 0.07)
        arm = to_metres(np.asarray(options["arm"])) if "arm" in options else HOME
        for name, value in zip(("x", "y", "z", "left", "right"), (*arm[:3], arm[3] / 2, arm[3] / 2), strict=True):
            self._data.joint(name).qpos[0] = self._data.actuator(name).ctrl[0] = value
        self._data.joint("belt").qvel[0] = self.belt_speed
        mujoco.mj_forward(self._model, self._data)
        return self.observe(), self._info(None)

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Let the arm go towards `action` for 1/30 s; targets outside [-1, 1] are brought back to it.

        Raises:
            ValueError: If the action is not four finite numbers.
        """
        outcome = self.advance(action)
        ended = outcome not in (None, "time")
        return self.observe(), float(outcome == "success"), ended, outcome == "time", self._info(outcome)

    def advance(self, action: np.ndarray) -> str | None:
        """Do what `step` does, but draw nothing; return the outcome once there is one."""
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (4,) or not np.isfinite(action).all():
            raise ValueError(f"action must be 4 finite numbers [x, y, z, gap], got {action!r}")
        pose = self._pose()
        goal = pose + np.clip(to_metres(np.clip(action, -1, 1)) - pose, -REACH, REACH)
        self._data.ctrl[:] = (*goal[:3], goal[3] / 2, goal[3] / 2)
        self._data.joint("belt").qvel[0] = self.belt_speed
        mujoco.mj_step(self._model, self._data, SUBSTEPS)
        self._steps += 1
        return self._outcome()

    def observe(self) -> dict[str, Any]:
        """Draw what the cameras see now, and read the gripper's pose."""
        self._cameras = self._cameras or Cameras(self._model, CAMERAS, self.image_size)
        return {"pixels": self._cameras.draw(self._data), "agent_pos": self.proprioception()}

    def proprioception(self) -> np.ndarray:
        """Measured x, y, z, gap of the gripper, on the action's scale."""
        return np.clip(to_action(self._pose()), -2, 2).astype(np.float32)

    def render(self) -> np.ndarray | None:
        """Return the side view at `render_size`, or nothing without a render mode."""
        if self.render_mode is None:
            return None
        self._film = self._film or Cameras(self._model, ["side"], self.render_size)
        return self._film.draw(self._data)["side"]

    def close(self) -> None:
        """Give the graphics contexts back."""
        for cameras in (self._cameras, self._film):
            if cameras is not None:
                cameras.close()
        self._cameras = self._film = None

    def situation(self) -> Situation:
        """Exact positions, for the scripted expert and for tests."""
        pose, joint = self._pose(), self._data.joint(self.target)
        return Situation(pose[:3], float(pose[3]), joint.qpos[:3].copy(), joint.qvel[:3].copy())

    def block_positions(self) -> dict[str, np.ndarray]:
        """x, y, z of every block on the belt, in metres."""
        return {color: self._data.joint(color).qpos[:3].copy() for color in self._present}

    def _checked(self, options: dict[str, Any]) -> dict[str, Any]:
        if unknown := set(options) - {"target", "belt_speed", "arm"}:
            raise ValueError(f"options may hold target, belt_speed and arm, got {sorted(unknown)}")
        if options.get("target", self.colors[0]) not in self.colors:
            raise ValueError(f"options['target'] must be one of {self.colors}, got {options['target']!r}")
        if not abs(options.get("belt_speed", 0.0)) <= 0.15:
            raise ValueError(f"options['belt_speed'] must be within 0.15 m/s, got {options['belt_speed']}")
        arm = np.asarray(options.get("arm", np.zeros(4)), dtype=np.float64)
        if arm.shape != (4,) or not (np.abs(arm) <= 1).all():
            raise ValueError(f"options['arm'] must be 4 numbers in [-1, 1], got {options['arm']!r}")
        return options

    def _place(self, color: str, *, x: float, y: float, z: float, yaw: float = 0.0) -> None:
        self._data.joint(color).qpos[:] = (x, y, z, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2))

    def _pose(self) -> np.ndarray:
        x, y, z, left, right = (self._data.joint(name).qpos[0] for name in ("x", "y", "z", "left", "right"))
        return np.array([x, y, z, left + right])

    def _outcome(self) -> str | None:
        positions = self.block_positions()
        for color, place in positions.items():
            if place[2] < -0.02 and (np.abs(place[:2] - BIN) < BIN_HALF).all():
                return "success" if color == self.target else "wrong block"
        target = positions[self.target]
        on_belt = target[2] < BLOCK  # not lifted
        if target[2] < -0.10 or (on_belt and target[0] * np.sign(self.belt_speed) > EDGE):
            return "lost"
        return "time" if self._steps >= self.time_limit else None

    def _info(self, outcome: str | None) -> dict[str, Any]:
        return {"instruction": self.task, "target": self.target, "outcome": outcome, "success": outcome == "success"}


def to_metres(scaled: np.ndarray) -> np.ndarray:
    """[x, y, z, gap] from [-1, 1] to metres."""
    return LOW + (np.asarray(scaled, dtype=np.float64) + 1) / 2 * (HIGH - LOW)


def to_action(metres: np.ndarray) -> np.ndarray:
    """[x, y, z, gap] from metres to [-1, 1], the inverse of `to_metres`."""
    return (np.asarray(metres, dtype=np.float64) - LOW) / (HIGH - LOW) * 2 - 1
