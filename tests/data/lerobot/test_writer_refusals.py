"""What a recording cannot be begun with is refused before the first frame."""

import math
from pathlib import Path
from typing import Any

import av
import pytest
from toy_set import FPS, TOP

from moteur.data.lerobot import Feature, SetWriter

VIDEO = {TOP: Feature("video", (64, 64, 3))}


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"features": {TOP: Feature("video", (63, 64, 3))}},
            r"features\['observation.images.top'\]: height and width must be even for yuv420p, got 63 and 64",
        ),
        (
            {"features": {TOP: Feature("video", (2, 2, 3))}},
            r"features\['observation.images.top'\]: codec 'libsvtav1' does not encode pictures of height 2, width 2",
        ),
        ({"codec": "libx265"}, r"features\['obs.*: codec must be one of \['libsvtav1', 'libx264'\], got 'libx265'"),
        ({"fps": 0}, "fps must be an integer of at least 1, got 0"),
        ({"fps": 29.97}, "fps must be an integer of at least 1, got 29.97"),
        ({"gop": 0}, "gop must be an integer of at least 1, got 0"),
        ({"robot_type": 7}, "robot_type must be a string or null, got 7"),
        ({"features": {"a": Feature("float31", (1,))}}, r"features\['a'\]: dtype must be one of .*, got 'float31'"),
        ({"features": {"a": Feature("language", (1,))}}, r"features\['a'\]: dtype must be one of .*, got 'language'"),
        ({"features": {"a": Feature("string", (2,))}}, r"features\['a'\]: a string must have shape \(1,\), got \(2,\)"),
        ({"features": {"a": Feature("float32", (0,))}}, r"features\['a'\]: shape must be a list of positive integers"),
        ({"features": {"a": Feature("float32", ())}}, r"features\['a'\]: shape must be a list of positive integers"),
    ],
)
def test_what_cannot_be_recorded_is_found_when_the_writer_is_made(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    root = tmp_path / "set"
    with pytest.raises(ValueError, match=message):
        SetWriter(root, **({"fps": FPS, "features": VIDEO} | arguments))
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
    message = r"features\['obs.*: codec 'libsvtav1' has no encoder in the FFmpeg of this PyAV, which has \['libx264'\]"
    with pytest.raises(ValueError, match=message):
        SetWriter(tmp_path / "set", fps=FPS, features=VIDEO)
    assert not (tmp_path / "set").exists()
    SetWriter(tmp_path / "set", fps=FPS, features=VIDEO, codec="libx264").close()


def test_a_set_without_videos_needs_no_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "CodecContext", None)
    with SetWriter(tmp_path, fps=FPS, features={"force": Feature("float32", (1,))}) as writer:
        writer.add({"force": math.pi}, "push")
        writer.save_episode()
