"""Three experts of different widths in one attention: a joint call, the same with a cache, and what it costs.

python examples/mot.py
"""

import time

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from moteur.mot import Expert, MoT, rotary_angles

torch.manual_seed(0)
lengths = {"und": 246, "gen": 96, "act": 51}
shared = {"depth": 6, "heads": 8, "kv_heads": 4, "head_dim": 32}
mot = MoT(
    {
        "und": Expert(dim=256, mlp_dim=768, qk_norm=True, **shared),
        "gen": Expert(dim=128, mlp_dim=384, qk_norm=True, **shared),
        "act": Expert(dim=128, mlp_dim=384, qk_norm=True, **shared),
    }
).eval()
for name in mot.experts:
    print(f"{name}: {sum(weight.numel() for weight in mot.expert(name).parameters()):,} parameters")

# A stream sees itself and the streams before it.
stream = torch.cat([torch.full((length,), index) for index, length in enumerate(lengths.values())])
mask = stream[None, :] <= stream[:, None]


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend by rows of the mask; the queries are always the last positions of the keys."""
    total = key.shape[2]
    rows = mask[total - query.shape[2] : total, :total]
    return scaled_dot_product_attention(query, key, value, attn_mask=rows, enable_gqa=True)


total, prefix = sum(lengths.values()), lengths["und"] + lengths["gen"]
cos, sin = rotary_angles(torch.arange(total)[None], head_dim=32, base=10_000.0)
streams = {name: torch.randn(1, length, mot.expert(name).dim) for name, length in lengths.items()}

with torch.inference_mode():
    joint = mot(streams, attention=attention, rotary=(cos, sin))

    # Acting: und and gen go through once and stay in the cache, the action stream comes back ten times.
    cache = mot.new_cache(batch=1, capacity=total)
    seen = {name: streams[name] for name in ("und", "gen")}
    mot(seen, attention=attention, rotary=(cos[:, :prefix], sin[:, :prefix]), cache=cache, outputs=())
    cache = cache.extended(prefix)

    acting = {"act": streams["act"]}
    angles = (cos[:, prefix:], sin[:, prefix:])
    start = time.perf_counter()
    for _ in range(10):
        step = mot(acting, attention=attention, rotary=angles, cache=cache)
    cached_time = time.perf_counter() - start

    start = time.perf_counter()
    for _ in range(10):
        mot(streams, attention=attention, rotary=(cos, sin), outputs=("act",))
    joint_time = time.perf_counter() - start

difference = (step["act"] - joint["act"]).abs().max()
print(f"\ncached against joint, action stream: largest difference {difference:.1e}")
print(f"ten denoising steps: {cached_time * 1e3:.0f} ms with the prefix cached, {joint_time * 1e3:.0f} ms without")
