"""Every way to a frame gives the bytes of a plain decode of the whole file."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from jaxtyping import UInt8

from moteur.data.lerobot.encode import VideoWriter
from moteur.data.lerobot.video import Backend, available_backends, open_video

FPS, FRAMES = 30, 50
needs_torchcodec = pytest.mark.skipif(
    "torchcodec" not in available_backends(),
    reason="torchcodec does not import here: no build for this torch or FFmpeg",
)
BACKENDS = [pytest.param("pyav"), pytest.param("torchcodec", marks=needs_torchcodec)]
CLIPS = [
    ("libsvtav1", 2, (224, 224)),
    ("libsvtav1", 20, (96, 64)),
    ("libx264", 2, (120, 160)),
    ("libx264", 12, (64, 88)),
    ("libx264", 250, (218, 178)),
]


@pytest.fixture(scope="module", params=CLIPS, ids=lambda clip: f"{clip[0]}-gop{clip[1]}-{clip[2][0]}x{clip[2][1]}")
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A file of noise over a moving gradient, and all its frames, decoded from first to last in the plain way."""
    codec, gop, (height, width) = request.param
    path, rng = tmp_path_factory.mktemp("clips") / "clip.mp4", np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    writer = VideoWriter(path, fps=FPS, height=height, width=width, codec=codec, gop=gop)
    for number in range(FRAMES):
        planes = np.stack([columns + 3 * number, 2 * rows + number, rows + columns], axis=-1) % 256
        writer.add((planes + rng.integers(-20, 21, size=(height, width, 3))).clip(0, 255).astype(np.uint8))
    writer.close()
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return path, np.stack(frames).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_frames_have_the_bytes_of_a_plain_decode(clip: tuple[Path, np.ndarray], backend: Backend) -> None:
    path, plain = clip
    decoder = open_video(path, fps=FPS, backend=backend)
    last, somewhere = FRAMES - 1, np.random.default_rng(0).integers(0, FRAMES, size=20).tolist()
    windows = [
        range(FRAMES),
        [last],
        [0],
        [last, last, 0],
        [3, 2, 1],
        [0, 0, 12],
        *([now] for now in (7, 8, 9, 30, 11)),
    ]
    windows += [[min(max(now + step, 0), last) for step in (-15, 0, 15)] for now in somewhere]
    for numbers in windows:
        assert np.array_equal(decoder.frames_at(numbers), plain[list(numbers)]), numbers
    decoder.close()


def test_a_decoder_goes_on_after_the_end_of_the_file_and_after_an_error(clip: tuple[Path, np.ndarray]) -> None:
    path, plain = clip
    decoder = open_video(path, fps=FPS, backend="pyav")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"clip.mp4: expected frame 50, got 50 frames in all"):
            decoder.frames_at([4, 50])
        assert np.array_equal(decoder.frames_at([4, 49]), plain[[4, 49]])


def test_what_was_handed_out_stays_as_it_was(clip: tuple[Path, np.ndarray]) -> None:
    path, plain = clip
    decoder = open_video(path, fps=FPS, backend="pyav")
    kept: list[UInt8[torch.Tensor, "frame 3 height width"]] = [decoder.frames_at([now, now + 9]) for now in range(30)]
    decoder.close()
    assert all(np.array_equal(found, plain[[now, now + 9]]) for now, found in enumerate(kept))
