"""Foresight head: Cosmos latents to tokens, tokens to a predicted latent, and the loss of the prediction."""

from typing import Literal, NamedTuple, cast, overload

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional


class Grid(NamedTuple):
    """Layout of one sample's tokens: `views` x `times` x `rows` x `columns`, the last running fastest."""

    views: int
    times: int
    rows: int
    columns: int


class ForesightHead(nn.Module):
    r"""Input and output layers of the generation expert.

    - `compress` embeds latents as tokens: $z = W_↓ * (W_1 x)$, a 1 x 1 convolution to `dim` (`project_in`), then a
      convolution of size and stride `cell` (`downsample`). Each square of `cell` x `cell` latents becomes one token.
    - `predict` reads the future latent from tokens: $\hat x = W_o\,LN(W_↑ * \bar z)$, the mean over times, a transposed
      convolution back to latent resolution (`upsample`), a layer norm over channels (`norm`) and a linear map to
      `latent_channels` (`project_out`). One pass, nothing iterative.

    Weights start as PyTorch initialises its layers. All parameters are trainable.

    Args:
        dim: Width of the tokens.
        latent_channels: Channels of the latents.
        cell: Side, in latents, of the square that becomes one token.
        eps: Added to the variance in the layer norm.
        device: Device of the parameters; `"meta"` allocates nothing.
        dtype: Dtype of the parameters. Latents and tokens must have the same dtype.

    Source:
        The generation expert of InternVLA-A1, https://arxiv.org/abs/2601.02456.

    Examples:
        >>> head = ForesightHead(dim=48)
        >>> tokens, grid = head.compress(torch.zeros(1, 3, 2, 16, 32, 32))
        >>> tokens.shape, grid
        (torch.Size([1, 96, 48]), Grid(views=3, times=2, rows=4, columns=4))
        >>> head.predict(tokens, grid).shape
        torch.Size([1, 3, 16, 32, 32])
    """

    def __init__(
        self,
        *,
        dim: int,
        latent_channels: int = 16,
        cell: int = 8,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.latent_channels = latent_channels
        self.cell = cell
        self.project_in: nn.Conv2d | None = nn.Conv2d(latent_channels, dim, 1, device=device, dtype=dtype)
        self.downsample = nn.Conv2d(dim, dim, cell, stride=cell, device=device, dtype=dtype)
        self.upsample = nn.ConvTranspose2d(dim, dim, cell, stride=cell, device=device, dtype=dtype)
        self.norm = nn.LayerNorm(dim, eps, device=device, dtype=dtype)
        self.project_out = nn.Linear(dim, latent_channels, device=device, dtype=dtype)

    def compress(
        self, latents: Float[Tensor, "batch view time channel height width"]
    ) -> tuple[Float[Tensor, "batch token dim"], Grid]:
        """Embed latents as tokens, ordered view, time, row, column.

        The two convolutions run as the single one they equal, since nothing non-linear lies between them: its kernel
        $W_↓ W_1$ is small, and features of width `dim` at full resolution never exist. Gradients reach both.

        Returns:
            The tokens, and the grid that `predict` needs.

        Raises:
            ValueError: Height or width is not a multiple of `cell`.
        """
        _, views, times, _, height, width = latents.shape
        if height % self.cell or width % self.cell:
            raise ValueError(
                f"latents: expected height and width that are multiples of {self.cell}, got {height} x {width}"
            )
        frames = rearrange(latents, "batch view time channel height width -> (batch view time) channel height width")
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
        return tokens, Grid(views, times, height // self.cell, width // self.cell)

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
    ) -> Float[Tensor, "batch view channel height width"]:
        """Predict one latent per view from the output tokens of the generation expert.

        Args:
            tokens: Tokens in the order of `compress`.
            grid: The grid that `compress` returned.
        """
        pooled = reduce(
            tokens,
            "batch (view time row column) dim -> (batch view) dim row column",
            "mean",
            view=grid.views,
            time=grid.times,
            row=grid.rows,
            column=grid.columns,
        )
        features = rearrange(self.upsample(pooled), "frame dim height width -> frame height width dim")
        latents = self.project_out(self.norm(features))
        return rearrange(
            latents, "(batch view) height width channel -> batch view channel height width", view=grid.views
        )


Parts = tuple[Float[Tensor, ""], Int[Tensor, ""]]
"""A sum of squared errors, and the number of elements it is over: total / count is their mean."""


@overload
def foresight_loss(
    predicted: Float[Tensor, "batch view *axes"],
    target: Float[Tensor, "batch view *axes"],
    view_valid: Bool[Tensor, "batch view"] | None = ...,
    *,
    reduction: Literal["parts"],
) -> Parts: ...


@overload
def foresight_loss(
    predicted: Float[Tensor, "batch view *axes"],
    target: Float[Tensor, "batch view *axes"],
    view_valid: Bool[Tensor, "batch view"] | None = ...,
    *,
    reduction: Literal["mean"] = ...,
) -> Float[Tensor, ""]: ...


def foresight_loss(
    predicted: Float[Tensor, "batch view *axes"],
    target: Float[Tensor, "batch view *axes"],
    view_valid: Bool[Tensor, "batch view"] | None = None,
    *,
    reduction: Literal["mean", "parts"] = "mean",
) -> Float[Tensor, ""] | Parts:
    r"""Mean squared error between latents, over valid views.

    $$L = \frac{\sum_{bv} m_{bv} \|\hat x_{bv} - x_{bv}\|^2}{N \sum_{bv} m_{bv}}$$

    with $m$ = `view_valid` and $N$ the elements of one view, such as channels x rows x columns. Invalid views do not
    contribute, whatever they hold (NaN included), and their gradient is exactly zero. Without a valid view the loss and
    every gradient are 0. No value is read on the host.

    Args:
        predicted: Predicted latents, (batch, view, channel, height, width), or with any other axes after the view.
        target: Latents of the frame to predict; no gradient flows into them.
        view_valid: True where the sample has that camera. None: everywhere.
        reduction: `"mean"`, or `"parts"` for the sum over valid elements and their number, of which the mean over many
            processes can be made (`moteur.flowmatch.mean_over`).

    Returns:
        A scalar, in float32 for half-precision inputs; with `"parts"` a pair (total, count).

    Raises:
        ValueError: The shape of `target` or `view_valid` does not fit `predicted`, or the reduction is unknown.

    Examples:
        >>> foresight_loss(torch.ones(1, 2, 1, 1, 1), torch.zeros(1, 2, 1, 1, 1), torch.tensor([[True, False]])).item()
        1.0
    """
    # Broadcasting would accept wrong shapes without an error.
    for name, tensor, shape in (("target", target, predicted.shape), ("view_valid", view_valid, predicted.shape[:2])):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name}: expected shape {tuple(shape)} to fit predicted, got {tuple(tensor.shape)}")
    if reduction not in {"mean", "parts"}:
        raise ValueError(f"reduction: expected 'mean' or 'parts', got {reduction!r}")
    dtype = torch.promote_types(torch.promote_types(predicted.dtype, target.dtype), torch.float32)
    error = predicted.to(dtype) - target.detach().to(dtype)
    if view_valid is None:
        if reduction == "mean":
            return error.square().mean()
        return error.square().sum(), torch.full((), error.numel(), device=error.device)
    # Select instead of multiplying by the mask: 0 * NaN is NaN, in the value and in the gradient.
    error = torch.where(view_valid.reshape(*view_valid.shape, *[1] * (error.ndim - 2)), error, 0.0)
    total, count = error.square().sum(), view_valid.sum() * predicted[0, 0].numel()
    return (total, count) if reduction == "parts" else total / count.clamp(min=1)
