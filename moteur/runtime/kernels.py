"""Fast kernels for linear maps, and the function that puts them into a model.

The model stays the one that was trained: only how its linear maps are stored and computed changes.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Literal, TypeGuard, cast, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from moteur.mot import MLP, ConditionedNorm, Expert, RMSNorm
from moteur.recipes import ActingModel, read_dtype, use_released_precision

Kernel = Literal["measured", "aten", "onednn"]

_ROUNDS = 7
_KNOWN = ("moteur", "torch", "transformers")  # whose modules call their linear maps and nothing else
_WORDS = 16  # about how many tokens an instruction has: what kernels are measured for
_FLOAT8_CAPABILITY = (8, 9)
_FLOAT8_MAX = torch.finfo(torch.float8_e4m3fn).max
# Feed-forward networks that can be packed whole, and what they hold.
_NETWORKS: dict[type[nn.Module], list[type[nn.Module]]] = {
    MLP: [nn.Linear, nn.Linear],
    nn.Sequential: [nn.Linear, nn.GELU, nn.Linear],
}
# Of mot's activations: the name and the variant of oneDNN's elementwise step.
_STEPS = {
    "swiglu": ("swish", ""),
    "geglu": ("gelu", "none"),
    "geglu_tanh": ("gelu", "tanh"),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
}


class PackedLinear(nn.Module):
    """Linear map by oneDNN's inner product, over a weight packed once.

    The operators belong to PyTorch's compiler and are not public; `available` says whether this PyTorch has them. Tests
    hold what they compute to `torch.nn.functional.linear`.

    Args:
        weight: The weight; it is copied into another layout.
        bias: The bias, or None.
        rows: About how many rows of input a call brings.
        step: Name and variant of an elementwise function of the result, computed while it is in cache.
    """

    def __init__(
        self,
        weight: Float[Tensor, "outer inner"],
        bias: Float[Tensor, " outer"] | None,
        *,
        rows: int,
        step: tuple[str, str] = ("none", ""),
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), rows)  # noqa: SLF001
        self.bias = None if bias is None else bias.detach()
        self.step = step

    @staticmethod
    def available(device: torch.device, dtype: torch.dtype) -> bool:
        """Whether this PyTorch has the operators for this device and dtype."""
        names = ("_reorder_linear_weight", "_linear_pointwise")
        if device.type != "cpu" or dtype not in {torch.float32, torch.bfloat16}:
            return False
        return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)

    def forward(self, x: Float[Tensor, "*rest inner"]) -> Float[Tensor, "*rest outer"]:
        """Apply the map, then the elementwise step."""
        name, variant = self.step
        return torch.ops.mkldnn._linear_pointwise.default(x, self.packed, self.bias, name, [], variant)  # noqa: SLF001

    def times(
        self, x: Float[Tensor, "*rest inner"], other: Float[Tensor, "*rest outer"]
    ) -> Float[Tensor, "*rest outer"]:
        """Apply the map and multiply by `other`."""
        # The overload by name: in looking for it PyTorch renders the arguments for a message that nobody reads.
        return torch.ops.mkldnn._linear_pointwise.binary(x, other.contiguous(), self.packed, self.bias, "mul")  # noqa: SLF001


class PackedMLP(nn.Module):
    """Feed-forward network of packed linear maps, the nonlinearity computed inside the first of them.

    Args:
        up: The map behind the nonlinearity, or the factor beside it where there is a gate.
        down: The map back.
        gate: The map in the nonlinearity, for gated networks.
    """

    def __init__(self, up: PackedLinear, down: nn.Module, gate: PackedLinear | None = None) -> None:
        super().__init__()
        self.gate, self.up, self.down = gate, up, down

    def forward(self, x: Float[Tensor, "*rest dim"]) -> Float[Tensor, "*rest dim"]:
        """Apply the network to every token."""
        return self.down(self.up(x) if self.gate is None else self.up.times(x, self.gate(x)))


class HypotNorm(nn.Module):
    r"""RMS norm as $x / \operatorname{hypot}(\lVert x \rVert, \sqrt{d \epsilon})$, times $\sqrt d$ and the gain.

    On the CPU PyTorch computes `rms_norm` in six passes over the tokens; this takes three, and reads half-precision
    tokens as they are.

    Args:
        norm: The norm that it stands for; its gain is copied.
    """

    gain: Tensor
    floor: Tensor

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        wide = torch.promote_types(norm.weight.dtype, torch.float32)
        gain = norm.weight.detach().to(torch.float64)
        size = gain.numel()
        gain = (gain + norm.unit_offset) * size**0.5
        floor = torch.full((), (size * norm.eps) ** 0.5, dtype=torch.float64)
        self.register_buffer("gain", gain.to(wide), persistent=False)
        self.register_buffer("floor", floor.to(gain.device, wide), persistent=False)

    def forward(self, x: Float[Tensor, "*rest dim"]) -> Float[Tensor, "*rest dim"]:
        """Normalise the last axis of `x`; computed in float32 or wider, rounded once."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=self.gain.dtype)
        return (x / torch.hypot(length, self.floor)).mul_(self.gain).to(x.dtype)


class Float8Linear(nn.Module):
    """Linear map whose weight rows and input rows are rounded to float8 (e4m3), each with a scale of its own.

    The weight is rounded once, the input at every call; products are summed in float32 and returned in bfloat16.
    About four parts in a hundred of a result are lost: an option where reading half the weights is worth it.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Float[Tensor, "outer inner"], bias: Float[Tensor, " outer"] | None) -> None:
        super().__init__()
        rounded, scale = _to_float8(weight.detach().float())
        self.register_buffer("weight", rounded, persistent=False)
        self.register_buffer("scale", scale.mT, persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)

    def forward(self, x: Float[Tensor, "*rest inner"]) -> Float[Tensor, "*rest outer"]:
        """Apply the map."""
        rounded, scale = _to_float8(x.flatten(0, -2).float())
        # Rows scaled one by one are only given in bfloat16; the operator has no public name.
        y = torch._scaled_mm(rounded, self.weight.mT, scale, self.scale, out_dtype=torch.bfloat16)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        y = y.to(x.dtype).view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


@torch.no_grad()
def optimise(
    model: ActingModel,
    *,
    kernel: Kernel = "measured",
    dtype: torch.dtype | str | None = None,
    float8: bool = False,
    batch: int = 1,
) -> None:
    """Put the fastest kernels into a model that will only act, in place and one map at a time.

    Plain `nn.Linear` maps are replaced where another kernel is measured to be faster; a map that is anything else (an
    adapter, a quantised map) or carries hooks stays as it is and is called as before. The last layer of the first
    expert, whose output nobody reads, computes no queries. The two convolutions that compress latents become the one
    they equal.

    Args:
        model: Changed in place; it cannot train afterwards.
        kernel: How linear maps are computed on the CPU: "measured" (each shape by what is faster here), "aten" or
            "onednn".
        dtype: What to compute in; None takes the model's own. In half precision, weights that the released runs hold
            in float32 stay in float32.
        float8: Hold the action expert's maps in 8-bit floats; not exact, and only on chips that have them.
        batch: How many samples a call usually brings: kernels are chosen for it.

    Raises:
        ValueError: For an unknown kernel, or a kernel or float8 that this machine does not have.
    """
    device = model.backbone.text_embedding.weight.device
    chosen = model.dtype if dtype is None else read_dtype(dtype)
    dtype = chosen if isinstance(chosen, torch.dtype) else torch.bfloat16
    _check_kernel(kernel, device, dtype, float8=float8)
    use_released_precision(cast("nn.Module", model), dtype).requires_grad_(requires_grad=False).zero_grad()
    first, *_ = model.mot.experts
    _keep_keys_and_values(model.mot.expert(first))
    if model.foresight is not None and not any(map(_has_hooks, model.foresight.head.modules())):
        model.foresight.head.fold()
    if device.type == "cpu":
        for parent, name, child in _inside(model.mot):
            if type(child) is RMSNorm and not _has_hooks(child):
                setattr(parent, name, HypotNorm(child))
    for prefix, count in rows_of(model).items():
        part = model.get_submodule(prefix)
        if float8 and prefix == "mot.experts.act":
            for parent, name, child in _inside(part):
                if _is_plain(child):
                    setattr(parent, name, Float8Linear(child.weight, child.bias))
        elif PackedLinear.available(device, dtype) and kernel != "aten":
            _pack(part, rows=batch * count, always=kernel == "onednn")


def rows_of(model: ActingModel) -> dict[str, int]:
    """About how many rows a sample brings to the linear maps of each part of a model, smaller parts first."""
    config = model.config
    first, *_ = model.mot.experts
    rows = {"mot.experts.act": config.chunk, f"mot.experts.{first}": config.views * config.image_tokens + _WORDS}
    if model.foresight is not None and config.latent_shape is not None:
        _, height, width = config.latent_shape
        cell = model.foresight.head.cell
        rows["mot.experts.gen"] = 2 * config.views * (height // cell) * (width // cell)
    parts = {"projector": config.image_tokens, "vision.merger": config.image_tokens, "vision": config.image_patches}
    present = {name for name, _ in model.backbone.named_modules()}
    return rows | {f"backbone.{name}": config.views * count for name, count in parts.items() if name in present}


@lru_cache(maxsize=256)
def measured(rows: int, inner: int, outer: int, dtype: torch.dtype, threads: int) -> dict[str, float]:  # noqa: ARG001
    """Median seconds of each kernel on the CPU for one shape; taken in turns, so that both see the same machine."""
    own = torch.Generator().manual_seed(0)
    x, weight = (torch.rand(count, inner, dtype=dtype, generator=own) for count in (rows, outer))
    packed = PackedLinear(weight, None, rows=rows)
    candidates: dict[str, Callable[[Tensor], Tensor]] = {"aten": lambda x: F.linear(x, weight), "onednn": packed}
    times: dict[str, list[float]] = {name: [] for name in candidates}
    with torch.inference_mode():
        for turn in range(_ROUNDS + 2):
            for name, run in candidates.items():
                start = time.perf_counter()
                run(x)
                if turn >= 2:  # noqa: PLR2004  the first two warm up
                    times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def fastest_dtype(model: ActingModel, *, batch: int = 1) -> torch.dtype:
    """What to compute in: the model's own dtype, but float32 on a CPU where half precision is slower.

    Weights in half precision are float32 numbers too, so nothing is lost but memory.
    """
    own, device = model.dtype, model.backbone.text_embedding.weight.device
    if own == torch.float16 and device.type == "cpu":
        return torch.float32
    if own != torch.bfloat16 or not PackedLinear.available(device, own):
        return own
    first, *_ = model.mot.experts
    expert, threads = model.mot.expert(first), torch.get_num_threads()
    rows = batch * rows_of(model)[f"mot.experts.{first}"]
    size = (rows, expert.dim, expert.layer(0).mlp.down.in_features)
    half, full = (min(measured(*size, dtype, threads).values()) for dtype in (own, torch.float32))
    return own if half < full else torch.float32


def _check_kernel(kernel: str, device: torch.device, dtype: torch.dtype, *, float8: bool) -> None:
    if kernel not in get_args(Kernel):
        raise ValueError(f"kernel: expected one of {', '.join(map(repr, get_args(Kernel)))}, got {kernel!r}")
    if kernel == "onednn" and not PackedLinear.available(device, dtype):
        raise ValueError(
            f"kernel: expected oneDNN's operators for {dtype} on {device.type}, this PyTorch has none; take 'aten'"
        )
    if float8:
        capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
        if capability is None or capability < _FLOAT8_CAPABILITY:
            found = device.type if capability is None else f"capability {capability[0]}.{capability[1]}"
            raise ValueError(f"float8: expected a CUDA device of capability 8.9 or newer, got {found}")


def _pack(part: nn.Module, *, rows: int, always: bool) -> None:
    """Replace feed-forward networks, then the linear maps that are left."""

    def wins(linear: nn.Linear, *, outer: int) -> bool:
        if always:
            return True
        times = measured(rows, linear.in_features, outer, linear.weight.dtype, torch.get_num_threads())
        return times["onednn"] < times["aten"]

    for parent, name, child in _inside(part):
        if _is_network(child):
            first, *_ = child.children()
            assert isinstance(first, nn.Linear)
            halves = 2 if isinstance(child, MLP) and child.gated else 1
            if wins(first, outer=first.out_features // halves):
                setattr(parent, name, _packed_network(child, rows))
    for parent, name, child in _inside(part):
        if _is_plain(child) and wins(child, outer=child.out_features):
            setattr(parent, name, PackedLinear(child.weight, child.bias, rows=rows))


def _packed_network(network: nn.Module, rows: int) -> PackedMLP:
    if not isinstance(network, MLP):
        first, activation, second = network.children()
        assert isinstance(first, nn.Linear)
        assert isinstance(activation, nn.GELU)
        assert isinstance(second, nn.Linear)
        up = PackedLinear(first.weight, first.bias, rows=rows, step=("gelu", activation.approximate))
        return PackedMLP(up, PackedLinear(second.weight, second.bias, rows=rows))
    step = _STEPS[network.activation]
    down = PackedLinear(network.down.weight, None, rows=rows)
    if not network.gated:
        return PackedMLP(PackedLinear(network.up.weight, None, rows=rows, step=step), down)
    gate, up = network.gate_up.weight.chunk(2)
    return PackedMLP(PackedLinear(up, None, rows=rows), down, PackedLinear(gate, None, rows=rows, step=step))


def _keep_keys_and_values(expert: Expert) -> None:
    """Drop the queries of an expert's last layer, which nobody reads."""
    layer = expert.layer(expert.depth - 1)
    projections = layer.attention
    if not _is_plain(projections.qkv) or _has_hooks(projections) or _has_hooks(layer):
        return
    first = projections.heads * projections.head_dim
    weight, bias = projections.qkv.weight, cast("Tensor | None", projections.qkv.bias)
    kept = nn.Linear(weight.shape[1], weight.shape[0] - first, bias=bias is not None, device="meta")
    kept.weight = nn.Parameter(weight[first:].clone(), requires_grad=False)
    if bias is not None:
        kept.bias = nn.Parameter(bias[first:].clone(), requires_grad=False)
    projections.qkv, projections.heads = kept, 0


def _inside(part: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Every module inside another one, with its parent and its name there, where it may be replaced.

    What modules of other libraries hold is left alone: an adapter may read the weights of its base. So is the map of a
    conditioned norm, to which a sample brings one row and not those of its tokens. A module that was
    replaced is let go at once: both forms of a whole expert together may not fit into memory.
    """
    for name in [name for name, _ in part.named_children()]:
        yield part, name, part.get_submodule(name)
        child = part.get_submodule(name)
        known = type(child).__module__.split(".", maxsplit=1)[0] in _KNOWN
        if known and not isinstance(child, ConditionedNorm):
            yield from _inside(child)


def _is_network(module: nn.Module) -> bool:
    """Whether a module is a feed-forward network that can be packed whole, and nothing else happens in it."""
    kinds = [type(child) for child in module.children()]
    return kinds == _NETWORKS.get(type(module)) and not any(map(_has_hooks, module.modules()))


def _is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is an `nn.Linear` and nothing else happens when it is called."""
    return type(module) is nn.Linear and not _has_hooks(module)


def _has_hooks(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return any(hooks) or "forward" in vars(module)


def _to_float8(values: Float[Tensor, "row inner"]) -> tuple[Tensor, Float[Tensor, "row 1"]]:
    scale = values.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / _FLOAT8_MAX
    return (values / scale).to(torch.float8_e4m3fn), scale
