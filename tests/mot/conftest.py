"""What the tests of `mot` share: unlike experts with weights that matter, and attention of their own."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moteur.mot import Expert, MoT
from moteur.mot.mot import AttentionFn

LENGTHS = {"und": 5, "gen": 4, "act": 3}


def unlike_experts(
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float64,
    depth: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    names: tuple[str, ...] = ("und", "gen", "act"),
    depths: Mapping[str, int] = MappingProxyType({}),
    output_gate: bool = False,
    **options: object,
) -> MoT:
    """Experts that differ in everything they may; every weight, norm gains and biases too, is far from its initial."""
    shared = {"heads": heads, "kv_heads": kv_heads, "head_dim": 8, "device": device, "dtype": dtype}
    own = {
        "und": {"dim": 24, "mlp_dim": 40, "qk_norm": True},
        "gen": {"dim": 16, "mlp_dim": 20, "activation": "geglu_tanh", "norm": "rms_unit_offset", "qkv_bias": True},
        "act": {"dim": 12, "mlp_dim": 28, "activation": "gelu", "norm": "layer", "qk_norm": True, "eps": 1e-3},
    }
    experts = {
        name: Expert(**own[name], depth=depths.get(name, depth), output_gate=output_gate, **shared) for name in names
    }
    mot = MoT(experts, **options)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in mot.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.ndim == 2:
                parameter.copy_(1.5 * noise / parameter.shape[1] ** 0.5)
            else:
                parameter.add_(0.3 * noise.to(parameter))
    return mot


def random_streams(
    mot: MoT, lengths: Mapping[str, int] = LENGTHS, *, batch: int = 2, seed: int = 0
) -> dict[str, Tensor]:
    """Tokens for each expert, in the dtype and on the device of its weights."""
    generator = torch.Generator().manual_seed(seed)
    streams = {}
    for name in mot.experts:
        like = mot.expert(name).layer(0).attention.qkv.weight
        noise = torch.randn(batch, lengths[name], mot.expert(name).dim, generator=generator, dtype=torch.float64)
        streams[name] = noise.to(like)
    return streams


def masked_attention(mask: Tensor) -> AttentionFn:
    """Attention by an explicit boolean mask over the whole sequence; queries are the last positions of the keys."""

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        total = key.shape[2]
        rows = mask[total - query.shape[2] : total, :total]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=rows, enable_gqa=True)

    return attention


def not_later(lengths: Mapping[str, int] = LENGTHS, *, device: torch.device) -> Tensor:
    """Mask in which a stream sees itself and the streams before it."""
    stream = torch.cat([torch.full((length,), index) for index, length in enumerate(lengths.values())])
    return (stream[None, :] <= stream[:, None]).to(device)


@pytest.fixture(scope="session")
def make_mot() -> Callable[..., MoT]:
    return unlike_experts


@pytest.fixture(scope="session")
def make_streams() -> Callable[..., dict[str, Tensor]]:
    return random_streams


@pytest.fixture(scope="session")
def make_attention() -> Callable[[Tensor], AttentionFn]:
    return masked_attention


@pytest.fixture(scope="session")
def make_mask() -> Callable[..., Tensor]:
    return not_later
