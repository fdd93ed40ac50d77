"""What a recording cannot be begun with is refused before the first frame."""

import math
from pathlib import Path
from typing import Any

import av
import pytest
from toy_set import FPS, TOP

from moteur.data import Feature, LeRobotWriter

VIDEO = {TOP: Feature("video", (64, 64, 3))}


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"features": {TOP: Feature("video", (63, 64, 3))}},
            r"images.top'\]: shape: expected an even height and width for yuv420p, got 63 and 64",
        ),
        (
            {"features": {TOP: Feature("video", (2, 2, 3))}},
            r"images.top'\]: codec: expected settings that libsvtav1 encodes, got height 2, width 2",
        ),
        ({"codec": "libx265"}, r"features\['obs.*: codec: expected one of \['libsvtav1', 'libx264'\], got 'libx265'"),
        ({"fps": 0}, "fps: expected an integer of at least 1, got 0"),
        ({"fps": 29.97}, "fps: expected an integer of at least 1, got 29.97"),
        ({"gop": 0}, "gop: expected an integer of at least 1, got 0"),
        ({"robot_type": 7}, "robot_type: expected a string, got 7"),
        ({"features": {"a": Feature("float31", (1,))}}, r"features.a.dtype: expected one of .*, got 'float31'"),
        (
            {"features": {"a": Feature("language", (1,))}},
            r"features\['a'\].dtype: expected numbers, texts .*, got 'language'",
        ),
        (
            {"features": {"a": Feature("string", (2,))}},
            r"features\['a'\].shape: expected \(1,\) for string, got \(2,\)",
        ),
        ({"features": {"a": Feature("float32", (0,))}}, r"features.a.shape\[0\]: expected at least 1, got 0"),
        ({"features": {"a": Feature("float32", ())}}, r"features.a.shape: expected at least 1 item, got"),
    ],
)
def test_what_cannot_be_recorded_is_found_when_the_writer_is_made(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    root = tmp_path / "set"
    with pytest.raises(ValueError, match=message):
        LeRobotWriter(root, **({"fps": FPS, "features": VIDEO} | arguments))
    assert not root.exists()


def test_a_codec_without_an_encoder_here_is_found_when_the_writer_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = av.CodecContext.create

    class WithoutSvt:
        """The FFmpeg of a PyAV that was built without SVT-AV1."""

        @staticmethod
        def create(codec: str, mode: str) -> object:
            return create("no such encoder" if codec == "libsvtav1" else codec, mode)

    monkeypatch.setattr(av, "CodecContext", WithoutSvt)
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libsvtav1"})
    message = (
        r"features\['obs.*: codec: expected one that the FFmpeg of this PyAV has \(\['libx264'\]\), got 'libsvtav1'"
    )
    with pytest.raises(ValueError, match=message):
        LeRobotWriter(tmp_path / "set", fps=FPS, features=VIDEO)
    assert not (tmp_path / "set").exists()
    LeRobotWriter(tmp_path / "set", fps=FPS, features=VIDEO, codec="libx264").close()


def test_a_set_without_videos_needs_no_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "CodecContext", None)
    with LeRobotWriter(tmp_path, fps=FPS, features={"force": Feature("float32", (1,))}) as writer:
        writer.add({"force": math.pi}, "push")
        writer.save_episode()
