"""A call on another device than the CPU: nothing is left behind on the host, nothing is read back.

Tensors without data, said to be on another device, go through the whole call; PyTorch's fake tensors refuse to mix
devices and to tell values. That stands in for a GPU as far as placement goes, not for what a GPU computes.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from toy_model import random_inputs, saying

from moteur.recipes import Inputs, InternVLAA1, InternVLAA1Config
from moteur.runtime import InferenceSession

ELSEWHERE = torch.device("meta")  # the one device besides the CPU that every build of PyTorch can name


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    def converted(module: nn.Module, convert: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        for part in module.modules() if recurse else [module]:
            for name, value in part._parameters.items():
                if value is not None:
                    part._parameters[name] = nn.Parameter(convert(value.detach()), requires_grad=False)
            for name, value in part._buffers.items():
                if value is not None:
                    part._buffers[name] = convert(value)
        return module

    monkeypatch.setattr(nn.Module, "_apply", converted)  # PyTorch's own exchanges tensors in place, fake ones cannot
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda mode, _: mode, raising=False)  # copies stay in the mode
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        yield mode


def calls(config: InternVLAA1Config) -> dict[str, Inputs]:
    ragged = torch.tensor([[1, 1, 0], [0, 1, 1]], dtype=torch.bool)
    missing = torch.tensor([[1, 0, 1]], dtype=torch.bool)
    return {
        "full": random_inputs(config, 1, 0),
        "short": saying(random_inputs(config, 1, 1), 2),
        "missing view": replace(random_inputs(config, 1, 2), view_valid=missing),
        "ragged batch": replace(random_inputs(config, 2, 3), view_valid=ragged),
    }


@pytest.mark.parametrize(
    ("name", "dtype", "given"),
    [
        ("full", torch.bfloat16, "frames"),
        ("short", torch.float32, "latents"),
        ("missing view", torch.float32, "frames"),
        ("ragged batch", torch.bfloat16, "frames"),
        ("ragged batch", torch.float32, "latents"),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
def test_a_call_stays_on_its_device_and_reads_nothing_back(
    toy: InternVLAA1Config,
    fake: FakeTensorMode,
    name: str,
    dtype: torch.dtype,
    given: str,
) -> None:
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        inputs = calls(toy)[name]
    session = InferenceSession(InternVLAA1(toy).to(dtype).to(ELSEWHERE), kernel="aten", take_over=True)
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        if given == "latents":
            inputs = replace(inputs, latents=torch.zeros(inputs.state.shape[0], toy.views, 2, *toy.latent_shape))
        call = session._arrived(inputs, None)
    tensors = {name: elsewhere(fake, value) for name, value in call.tensors.items()}
    batch = inputs.state.shape[0]
    tensors["noise"] = torch.empty(batch, toy.chunk, toy.action_dim, device=ELSEWHERE)
    tensors["prefix"] = torch.empty(batch, 1, toy.action_dim, device=ELSEWHERE)
    for method in ("euler", "midpoint", "heun"):
        actions, now, before = session._act(tensors, steps=3, method=method)
        assert actions is not None
        assert (actions.device, actions.shape) == (ELSEWHERE, tensors["noise"].shape)
        assert (now is None) == (before is None) == (given == "latents")
    seen, latents, *_ = session._known(tensors)
    assert session.model.foresee(seen, latents).device == ELSEWHERE


def test_the_stand_in_refuses_mixed_devices_and_values(fake: FakeTensorMode) -> None:
    there = elsewhere(fake, torch.zeros(3))
    with pytest.raises(RuntimeError, match="found at least two devices, meta and cpu"):
        there + torch.zeros(3)
    with pytest.raises(DataDependentOutputException):
        there.sum().item()


def elsewhere(fake: FakeTensorMode, value: Tensor) -> Tensor:
    return fake.from_tensor(value.clone() if isinstance(value, Tensor) else value).to(ELSEWHERE)
