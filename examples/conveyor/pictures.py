"""The report's pictures, each as bytes of a file."""

import io
import textwrap
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from env import CAMERAS, FPS
from jaxtyping import Float
from measure import Success
from PIL import Image
from torch import Tensor

mpl.use("Agg")
from matplotlib import pyplot as plt  # the backend must be chosen first

plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110})
BLUE, ORANGE, GREY = "#2b6cb0", "#dd6b20", "#a0aec0"


def curves(series: dict[str, Sequence[float]], *, unit: str = "step") -> bytes:
    """One small plot for each loss, on a logarithmic scale: every step thinly, a running mean over it."""
    figure, axes = plt.subplots(1, len(series), figsize=(3.6 * len(series), 2.6), squeeze=False)
    for axis, (name, values) in zip(axes[0], series.items(), strict=True):
        width = max(1, len(values) // 40)
        smooth = np.convolve(values, np.ones(width) / width, mode="valid")
        axis.plot(values, color=GREY, linewidth=0.5)
        axis.plot(np.arange(len(smooth)) + (width - 1) / 2, smooth, color=BLUE, linewidth=1.6)
        axis.set(title=name, xlabel=unit, yscale="log")
    return _png(figure)


def futures(
    now: Float[Tensor, "sample view 3 height width"],
    predicted: Float[Tensor, "sample view 3 height width"],
    future: Float[Tensor, "sample view 3 height width"],
) -> bytes:
    """Frames of t, predicted t+15 and true t+15 side by side, for each sample and camera."""
    samples, views = now.shape[:2]
    shown = {"t": now, "predicted t+15": predicted, "true t+15": future}
    figure = plt.figure(figsize=(10.5, 1.15 * samples + 0.4))
    for view, block in enumerate(figure.subfigures(1, views, wspace=0.03)):
        axes = block.subplots(samples, len(shown), squeeze=False)
        block.suptitle(f"{CAMERAS[view]} camera", fontsize=9)
        for column, (name, frames) in enumerate(shown.items()):
            axes[0, column].set_title(name, fontsize=7)
            for row in range(samples):
                axes[row, column].imshow(frames[row, view].permute(1, 2, 0).numpy(), interpolation="nearest")
                axes[row, column].axis("off")
        block.subplots_adjust(
            left=0.01, right=0.99, bottom=0.01, top=1 - 0.5 / (1.15 * samples + 0.4), wspace=0.04, hspace=0.04
        )
    return _png(figure, tight=False)


def chunks(
    predicted: Float[Tensor, "sample step 4"], expert: Float[Tensor, "sample step 4"], valid: Tensor, titles: list[str]
) -> bytes:
    """Predicted action chunks against the expert's, one row a sample, one column an action dimension."""
    names = ("x", "y", "z", "gap")
    figure, axes = plt.subplots(len(predicted), 4, figsize=(10.5, 1.8 * len(predicted)), sharex=True, squeeze=False)
    for row, axis_row in enumerate(axes):
        for dimension, axis in enumerate(axis_row):
            real = int(valid[row].sum())
            axis.plot(expert[row, :real, dimension].numpy(), color=ORANGE, linewidth=2.4, label="expert")
            axis.plot(predicted[row, :, dimension].numpy(), color=BLUE, linewidth=1.2, label="model")
            axis.set_ylim(-1.15, 1.15)
            if row == 0:
                axis.set_title(names[dimension])
            if row == len(predicted) - 1:
                axis.set_xlabel("step ahead (1/30 s)")
        axis_row[0].set_ylabel("\n".join(textwrap.wrap(titles[row], 22)), fontsize=7)
    axes[0, 0].legend(frameon=False, fontsize=7)
    return _png(figure)


def intervals(results: dict[str, Success]) -> bytes:
    """Success rates with their intervals."""
    figure, axis = plt.subplots(figsize=(6.4, 0.5 + 0.5 * len(results)))
    for row, (name, success) in enumerate(reversed(results.items())):
        color = GREY if "untrained" in name else BLUE
        axis.barh(row, 100 * success.rate, color=color, height=0.55)
        low, high = 100 * (success.rate - success.low), 100 * (success.high - success.rate)
        axis.errorbar(100 * success.rate, row, xerr=[[low], [high]], color="black", capsize=4, linewidth=1.2)
    axis.set_yticks(range(len(results)), list(reversed(results)))
    axis.set(xlim=(0, 100), xlabel="success, % of unseen episodes, with 95 % interval")
    return _png(figure)


def animation(frames: Sequence[np.ndarray], *, every: int = 3) -> bytes:
    """A GIF in real time of pictures drawn every few control steps; it rests on the last one."""
    images = [Image.fromarray(frame).quantize(96, dither=Image.Dither.NONE) for frame in frames]
    duration = [round(1000 * every / FPS)] * (len(images) - 1) + [1500]
    file = io.BytesIO()
    images[0].save(file, "gif", save_all=True, append_images=images[1:], duration=duration, loop=0)
    return file.getvalue()


def _png(figure: plt.Figure, *, tight: bool = True) -> bytes:
    file = io.BytesIO()
    if tight:
        figure.tight_layout()
    figure.savefig(file, format="png")
    plt.close(figure)
    return file.getvalue()
