"""A call on another device than the CPU: nothing is left behind on the host, nothing is read back.

Tensors without data, said to be on another device, go through the whole call; PyTorch's fake tensors refuse to mix
devices and to tell values. That stands in for a GPU as far as placement goes, not for what a GPU computes.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from toy_inference import saying, still
from toy_model import without_views

from moteur.recipes.config import InternVLAA1Config
from moteur.recipes.inputs import Inputs
from moteur.recipes.internvla_a1 import InternVLAA1
from moteur.runtime import fuse_for_inference
from moteur.runtime.program import Program, Solver
from moteur.runtime.shape import shape_of

ELSEWHERE = torch.device("meta")  # the one device besides the CPU that every build of PyTorch can name
NAMES = ("input_ids", "und_valid", "view_valid", "pixel_values", "state")


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
        "full": still(config, 1, 0),
        "short": saying(still(config, 1, 1), config, 2),
        "missing view": without_views(config, still(config, 1, 2), missing),
        "ragged batch": without_views(config, still(config, 2, 3), ragged),
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
    model = InternVLAA1(toy).to(dtype).to(ELSEWHERE)
    parts = fuse_for_inference(model, inputs.image_grid)
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        shape = shape_of(inputs, parts.understanding.arrangement)
    program = Program(parts, shape)
    tensors = {key: elsewhere(fake, getattr(inputs, key)) for key in NAMES}
    assert inputs.frames is not None
    for index, time in enumerate(("before", "now")):
        frames = elsewhere(fake, inputs.frames[:, :, index])
        tensors[f"{given}_{time}"] = frames if given == "frames" else latents_of(toy, frames)
    batch = inputs.state.shape[0]
    tensors["noise"] = torch.empty(batch, toy.chunk, toy.action_dim, device=ELSEWHERE)
    tensors["prefix"] = torch.empty(batch, 1, toy.action_dim, device=ELSEWHERE)
    for method in ("euler", "midpoint", "heun"):
        actions, latents = program.act(tensors, Solver(3, method))
        assert (actions.device, actions.shape) == (ELSEWHERE, tensors["noise"].shape)
        assert latents is not None
        assert latents.device == ELSEWHERE
    predicted, _ = program.imagine(tensors)
    assert (predicted.device, predicted.shape[1]) == (ELSEWHERE, toy.views)


def test_the_stand_in_refuses_mixed_devices_and_values(fake: FakeTensorMode) -> None:
    there = elsewhere(fake, torch.zeros(3))
    with pytest.raises(RuntimeError, match="found at least two devices, meta and cpu"):
        there + torch.zeros(3)
    with pytest.raises(DataDependentOutputException):
        there.sum().item()


def elsewhere(fake: FakeTensorMode, value: Tensor) -> Tensor:
    return fake.from_tensor(value.clone() if isinstance(value, Tensor) else value).to(ELSEWHERE)


def latents_of(config: InternVLAA1Config, frames: Tensor) -> Tensor:
    side = config.foresight_size // (config.cosmos.patch * 2**config.cosmos.downsamplings)
    return frames.new_empty(*frames.shape[:2], config.cosmos.latent_channels, side, side)
