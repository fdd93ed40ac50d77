"""Foresight head: Cosmos latents to tokens, tokens to a predicted latent, and the loss of the prediction."""

import math
from typing import NamedTuple, cast

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional


class Grid(NamedTuple):
    """Layout of one sample's tokens: `views` x `times` x `rows` x `columns`, the last running fastest.

    `views` is None where the latents had no such axis.
    """

    views: int | None
    times: int
    rows: int
    columns: int

    @property
    def cells(self) -> int:
        """Tokens of one view."""
        return self.times * self.rows * self.columns

    def positions(self, device: torch.device | str | None = None) -> Int[Tensor, "4 token"]:
        """View, time, row and column of each token, for position embeddings.

        Examples:
            >>> Grid(views=1, times=2, rows=1, columns=2).positions()
            tensor([[0, 0, 0, 0],
                    [0, 0, 1, 1],
                    [0, 0, 0, 0],
                    [0, 1, 0, 1]])
        """
        axes = [torch.arange(1 if size is None else size, device=device) for size in self]
        return torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)


class ForesightHead(nn.Module):
    r"""Input and output layers of the generation expert.

    - `compress` embeds latents as tokens: $z = W_↓ * (W_1 x)$, a 1 x 1 convolution to `dim` (`project_in`), then a
      convolution of size and stride `cell` (`downsample`). Each square of `cell` x `cell` latents becomes one token.
      `forward` is `compress`.
    - `predict` reads future latents from tokens: $\hat x = W_o\,LN(W_↑ * \bar z)$, the mean over times, a transposed
      convolution back to latent resolution (`upsample`), a layer norm over channels (`norm`) and a linear map to
      `latent_channels` of each future frame (`project_out`). One pass, nothing iterative.

    Weights start as PyTorch initialises its layers. All parameters are trainable.

    Args:
        dim: Width of the tokens.
        latent_channels: Channels of the latents.
        cell: Side, in latents, of the square that becomes one token.
        eps: Added to the variance in the layer norm.
        futures: Number of future frames that are predicted, as an axis of its own. None: one, without the axis.
        device: Device of the parameters; `"meta"` allocates nothing.
        dtype: Dtype of the parameters. Latents and tokens must have the same dtype.

    Raises:
        ValueError: `futures` is below 1.

    Source:
        The generation expert of InternVLA-A1, https://arxiv.org/abs/2601.02456, which predicts one frame.

    Examples:
        >>> head = ForesightHead(dim=48)
        >>> tokens, grid = head.compress(torch.zeros(1, 3, 2, 16, 32, 32))
        >>> tokens.shape, grid
        (torch.Size([1, 96, 48]), Grid(views=3, times=2, rows=4, columns=4))
        >>> head.predict(tokens, grid).shape
        torch.Size([1, 3, 16, 32, 32])
        >>> head = ForesightHead(dim=48, futures=5)  # one camera, the present alone, five frames ahead
        >>> head.predict(*head(torch.zeros(1, 16, 32, 32))).shape
        torch.Size([1, 5, 16, 32, 32])
    """

    def __init__(
        self,
        *,
        dim: int,
        latent_channels: int = 16,
        cell: int = 8,
        eps: float = 1e-5,
        futures: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if futures is not None and futures < 1:
            raise ValueError(f"futures: expected at least 1 or None, got {futures}")
        self.dim = dim
        self.latent_channels = latent_channels
        self.cell = cell
        self.futures = futures
        self.project_in: nn.Conv2d | None = nn.Conv2d(latent_channels, dim, 1, device=device, dtype=dtype)
        self.downsample = nn.Conv2d(dim, dim, cell, stride=cell, device=device, dtype=dtype)
        self.upsample = nn.ConvTranspose2d(dim, dim, cell, stride=cell, device=device, dtype=dtype)
        self.norm = nn.LayerNorm(dim, eps, device=device, dtype=dtype)
        self.project_out = nn.Linear(dim, (futures or 1) * latent_channels, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw all weights anew, for example after `to_empty`: as PyTorch initialises its layers."""
        for layer in (self.project_in, self.downsample, self.upsample, self.norm, self.project_out):
            if layer is not None:
                layer.reset_parameters()

    def forward(
        self, latents: Float[Tensor, "batch *view_time channel height width"]
    ) -> tuple[Float[Tensor, "batch token dim"], Grid]:
        """`compress`, for what wraps a module: hooks, DDP, FSDP, `functional_call`."""
        return self.compress(latents)

    def compress(
        self, latents: Float[Tensor, "batch *view_time channel height width"]
    ) -> tuple[Float[Tensor, "batch token dim"], Grid]:
        """Embed latents as tokens, ordered view, time, row, column.

        The two convolutions run as the single one they equal, since nothing non-linear lies between them: its kernel
        $W_↓ W_1$ is small, and features of width `dim` at full resolution never exist. Gradients reach both.

        Args:
            latents: (batch, view, time, channel, height, width). The axis of times may be left out, and that of views
                too; where there is one axis between batch and channel it is that of views.

        Returns:
            The tokens, and the grid that `predict` needs.

        Raises:
            ValueError: The latents have fewer than four axes or more than six, or height or width is not a multiple of
                `cell`.
        """
        if latents.ndim not in {4, 5, 6}:
            raise ValueError(
                "latents: expected the axes batch, view, time, channel, height, width, of which time, or view and "
                f"time, may be left out, got shape {tuple(latents.shape)}"
            )
        axes, (height, width) = latents.shape[1:-3], latents.shape[-2:]
        if height % self.cell or width % self.cell:
            raise ValueError(
                f"latents: expected height and width that are multiples of {self.cell}, got {height} x {width}"
            )
        views, times = (*axes, 1, 1)[:2]
        grid = Grid(views if axes else None, times, height // self.cell, width // self.cell)
        frames = latents.flatten(0, -4)
        if self.project_in is None:
            features = self.downsample(frames)
        else:
            features = functional.conv2d(frames, *self.folded(), stride=self.cell)
        tokens = rearrange(
            features,
            "(batch view time) dim row column -> batch (view time row column) dim",
            view=views,
            time=times,
        )
        return tokens, grid

    @torch.no_grad()
    def fold(self) -> None:
        """Keep the single convolution that `project_in` and `downsample` equal, instead of them; for inference.

        Multiplying the weights at every call costs more than the convolution does. The head cannot train afterwards.
        """
        if self.project_in is not None:
            kernel, bias = self.folded()
            self.downsample = nn.Conv2d(self.latent_channels, self.dim, self.cell, stride=self.cell, device="meta")
            self.downsample.weight = nn.Parameter(kernel.contiguous(), requires_grad=False)
            self.downsample.bias = nn.Parameter(bias, requires_grad=False)
            self.project_in = None

    def folded(self) -> tuple[Float[Tensor, "dim channel cell cell"], Float[Tensor, " dim"]]:
        """Kernel and bias of the single convolution, of stride `cell`, that equals `project_in` and `downsample`."""
        assert self.project_in is not None
        # Both layers are built with a bias, which torch's type stubs do not know.
        inner_bias, outer_bias = cast("Tensor", self.project_in.bias), cast("Tensor", self.downsample.bias)
        # The inner bias is one more channel, so that the large weight is read once and never permuted.
        weight = rearrange(self.project_in.weight, "dim channel 1 1 -> channel dim")
        inner = torch.cat([weight, inner_bias[None]])
        outer = rearrange(self.downsample.weight, "out dim row column -> out dim (row column)")
        folded = rearrange(inner @ outer, "out channel (row column) -> out channel row column", row=self.cell)
        return folded[:, :-1], reduce(folded[:, -1], "out row column -> out", "sum") + outer_bias

    def predict(
        self, tokens: Float[Tensor, "batch token dim"], grid: Grid
    ) -> Float[Tensor, "batch *view_future channel height width"]:
        """Predict future latents from the output tokens of the generation expert.

        Args:
            tokens: Tokens in the order of `compress`.
            grid: The grid that `compress` returned.

        Returns:
            (batch, view, future, channel, height, width), without the axis of views if the latents had none, and
                without that of future frames if `futures` is None.
        """
        views = 1 if grid.views is None else grid.views
        pooled = reduce(
            tokens,
            "batch (view time row column) dim -> (batch view) dim row column",
            "mean",
            view=views,
            time=grid.times,
            row=grid.rows,
            column=grid.columns,
        )
        features = rearrange(self.upsample(pooled), "frame dim height width -> frame height width dim")
        latents = rearrange(
            self.project_out(self.norm(features)),
            "(batch view) height width (future channel) -> batch view future channel height width",
            view=views,
            channel=self.latent_channels,
        )
        latents = latents.squeeze(2) if self.futures is None else latents
        return latents.squeeze(1) if grid.views is None else latents


def foresight_loss(
    predicted: Float[Tensor, " batch *axes"],
    target: Float[Tensor, " batch *axes"],
    view_valid: Bool[Tensor, " batch *valid"] | None = None,
) -> Float[Tensor, ""]:
    r"""Mean squared error between latents, over valid views.

    $$L = \frac{\sum_{bv} m_{bv} \|\hat x_{bv} - x_{bv}\|^2}{N \sum_{bv} m_{bv}}$$

    with $m$ = `view_valid` and $N$ the elements of one view, such as channels x rows x columns. Invalid views do not
    contribute, whatever they hold (NaN included), and their gradient is exactly zero. Without a valid view the loss and
    every gradient are 0. No value is read on the host.

    Args:
        predicted: Predicted latents, (batch, view, channel, height, width), or with other axes after the batch, such as
            that of several future frames.
        target: Latents of the frames to predict; no gradient flows into them.
        view_valid: True where the sample has that camera, (batch, view). It may have more of the leading axes of
            `predicted` or fewer, such as (batch, view, future) for frames past the end of an episode. None: everywhere.

    Returns:
        A scalar, in float32 for half-precision inputs.

    Raises:
        ValueError: The shape of `target` or `view_valid` does not fit `predicted`.

    Examples:
        >>> foresight_loss(torch.ones(1, 2, 1, 1, 1), torch.zeros(1, 2, 1, 1, 1), torch.tensor([[True, False]])).item()
        1.0
    """
    # Broadcasting would accept wrong shapes without an error.
    axes = 0 if view_valid is None else view_valid.ndim
    for name, tensor, shape in (
        ("target", target, predicted.shape),
        ("view_valid", view_valid, predicted.shape[:axes]),
    ):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name}: expected shape {tuple(shape)} to fit predicted, got {tuple(tensor.shape)}")
    dtype = torch.promote_types(torch.promote_types(predicted.dtype, target.dtype), torch.float32)
    error = predicted.to(dtype) - target.detach().to(dtype)
    if view_valid is None:
        return error.square().mean()
    # Select instead of multiplying by the mask: 0 * NaN is NaN, in the value and in the gradient.
    error = torch.where(view_valid.reshape(*view_valid.shape, *[1] * (error.ndim - axes)), error, 0.0)
    elements = view_valid.sum() * math.prod(predicted.shape[axes:])
    return error.square().sum() / elements.clamp(min=1)
