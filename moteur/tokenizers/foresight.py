"""The latent foresight head: Cosmos latents to a few tokens, and tokens to the predicted latent."""

from typing import NamedTuple, cast

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class Grid(NamedTuple):
    """How the tokens of one sample are laid out: `views` x `times` x `rows` x `columns`, the last running fastest.

    >>> Grid(views=3, times=2, rows=4, columns=4).tokens
    96
    """

    views: int
    times: int
    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        """Tokens of one sample."""
        return self.views * self.times * self.rows * self.columns


class ForesightHead(nn.Module):
    r"""Both ends of the generation stream: what it reads of the past, and the future it writes.

    Reading, `compress`: $z = W_↓ * (W_1 x)$, a 1 x 1 convolution to `dim` (`project_in`), then one of `cell` x `cell`
    with that stride (`downsample`): every square of `cell` x `cell` latents becomes one token. Writing, `predict`: mean
    over times, transposed convolution back to latent resolution (`upsample`), layer norm over channels, linear
    map to `latent_channels` (`project_out`): $\hat x = W_o\,LN(W_↑ * \bar z)$. One pass, nothing iterative.

    Trained from scratch, the layers start as PyTorch initialises them: convolutions and the linear layer uniform within
    1/√fan-in (for the transposed one PyTorch counts `dim` x `cell`² inputs, although each output place sees
    `dim`), the norm with one and zero. The head is trainable; nothing in it is frozen.

    Args:
        dim: Width of the tokens.
        latent_channels: Channels of the latents.
        cell: Side, in latents, of the square that becomes one token.
        eps: Added to the variance in the layer norm.
        device: Where the parameters live; `"meta"` allocates nothing.
        dtype: Of the parameters. Latents and tokens must come in the same dtype.

    Raises:
        ValueError: A size below one.

    Source: InternVLA-A1, https://arxiv.org/abs/2601.02456, the generation expert.

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
        for name, size in {"dim": dim, "latent_channels": latent_channels, "cell": cell}.items():
            if size < 1:
                raise ValueError(f"{name}: must be at least 1, got {size}")
        super().__init__()
        self.dim = dim
        self.latent_channels = latent_channels
        self.cell = cell
        self.project_in = nn.Conv2d(latent_channels, dim, 1, device=device, dtype=dtype)
        self.downsample = nn.Conv2d(dim, dim, cell, stride=cell, device=device, dtype=dtype)
        self.upsample = nn.ConvTranspose2d(dim, dim, cell, stride=cell, device=device, dtype=dtype)
        self.norm = nn.LayerNorm(dim, eps, device=device, dtype=dtype)
        self.project_out = nn.Linear(dim, latent_channels, device=device, dtype=dtype)

    def compress(
        self, latents: Float[Tensor, "batch view time channel height width"]
    ) -> tuple[Float[Tensor, "batch token dim"], Grid]:
        """Turn latents into tokens, ordered view, time, row, column.

        Nothing non-linear lies between the two convolutions, so they run as the one they equal: its kernel
        $W_↓ W_1$ is small, and full-resolution features of width `dim` never exist. Gradients reach both.

        Returns:
            The tokens, and the grid that `predict` needs to put them back.

        Raises:
            ValueError: Not six axes, another number of channels, or height or width not a positive multiple of `cell`.
        """
        if latents.ndim != 6:  # noqa: PLR2004 -- the axes named in the message
            raise ValueError(
                f"latents: expected shape (batch, view, time, channel, height, width), got {tuple(latents.shape)}"
            )
        _, views, times, channels, height, width = latents.shape
        if channels != self.latent_channels:
            raise ValueError(
                f"latents: expected {self.latent_channels} channels, got {channels} of {tuple(latents.shape)}"
            )
        if not height or not width or height % self.cell or width % self.cell:
            raise ValueError(
                f"latents: height and width must be positive multiples of cell={self.cell}, got {height} x {width}"
            )
        kernel, bias = self.folded()
        frames = rearrange(latents, "batch view time channel height width -> (batch view time) channel height width")
        features = functional.conv2d(frames, kernel, bias, stride=self.cell)
        tokens = rearrange(
            features,
            "(batch view time) dim row column -> batch (view time row column) dim",
            view=views,
            time=times,
        )
        return tokens, Grid(views, times, height // self.cell, width // self.cell)

    def folded(
        self, dtype: torch.dtype | None = None
    ) -> tuple[Float[Tensor, "dim channel cell cell"], Float[Tensor, " dim"]]:
        """Kernel and bias of the one convolution, of stride `cell`, that `project_in` and `downsample` make.

        For inference, fold once and keep it: multiplying the weights costs more than the convolution.

        Args:
            dtype: What to multiply in; None is the dtype of the weights.
        """
        # Both biases are there by construction, which the stubs of torch cannot know.
        inner_bias = cast("Tensor", self.project_in.bias).to(dtype)
        outer_bias = cast("Tensor", self.downsample.bias).to(dtype)
        # The inner bias rides along as one more channel, so that the large weight is read once and never permuted.
        weight = rearrange(self.project_in.weight.to(dtype), "dim channel 1 1 -> channel dim")
        inner = torch.cat([weight, inner_bias[None]])
        outer = rearrange(self.downsample.weight.to(dtype), "out dim row column -> out dim (row column)")
        folded = rearrange(inner @ outer, "out channel (row column) -> out channel row column", row=self.cell)
        return folded[:, :-1], reduce(folded[:, -1], "out row column -> out", "sum") + outer_bias

    def predict(
        self, tokens: Float[Tensor, "batch token dim"], grid: Grid
    ) -> Float[Tensor, "batch view channel height width"]:
        """Turn the stream's output tokens into one predicted latent per view.

        Args:
            tokens: In the order `compress` gives.
            grid: As `compress` returned it.

        Raises:
            ValueError: `tokens` have not three axes, do not number `grid.tokens`, or have another width than `dim`.
        """
        if tokens.ndim != 3:  # noqa: PLR2004 -- the axes named in the message
            raise ValueError(f"tokens: expected shape (batch, token, dim), got {tuple(tokens.shape)}")
        if tokens.shape[1] != grid.tokens:
            raise ValueError(f"tokens: {grid} holds {grid.tokens} tokens, got {tokens.shape[1]}")
        if tokens.shape[2] != self.dim:
            raise ValueError(f"tokens: expected width dim={self.dim}, got {tokens.shape[2]}")
        pooled = reduce(
            tokens,
            "batch (view time row column) dim -> (batch view) dim row column",
            "mean",
            view=grid.views,
            time=grid.times,
            row=grid.rows,
        )
        features = rearrange(self.upsample(pooled), "frame dim height width -> frame height width dim")
        latents = self.project_out(self.norm(features))
        return rearrange(
            latents, "(batch view) height width channel -> batch view channel height width", view=grid.views
        )
