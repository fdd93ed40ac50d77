"""A fixed picture, encoded with every shard and again when it is opened: code that computes something else shows."""

from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from moteur.data import FieldStatistics, Robot, RobotStatistics, RobotTransform, Window
from moteur.recipes.foresight import Foresight

_HEIGHT, _WIDTH = 45, 60  # not square and no power of two: resizing and padding take part
_ROUNDINGS = 16
_TENSOR_FLOAT = 2.0**-10  # convolutions on a GPU may round float32 to this


def pictures_only(preparation: RobotTransform, cameras: tuple[str | None, ...]) -> RobotTransform:
    """The same treatment of frames, the present one alone, without states and actions."""
    robot = Robot(preparation.robot.name, state=(), action=(), cameras=cameras)
    nothing = RobotStatistics(robot.name, 1, FieldStatistics(0, (), (), (), ()), None)
    window = Window(offsets=(0,), steps=1)
    images = "uint8" if preparation.images == "uint8" else "float32"
    return RobotTransform(robot, nothing, window=window, size=preparation.size, dims=1, images=images)


def encoded(foresight: Foresight, images: Tensor, dtype: torch.dtype) -> Tensor:
    """Latents of prepared frames, computed where the tokenizer is, handed back on the CPU."""
    images = images.to(foresight.encoder.quant_conv.weight.device)
    unit = images.float() / 255 if images.dtype == torch.uint8 else images
    return foresight.encode(unit).to("cpu", dtype)


def probe(
    foresight: Foresight, preparation: RobotTransform, dtype: torch.dtype
) -> Float[Tensor, "channel rows columns"]:
    """Latents of the fixed picture, prepared and encoded like any other."""
    item = {"probe": _picture()[None], "probe_is_pad": torch.zeros(1, dtype=torch.bool), "task": ""}
    images = pictures_only(preparation, ("probe",))(item).frames
    return encoded(foresight, images[0], dtype)[0]


def expect_same(path: Path, stored: Tensor, now: Tensor, weights: torch.dtype) -> None:
    """Refuse a shard whose latents of the probe differ by more than rounding: root mean squares to within 16 roundings.

    Other devices, thread counts and library versions sum in another order, so bits cannot be asked for.

    Args:
        path: The shard.
        stored: Its latents of the probe.
        now: Those of this process.
        weights: What the tokenizer computes in.

    Raises:
        ValueError: They differ in shape or by more; the shard is named.
    """
    if stored.shape != now.shape:
        raise ValueError(f"{path}: expected a probe of shape {tuple(now.shape)}, got {tuple(stored.shape)}")
    allowed = _ROUNDINGS * max(torch.finfo(weights).eps, torch.finfo(now.dtype).eps, _TENSOR_FLOAT)
    error, size = (stored.double() - now.double()).square().mean().sqrt(), now.double().square().mean().sqrt()
    if not error <= allowed * size:
        raise ValueError(
            f"{path}: its probe differs by more than rounding from what this code computes ({float(error / size):.2g} "
            f"of its size, allowed {allowed:.2g}); write the latents again, into another folder"
        )


def _picture() -> UInt8[Tensor, "3 height width"]:
    channel = torch.arange(3).view(3, 1, 1)
    row, column = torch.arange(_HEIGHT).view(1, -1, 1), torch.arange(_WIDTH).view(1, 1, -1)
    return ((row * row * 3 + column * (5 + channel) * 7 + row * column) % 256).to(torch.uint8)
