"""LeRobot sets: reading format v3.0 and v2.1, and writing v3.0.

Needs the `data` extra: pyarrow, PyAV and Pillow.
"""

from moteur.recipes.lerobot import extra as extra  # first of all: it says what to install

# isort: split
from moteur.recipes.lerobot.cache import BoundedCache
from moteur.recipes.lerobot.dataset import LeRobotSet, frame_offsets
from moteur.recipes.lerobot.episodes import Episodes, VideoSpans
from moteur.recipes.lerobot.hub import fetch
from moteur.recipes.lerobot.info import Feature, Info, read_info
from moteur.recipes.lerobot.modality import Modality, Slice
from moteur.recipes.lerobot.video import available_backends, open_video
from moteur.recipes.lerobot.writer import SetWriter

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
