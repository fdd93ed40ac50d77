"""Off-screen views of a MuJoCo scene, and the one place that chooses how they are drawn."""

import os
import sys
from collections.abc import Sequence

import numpy as np

# MuJoCo reads this variable once, when it is first imported. Without it MuJoCo on Linux would look for a window system.
if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")

BACKEND = os.environ.get("MUJOCO_GL", "the platform's own")

try:
    import mujoco
except (AttributeError, ImportError, OSError) as error:
    # A missing system library reaches Python as an attribute of None, not as an ImportError.
    message = (
        f"MuJoCo could not load its off-screen renderer {BACKEND!r} ({error}). Run scripts/system_libraries.sh to "
        "install the system libraries it needs, or set MUJOCO_GL to egl, osmesa or glfw."
    )
    raise ImportError(message) from error


class Cameras:
    """Draw named cameras of one scene at one size.

    Args:
        model: The compiled scene.
        names: Cameras of the scene, drawn in this order.
        size: Height and width of each picture, in pixels.
    """

    def __init__(self, model: mujoco.MjModel, names: Sequence[str], size: int) -> None:
        self.names = tuple(names)
        try:
            self._renderer = mujoco.Renderer(model, size, size)
        except (AttributeError, mujoco.FatalError, ImportError, RuntimeError) as error:
            message = (
                f"the off-screen renderer {BACKEND!r} did not start ({error}). Run scripts/system_libraries.sh, "
                "or set MUJOCO_GL to egl, osmesa or glfw."
            )
            raise RuntimeError(message) from error

    def draw(self, data: mujoco.MjData) -> dict[str, np.ndarray]:
        """Return one uint8 picture (size, size, 3) for each camera."""
        pictures = {}
        for name in self.names:
            self._renderer.update_scene(data, camera=name)
            pictures[name] = self._renderer.render().copy()
        return pictures

    def close(self) -> None:
        """Give the graphics context back."""
        self._renderer.close()
