"""LeRobot sets: reading format v3.0 and v2.1, and writing v3.0.

Needs the `data` extra: pyarrow, PyAV and Pillow. Only `info` imports without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moteur.data.lerobot.cache import BoundedCache
    from moteur.data.lerobot.dataset import LeRobotSet
    from moteur.data.lerobot.episodes import Episodes, VideoSpans
    from moteur.data.lerobot.hub import fetch
    from moteur.data.lerobot.info import Feature, Info, frame_offsets, read_info
    from moteur.data.lerobot.modality import Modality, Slice
    from moteur.data.lerobot.video import available_backends, open_video
    from moteur.data.lerobot.writer import SetWriter

__all__ = [
    "BoundedCache",
    "Episodes",
    "Feature",
    "Info",
    "LeRobotSet",
    "Modality",
    "SetWriter",
    "Slice",
    "VideoSpans",
    "available_backends",
    "fetch",
    "frame_offsets",
    "open_video",
    "read_info",
]
_ROOMS = {
    "cache": ("BoundedCache",),
    "dataset": ("LeRobotSet",),
    "episodes": ("Episodes", "VideoSpans"),
    "hub": ("fetch",),
    "info": ("Feature", "Info", "frame_offsets", "read_info"),
    "modality": ("Modality", "Slice"),
    "video": ("available_backends", "open_video"),
    "writer": ("SetWriter",),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401  # whatever the name stands for
    for room, names in _ROOMS.items():
        if name in names:
            if room not in {"info", "modality"}:
                import_module(f"{__name__}.extra")
            return getattr(import_module(f"{__name__}.{room}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
