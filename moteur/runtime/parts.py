"""A recipe model rearranged for inference: one explicit step that leaves its weights alone."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from moteur.flowmatch import ActionHead
from moteur.recipes.config import InternVLAA1Config
from moteur.recipes.foresight import Foresight
from moteur.recipes.internvla_a1 import InternVLAA1
from moteur.runtime.choice import Kernel, Linears, fastest_dtype
from moteur.runtime.experts import FusedExpert, fuse_expert
from moteur.runtime.float8 import check_float8
from moteur.runtime.head import FusedHead
from moteur.runtime.layer import FusedLayer
from moteur.runtime.understanding import Understanding
from moteur.tokenizers import CosmosEncoder, haar_patches

_WORDS = 16  # about how many tokens an instruction has: what kernels are measured for


@dataclass
class Parts:
    """The model's weights in the form in which a call reads them. Made by `fuse_for_inference`."""

    config: InternVLAA1Config
    grid: tuple[tuple[int, int], ...]
    device: torch.device
    dtype: torch.dtype
    understanding: Understanding
    und: FusedExpert
    gen: FusedExpert | None
    act: FusedExpert
    action: ActionHead
    linears: Linears
    encoder: CosmosEncoder | None
    kernel: Float[Tensor, "dim channel cell cell"] | None
    kernel_bias: Float[Tensor, " dim"] | None
    foresight: Foresight | None
    run: Callable[..., Tensor] = FusedLayer.__call__
    _heads: dict[int, FusedHead] = field(default_factory=dict[int, FusedHead])

    def compile(self, backend: str = "inductor") -> None:
        """Compile the layers: one graph for each width and number of row groups, whatever the lengths."""
        # Streams with and without a mask, one sample and several: more graphs than the usual limit of 8.
        self.run = torch.compile(  # pyright: ignore[reportCallIssue]  the stub lags behind the signature
            FusedLayer.__call__, fullgraph=True, dynamic=True, backend=backend, recompile_limit=32
        )
        if self.device.type == "cuda":
            self.understanding.compile(backend)
            if self.encoder is not None:
                self.encoder.encoder.compile(fullgraph=True, backend=backend)

    @property
    def compression(self) -> int:
        """How much smaller a latent is than its frame."""
        return 1 if self.encoder is None else self.encoder.compression

    @property
    def gen_gain(self) -> Tensor | float:
        """What the output of the generation expert must be multiplied by before its read-out, which stays as it is."""
        assert self.gen is not None
        gain = self.gen.gain
        return gain.to(self.device, self.dtype) if isinstance(gain, Tensor) else gain

    def head(self, steps: int) -> FusedHead:
        """The action head for so many solver steps, made on first use."""
        if steps not in self._heads:
            self._heads[steps] = FusedHead(
                self.action, self.linears, steps=steps, chunk=self.config.chunk, gain=self.act.gain
            )
        return self._heads[steps]

    def encode(self, frames: Float[Tensor, "*lead 3 height width"]) -> Float[Tensor, "*lead channel rows columns"]:
        """Latents of frames in [0, 1]."""
        assert self.encoder is not None
        side = self.config.foresight_size
        flat = F.interpolate(frames.flatten(0, -4), (side, side), mode="bilinear", align_corners=False)
        # Not `encoder(...)`: that looks at the values, which a recorded call must not.
        patches = haar_patches((flat * 2 - 1).to(self.dtype), patch=self.encoder.patch)
        latents = self.encoder.quant_conv(self.encoder.encoder(patches))
        return latents.unflatten(0, frames.shape[:-3])


@torch.no_grad()
def fuse_for_inference(
    model: InternVLAA1,
    grid: tuple[tuple[int, int], ...],
    *,
    kernel: Kernel = "measured",
    dtype: torch.dtype | None = None,
    float8: bool = False,
    still: bool = True,
    batch: int = 1,
) -> Parts:
    """Rearrange a model's weights so that a call needs few and large operations. The model is read, never written.

    Exact rearrangements (1e-5 in float32, each proven alone): the two compress convolutions as one; query, key and
    value joined, gate and up joined; both taps of the still-image patch embedding added; the action projection
    multiplied into the time network, whose time half becomes a table; norm gains multiplied into the weight behind
    them; the width of a solver step and the sign of the clock multiplied into the read-out.

    Args:
        model: The trained model.
        grid: Patches of each view, as `Inputs.image_grid`.
        kernel: How linear maps are computed on the CPU, see `Linears`.
        dtype: What to compute in. None takes the model's own, but float32 for a bfloat16 model on a CPU that is
            measured to multiply float32 faster.
        float8: Hold the action expert's large maps in 8-bit floats; not exact, and only on chips that have them.
        still: Images reach Qwen3-VL's tower as equal frames, as its processor hands them over.
        batch: How many samples a call usually brings: kernels are chosen for it.

    Raises:
        ValueError: For a grid of another number of views than the model has, an unknown kernel, float8 where there is
            none, no sample in the batch.
    """
    config = model.config
    if len(grid) != config.views:
        raise ValueError(f"grid: expected {config.views} views, got {len(grid)}")
    if batch < 1:
        raise ValueError(f"batch: expected at least 1, got {batch}")
    device = model.backbone.text_embedding.weight.device
    if float8:
        check_float8(device)
    patches = sum(rows * columns for rows, columns in grid)
    image = patches // config.vision.merge**2
    if dtype is None:
        dtype = model.dtype
        if device.type == "cpu" and kernel == "measured":
            rows = batch * (image + _WORDS)
            dtype = fastest_dtype(dtype, rows=rows, inner=config.und.dim, outer=config.und.mlp_dim)
    linears = Linears(kernel, device=device, dtype=dtype, batch=batch)
    foresight, gen, encoder, compress, bias = model.foresight, None, None, None, None
    if foresight is not None:
        encoder = copy.deepcopy(foresight.encoder).to(dtype)
        folded, folded_bias = foresight.head.folded(torch.promote_types(dtype, torch.float32))
        compress, bias = folded.to(dtype).contiguous(), folded_bias.to(dtype)
        side = config.foresight_size // encoder.compression // config.foresight_cell
        gen = fuse_expert(model.mot.expert("gen"), linears, eps=config.norm_eps, rows=2 * config.views * side * side)
    return Parts(
        config=config,
        grid=grid,
        device=device,
        dtype=dtype,
        understanding=Understanding(model.backbone, config, linears, rows=patches, still=still),
        und=fuse_expert(model.mot.expert("und"), linears, eps=config.norm_eps, rows=image + _WORDS, read=False),
        gen=gen,
        act=fuse_expert(model.mot.expert("act"), linears, eps=config.norm_eps, rows=config.chunk, float8=float8),
        action=copy.deepcopy(model.action),
        linears=linears,
        encoder=encoder,
        kernel=compress,
        kernel_bias=bias,
        foresight=foresight,
    )
