"""Prompts of π0 and π0.5 beside recorded ones and beside numpy's bins."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moteur.data import Sample, resize_with_pad
from moteur.recipes import Collator, Inputs, Processor, preset
from moteur.recipes.prompts import prompt_pieces, state_bins, tokenize_prompts


@pytest.fixture(params=range(3))
def prompt(golden: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    return json.loads((golden / "pi_processing/prompts.json").read_text())["prompts"][request.param]


def letters(text: str) -> list[int]:
    return [100 + ord(letter) for letter in text]


def test_prompts_are_those_recorded(prompt: dict[str, Any]) -> None:
    text, state = prompt["text"], torch.tensor(prompt["state"], dtype=torch.float64)
    assert state_bins(state).tolist() == prompt["bins"]
    assert prompt_pieces(text, state) == (prompt["pi05"],)
    assert prompt_pieces(text, state, convention="lerobot") == (prompt["pi05"],)
    assert list(prompt_pieces(text)) == prompt["pi0"] == prompt["pi05_without_state"]
    assert prompt_pieces(text, convention="lerobot") == (prompt["pi0_lerobot"],)


EDGES = [place / 128 - 1 for place in range(257)]
AROUND = [float(np.nextafter(edge, side)) for edge in EDGES for side in (-9.0, 9.0)]


@given(st.lists(st.sampled_from([*EDGES, *AROUND]) | st.floats(-1e30, 1e30), min_size=1))
def test_bins_are_those_of_numpys_digitize(values: list[float]) -> None:
    expected = np.digitize(values, np.linspace(-1, 1, 257)[:-1]) - 1
    assert state_bins(torch.tensor(values, dtype=torch.float64)).tolist() == expected.tolist()


def test_ids_begin_with_bos_and_are_padded_on_the_right() -> None:
    ids, mask = tokenize_prompts(letters, ["go", "stop"], length=8, pad=7)
    assert ids.tolist() == [[2, *letters("go\n"), 7, 7, 7, 7], [2, *letters("stop\n"), 7, 7]]
    assert mask.tolist() == [[True] * 4 + [False] * 4, [True] * 6 + [False] * 2]
    states = [torch.tensor([0.0]), torch.tensor([-1.0, 2.0])]
    ids, mask = tokenize_prompts(letters, ["go", "stop"], states, length=50, pad=0)
    assert [row[:count].tolist() for row, count in zip(ids, mask.sum(1), strict=True)] == [
        [2, *letters("Task: go, State: 128;\nAction: ")],
        [2, *letters("Task: stop, State: 0 255;\nAction: ")],
    ]
    assert not ids[~mask].any()


def test_the_new_line_is_a_text_of_its_own_only_for_openpi() -> None:
    seen: list[str] = []
    for convention in ("openpi", "lerobot"):
        tokenize_prompts(lambda text: seen.append(text) or [5], ["go\n"], length=3, pad=0, convention=convention)
    assert seen == ["go", "\n", "go\n"]


def test_a_prompt_that_is_too_long_is_cut_on_the_right_with_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"instructions\[1\]: its prompt has 6 tokens, the last are cut off"):
        ids, mask = tokenize_prompts(letters, ["go", "stop"], length=5, pad=0)
    assert ids[1].tolist() == [2, *letters("stop")]
    assert mask[1].all()


# The processor


def processor(variant: str, **change: Any) -> Processor:  # noqa: ANN401
    config = replace(preset(f"tiny-{variant}"), text_length=60, vocabulary=256)
    return Processor(config, lambda text: [ord(letter) for letter in text], **change)


def said(inputs: Inputs) -> list[str]:
    rows = [ids[mask].tolist() for ids, mask in zip(inputs.instruction, inputs.attention_mask, strict=True)]
    assert all(row[0] == 2 for row in rows)
    return ["".join(map(chr, row[1:])) for row in rows]


def observed(batch: int) -> list[torch.Tensor | None]:
    draw = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (2, batch, 1, 3, 96, 128), dtype=torch.uint8, generator=draw)
    return [pictures[0], None, pictures[1]]


def test_the_processor_writes_the_state_into_the_prompt_of_pi05_alone() -> None:
    state, tasks = torch.tensor([[0.0, -1.0, 0.5], [1.0, 0.25, -2.0]]), ["go", "take_it "]
    inputs = processor("pi05")(observed(2), state, tasks)
    assert said(inputs) == ["Task: go, State: 128 0 192;\nAction: ", "Task: take it, State: 255 160 -1;\nAction: "]
    assert inputs.state.tolist() == [[*row, 0, 0, 0, 0, 0] for row in state.tolist()]
    assert said(processor("pi0")(observed(2), state, tasks)) == ["go\n", "take it\n"]
    assert said(processor("pi0", convention="lerobot")(observed(2), state, tasks)) == ["go\n", "take_it \n"]
    with pytest.raises(ValueError, match="state: expected that of each sample, as the prompt says it, got None"):
        processor("pi05").text(tasks)


@pytest.mark.parametrize("convention", ["openpi", "lerobot"])
def test_pictures_are_resized_by_the_convention_and_a_missing_camera_is_masked(convention: str) -> None:
    frames = observed(2)
    inputs = processor("pi0", convention=convention)(frames, torch.zeros(2, 3), ["go", "go"])
    assert inputs.view_valid.tolist() == [[True, False, True]] * 2
    for view in (0, 2):
        assert torch.equal(inputs.frames[:, view], resize_with_pad(frames[view], 64, convention=convention))
    other = {"openpi": "lerobot", "lerobot": "openpi"}[convention]
    assert not torch.equal(inputs.frames[:, 0], resize_with_pad(frames[0], 64, convention=other))


def test_transformers_tokenizers_and_plain_functions_give_the_same_ids() -> None:
    def several(texts: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        assert not add_special_tokens
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}

    plain = processor("pi05")
    state = torch.tensor([[0.5]])
    found = Processor(plain.config, several).text(["go"], state)
    assert all(torch.equal(*pair) for pair in zip(found, plain.text(["go"], state), strict=True))


def test_a_batch_of_several_robots_says_the_dimensions_that_each_has() -> None:
    config = processor("pi05").config

    def sample(state: list[float], task: str) -> Sample:
        dims, width = torch.arange(8) < len(state), config.frame_size
        return Sample(
            frames=torch.zeros(3, 1, 3, width, width, dtype=torch.uint8),
            view_valid=torch.ones(3, dtype=torch.bool),
            frame_valid=torch.ones(3, 1, dtype=torch.bool),
            state=torch.tensor([*state, *[0.0] * (8 - len(state))]),
            valid_state_dims=dims,
            actions=torch.zeros(config.chunk, 8),
            valid_steps=torch.ones(config.chunk, dtype=torch.bool),
            valid_dims=dims,
            valid_sample=torch.tensor(data=True),
            instruction=task,
            robot="toy",
        )

    batch = Collator(processor("pi05"))([sample([0.5, -0.5], "go"), sample([0.0, 0.0, 1.0], "stop")])
    assert said(batch.inputs) == ["Task: go, State: 192 64;\nAction: ", "Task: stop, State: 128 128 255;\nAction: "]
