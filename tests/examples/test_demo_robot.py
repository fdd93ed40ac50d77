"""What ties the model to the robot: its fast door, its scales, its file."""

import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "conveyor"))  # the example's files are no package

from env import COLORS, INSTRUCTIONS
from robot import ROBOT, SIZE, Door, Policy, config, load, save, text_tokenizer
from safetensors.torch import load_file, save_file

from moteur.data import FieldStatistics, RobotStatistics
from moteur.recipes import InternVLAA1, Observation, Processor


def field(seed: int) -> FieldStatistics:
    draw = torch.Generator().manual_seed(seed)
    mean, std = torch.randn(4, generator=draw), torch.rand(4, generator=draw) + 0.5
    return FieldStatistics(0, tuple(mean.tolist()), tuple(std.tolist()), (-9.0,) * 4, (9.0,) * 4)


STATISTICS = RobotStatistics(ROBOT.name, config().chunk, field(0), field(1))


def test_the_fast_door_gives_what_the_recipes_processor_gives() -> None:
    generator = torch.Generator().manual_seed(0)
    door = Door(config())
    frames = torch.randint(0, 256, (2, 3, 3, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    state, words = torch.randn(3, 4, generator=generator), torch.tensor([0, 7, 13])
    fast = door.inputs(frames[1], state, words, before=frames[0])
    cameras = [frames[:, :, view].transpose(0, 1) for view in range(3)]
    slow = Processor(config(), text_tokenizer())(Observation(cameras, state, [door.texts[word] for word in words]))
    for field in fields(slow):
        ours, theirs = getattr(fast, field.name), getattr(slow, field.name)
        if isinstance(theirs, Tensor):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6, msg=field.name)  # one rounding of x / 255
        else:
            assert ours == theirs, field.name


def test_every_instruction_has_a_number_and_only_known_words() -> None:
    door, tokenizer = Door(config()), text_tokenizer()
    for text in INSTRUCTIONS:
        for color in COLORS:
            assert door.texts[door.number(text.format(color))] == text.format(color)
            assert tokenizer.unk_token_id not in tokenizer(text.format(color))["input_ids"]
    assert max(tokenizer.get_vocab().values()) < config().vocabulary


def test_the_policy_commands_what_its_model_predicts_undone_and_kept_in_range() -> None:
    policy = Policy(InternVLAA1(config()).eval(), Door(config()), STATISTICS)
    draw = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, 3, 3, 3, SIZE, SIZE), generator=draw, dtype=torch.uint8)
    state, words = torch.rand(3, 4, generator=draw) * 2 - 1, torch.tensor([0, 7, 13])
    noise = torch.randn(3, config().chunk, 4, generator=draw)
    found = policy.act(frames[1], frames[0], state, words, noise=noise)
    scaled = (state - torch.tensor(STATISTICS.state.mean)) / (torch.tensor(STATISTICS.state.std) + 1e-6)
    actions = policy.model.act(policy.door.inputs(frames[1], scaled, words, before=frames[0]), noise=noise)
    assert STATISTICS.action is not None
    real = actions * (torch.tensor(STATISTICS.action.std) + 1e-6) + torch.tensor(STATISTICS.action.mean)
    real += torch.tensor([1.0, 1.0, 1.0, 0.0]) * state[:, None]  # places relative to the arm, the gap as it is
    torch.testing.assert_close(found, real.clamp(-1, 1), rtol=0, atol=1e-5)
    assert found.abs().max() == 1


def test_a_policy_survives_its_file_and_a_file_with_a_tensor_too_few_is_refused(tmp_path: Path) -> None:
    policy = Policy(InternVLAA1(config(), decoder=True), Door(config()), STATISTICS)
    path = tmp_path / "policy.safetensors"
    save(path, policy, dtype=torch.float32, notes={"made by": "a test"})
    found = load(path)
    for name, value in policy.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], value, rtol=0, atol=0, msg=name)
    for ours, theirs in ((found.statistics.state, STATISTICS.state), (found.statistics.action, STATISTICS.action)):
        assert ours is not None
        assert theirs is not None
        assert (ours.mean, ours.std) == (theirs.mean, theirs.std)
    tensors = load_file(path)
    tensors.pop("model/action.state_in.weight")
    save_file(tensors, path)
    with pytest.raises(RuntimeError, match=r"Missing key.*action\.state_in\.weight"):
        load(path)
