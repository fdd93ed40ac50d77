"""π0 and π0.5 as one plain function over the released tensors, in their dtype: no cache, no masks but one matrix."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

VLM, ACT = "paligemma_with_expert.paligemma.model.language_model.", "paligemma_with_expert.gemma_expert.model."
TOWER = "paligemma_with_expert.paligemma.model.vision_tower.vision_model."
PROJECTOR = "paligemma_with_expert.paligemma.model.multi_modal_projector.linear"
WORDS = "paligemma_with_expert.paligemma.lm_head.weight"


def velocity(  # noqa: C901, PLR0915
    w: Mapping[str, Tensor],
    *,
    heads: int,
    kv_heads: int,
    vision_heads: int,
    patch: int,
    images: Tensor,
    image_valid: Tensor,
    words: Tensor,
    word_valid: Tensor,
    state: Tensor,
    noisy: Tensor,
    time: Tensor,
) -> Tensor:
    """Velocity noise - data, (batch, step, action), at times (batch); images in [-1, 1]."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def unit(x: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)

    batch, views = image_valid.shape
    x = _tower(w, images.flatten(0, 1), vision_heads, patch)
    pictures = linear(PROJECTOR, x).unflatten(0, (batch, views))
    cells = pictures.shape[2]
    width = w[WORDS].shape[1]
    prefix = torch.cat([pictures.flatten(1, 2), w[WORDS][words] * math.sqrt(width)], dim=1)

    dim, chunk = w["action_in_proj.weight"].shape[0], noisy.shape[1]
    period = 4e-3 * 1000 ** torch.linspace(0, 1, dim // 2, dtype=torch.float64)
    angle = 2 * math.pi * time.double()[:, None] / period
    features = torch.cat([angle.sin(), angle.cos()], dim=1).to(noisy.dtype)
    actions = linear("action_in_proj", noisy)
    condition = None
    if "state_proj.weight" in w:
        both = torch.cat([actions, features[:, None].expand(-1, chunk, -1)], dim=-1)
        actions = linear("action_time_mlp_out", F.silu(linear("action_time_mlp_in", both)))
        actions = torch.cat([linear("state_proj", state)[:, None], actions], dim=1)
    else:
        condition = F.silu(linear("time_mlp_out", F.silu(linear("time_mlp_in", features))))

    valid = torch.cat(
        [image_valid.repeat_interleave(cells, 1), word_valid, torch.ones(batch, actions.shape[1], dtype=torch.bool)], 1
    )
    block = torch.zeros(valid.shape[1], dtype=torch.long)
    block[-chunk:] = 2
    if condition is None:
        block[-chunk - 1] = 1
    visible = (block[None, :] <= block[:, None]) & valid[:, None, :]
    position = valid.long().cumsum(1) - 1

    def norm(name: str, x: Tensor) -> tuple[Tensor, Tensor | float]:
        if condition is not None and name.startswith(ACT):
            scale, shift, gate = linear(f"{name}.dense", condition)[:, None].chunk(3, dim=-1)
            return unit(x) * (1 + scale) + shift, gate
        return unit(x) * (1 + w[f"{name}.weight"]), 1.0

    tokens = {VLM: prefix, ACT: actions}
    lengths = [len_.shape[1] for len_ in tokens.values()]
    depth = sum(name.startswith(VLM) and name.endswith("input_layernorm.weight") for name in w)
    for layer in range(depth):
        asked, known, read, gates = [], [], [], {}
        for root, x in tokens.items():
            at = f"{root}layers.{layer}"
            h, gates[root] = norm(f"{at}.input_layernorm", x)
            for found, kind in ((asked, "q"), (known, "k"), (read, "v")):
                count = heads if kind == "q" else kv_heads
                found.append(linear(f"{at}.self_attn.{kind}_proj", h).unflatten(-1, (count, -1)).transpose(1, 2))
        q, k, v = (torch.cat(parts, dim=2) for parts in (asked, known, read))
        q, k = _rotated(q, position), _rotated(k, position)
        k, v = (part.repeat_interleave(heads // kv_heads, dim=1) for part in (k, v))
        scores = (q @ k.mT) / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(~visible[:, None], -1e30).softmax(-1)
        attended = (weights @ v).transpose(1, 2).flatten(2).split(lengths, dim=1)
        for (root, x), part in zip(list(tokens.items()), attended, strict=True):
            at = f"{root}layers.{layer}"
            y = x + gates[root] * linear(f"{at}.self_attn.o_proj", part)
            h, gate = norm(f"{at}.post_attention_layernorm", y)
            mlp = F.gelu(linear(f"{at}.mlp.gate_proj", h), approximate="tanh") * linear(f"{at}.mlp.up_proj", h)
            tokens[root] = y + gate * linear(f"{at}.mlp.down_proj", mlp)
    out, _ = norm(f"{ACT}norm", tokens[ACT][:, -chunk:])
    return linear("action_out_proj", out)


def euler(w: Mapping[str, Tensor], noise: Tensor, steps: int, **given: object) -> Tensor:
    """Actions by Euler steps from time 1 to 0, everything computed anew at each."""
    x = noise
    for step in range(steps):
        time = torch.full((len(noise),), (steps - step) / steps, dtype=torch.float32)
        x = x - velocity(w, noisy=x, time=time, **given) / steps  # pyright: ignore[reportArgumentType]
    return x


def _tower(w: Mapping[str, Tensor], images: Tensor, heads: int, patch: int) -> Tensor:
    x = F.conv2d(
        images, w[f"{TOWER}embeddings.patch_embedding.weight"], w[f"{TOWER}embeddings.patch_embedding.bias"], patch
    )
    x = x.flatten(2).mT + w[f"{TOWER}embeddings.position_embedding.weight"]

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, w[f"{TOWER}{name}.weight"], w[f"{TOWER}{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{TOWER}{name}.weight"], w[f"{TOWER}{name}.bias"], 1e-6)

    depth = sum(name.startswith(TOWER) and name.endswith("layer_norm1.weight") for name in w)
    for layer in range(depth):
        at = f"encoder.layers.{layer}"
        h = norm(f"{at}.layer_norm1", x)
        q, k, v = (
            linear(f"{at}.self_attn.{kind}_proj", h).unflatten(-1, (heads, -1)).transpose(1, 2) for kind in "qkv"
        )
        mixed = ((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + linear(f"{at}.self_attn.out_proj", mixed)
        h = linear(f"{at}.mlp.fc1", norm(f"{at}.layer_norm2", x))
        x = x + linear(f"{at}.mlp.fc2", F.gelu(h, approximate="tanh"))
    return norm("post_layernorm", x)


def _rotated(x: Tensor, position: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    rate = 10_000 ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = position.double()[:, None, :, None] * rate
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
