"""LeRobot sets: reading format v3.0 and v2.1, and writing v3.0.

Needs the `data` extra: pyarrow, PyAV and Pillow.
"""

from moteur.data.lerobot import extra as extra  # first of all: it says what to install

# isort: split
from moteur.data.lerobot.cache import BoundedCache
from moteur.data.lerobot.dataset import LeRobotSet, frame_offsets
from moteur.data.lerobot.episodes import Episodes, VideoSpans
from moteur.data.lerobot.hub import fetch
from moteur.data.lerobot.info import Feature, Info, read_info
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
