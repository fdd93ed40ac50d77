"""What ties the model to the robot: its fast door, its scales, its file."""

import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "conveyor"))  # the example's files are no package

from env import COLORS, INSTRUCTIONS
from robot import SIZE, Door, Policy, Scales, config, load, save, text_tokenizer
from safetensors.torch import load_file, save_file

from moteur.recipes import InternVLAA1, Observation, Processor

SCALES = Scales(torch.randn(4), torch.rand(4) + 0.5, torch.randn(4), torch.rand(4) + 0.5)


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


def test_commands_undo_the_scaling_of_actions() -> None:
    generator = torch.Generator().manual_seed(0)
    actions = torch.rand(5, 7, 4, generator=generator) * 2 - 1
    state = torch.rand(5, 4, generator=generator) * 2 - 1
    torch.testing.assert_close(SCALES.commands(SCALES.actions(actions, state), state), actions, rtol=0, atol=1e-5)


def test_places_are_learned_relative_to_the_arm_and_the_gap_is_not() -> None:
    actions, state = torch.zeros(1, 2, 4), torch.zeros(1, 4)
    moved = SCALES.actions(actions + 0.1, state + 0.1) - SCALES.actions(actions, state)
    torch.testing.assert_close(moved[..., :3], torch.zeros(1, 2, 3), rtol=0, atol=1e-6)
    torch.testing.assert_close(moved[..., 3], (0.1 / (SCALES.action_std[3] + 1e-6)).expand(1, 2))


def test_a_policy_survives_its_file_and_a_file_with_a_tensor_too_few_is_refused(tmp_path: Path) -> None:
    policy = Policy(InternVLAA1(config(), decoder=True), Door(config()), SCALES)
    path = tmp_path / "policy.safetensors"
    save(path, policy, dtype=torch.float32, notes={"made by": "a test"})
    found = load(path)
    for name, value in policy.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], value, rtol=0, atol=0, msg=name)
    for name, value in vars(SCALES).items():
        torch.testing.assert_close(getattr(found.scales, name), value, rtol=0, atol=0, msg=name)
    tensors = load_file(path)
    tensors.pop("model/action.state_in.weight")
    save_file(tensors, path)
    with pytest.raises(RuntimeError, match=r"Missing key.*action\.state_in\.weight"):
        load(path)
