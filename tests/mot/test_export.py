"""`torch.export` with a batch of any size: a joint call, and a step over a cache."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from moteur.mot import Expert, KVCache, MoT, rotary_angles
from moteur.mot.mot import AttentionFn

SHARED = {"depth": 2, "heads": 4, "kv_heads": 2, "head_dim": 8}


class Joint(nn.Module):
    """A joint call by position: export takes modules."""

    def __init__(self, mot: MoT, attention: AttentionFn) -> None:
        super().__init__()
        self.mot, self.attention = mot, attention

    def forward(self, und: Tensor, act: Tensor, condition: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        streams, conditions = {"und": und, "act": act}, {"act": condition}
        return self.mot(streams, attention=self.attention, rotary=(cos, sin), conditions=conditions)["act"]


class Step(nn.Module):
    """A cached call of the last expert."""

    def __init__(self, mot: MoT, attention: AttentionFn) -> None:
        super().__init__()
        self.mot, self.attention = mot, attention

    def forward(self, act: Tensor, condition: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        cache = KVCache(keys=keys, values=values, length=5)
        with torch.no_grad():
            return self.mot({"act": act}, attention=self.attention, conditions={"act": condition}, cache=cache)["act"]


@pytest.mark.parametrize("own_angles", [False, True])
def test_an_exported_joint_call_takes_any_batch(
    *, own_angles: bool, make_attention: Callable[[Tensor], AttentionFn], device: torch.device
) -> None:
    joint = Joint(experts(device), make_attention(torch.ones(9, 9, dtype=torch.bool, device=device).tril()))

    def inputs(batch: int) -> tuple[Tensor, ...]:
        shapes = ((batch, 5, 24), (batch, 4, 12), (batch, 6))
        positions = torch.arange(9, device=device).expand(batch if own_angles else 1, -1)
        return *(torch.randn(shape, device=device) for shape in shapes), *rotary_angles(positions, head_dim=8, base=9.0)

    batch = torch.export.Dim("batch", min=1, max=64)
    moving = ({0: batch},) * 3 + ({0: batch} if own_angles else None,) * 2
    exported = torch.export.export(joint, inputs(3), dynamic_shapes=moving).module()
    for size in (1, 2, 7):
        given = inputs(size)
        torch.testing.assert_close(exported(*given), joint(*given), rtol=1e-6, atol=1e-6)


def test_an_exported_step_over_a_cache_takes_any_batch(
    make_attention: Callable[[Tensor], AttentionFn], device: torch.device
) -> None:
    mot = experts(device)
    step = Step(mot, make_attention(torch.ones(9, 9, dtype=torch.bool, device=device).tril()))

    def inputs(batch: int) -> tuple[Tensor, ...]:
        cache = mot.new_cache(batch=batch, capacity=9)
        cache.keys.normal_()
        cache.values.normal_()
        return *(torch.randn(shape, device=device) for shape in ((batch, 4, 12), (batch, 6))), cache.keys, cache.values

    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(
        step, inputs(3), dynamic_shapes=({0: batch}, {0: batch}, {1: batch}, {1: batch})
    ).module()
    for size in (1, 2, 7):
        given = inputs(size)
        again = [x.clone() for x in given]
        torch.testing.assert_close(exported(*given), step(*again), rtol=1e-6, atol=1e-6)
        assert torch.equal(given[2], again[2])  # written to in the same way


def experts(device: torch.device) -> MoT:
    und = Expert(dim=24, mlp_dim=32, device=device, **SHARED)
    act = Expert(dim=12, mlp_dim=32, condition=6, residual_gate=True, device=device, **SHARED)
    nn.init.normal_(act.layer(0).attention_norm.modulation.weight)
    return MoT({"und": und, "act": act})
