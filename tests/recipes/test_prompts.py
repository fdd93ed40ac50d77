"""Prompts of π0 and π0.5 beside recorded ones and beside numpy's bins."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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
