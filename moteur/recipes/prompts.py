"""Prompts of π0 and π0.5: an instruction, and with it the state, as text and as token ids."""

import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Words = Callable[[str], Sequence[int]]
"""Token ids of a text, without marks of its beginning and end; the `encode` of a SentencePiece model, for example."""

_BEGINNING = 2  # <bos> in PaliGemma's vocabulary
_BINS = 256


def tokenize_prompts(
    words: Words,
    instructions: Sequence[str],
    states: Sequence[Float[Tensor, " _"]] | None = None,
    *,
    length: int,
    pad: int,
    convention: Literal["openpi", "lerobot"] = "openpi",
) -> tuple[Int[Tensor, "batch text"], Bool[Tensor, "batch text"]]:
    """Token ids of prompts, right-padded, and which of them are no padding.

    A prompt that is too long is cut on the right, as in the public codes, with a warning.

    Args:
        words: PaliGemma's tokenizer, as a function from text to ids.
        instructions: One a sample.
        states: For a prompt with the state, that of each sample: normalised by quantiles, not padded.
        length: Tokens of a prompt, padding included.
        pad: Token of the padding.
        convention: As for `prompt_pieces`.

    Examples:
        >>> letters = lambda text: [ord(letter) for letter in text]
        >>> ids, mask = tokenize_prompts(letters, ["go"], length=6, pad=0)
        >>> ids.tolist(), mask.tolist()
        ([[2, 103, 111, 10, 0, 0]], [[True, True, True, True, False, False]])
    """
    rows: list[list[int]] = []
    for place, instruction in enumerate(instructions):
        pieces = prompt_pieces(instruction, None if states is None else states[place], convention=convention)
        row = [_BEGINNING, *(token for piece in pieces for token in words(piece))]
        if len(row) > length:
            warnings.warn(
                f"instructions[{place}]: its prompt has {len(row)} tokens, the last are cut off", stacklevel=2
            )
        rows.append(row[:length])
    ids = torch.tensor([[*row, *[pad] * (length - len(row))] for row in rows])
    return ids, torch.arange(length) < torch.tensor([[len(row)] for row in rows])


def prompt_pieces(
    instruction: str, state: Float[Tensor, " dim"] | None = None, *, convention: Literal["openpi", "lerobot"] = "openpi"
) -> tuple[str, ...]:
    r"""A prompt as text, in pieces that are tokenised one by one.

    Args:
        instruction: What to do. Without white space around it, and with spaces for underlines and new lines, before
            anything else is done; but not for `lerobot` without a state.
        state: State in the prompt, normalised by quantiles, not padded. None: without, as for π0.
        convention: Whose prompt it is. Without a state, `openpi` tokenises the new line at the end by itself, and
            `lerobot` together with the text.

    Examples:
        >>> prompt_pieces("pick_up the cup")
        ('pick up the cup', '\n')
        >>> prompt_pieces("pick_up the cup", torch.tensor([-1.0, 0.0, 0.5]))
        ('Task: pick up the cup, State: 0 128 192;\nAction: ',)
    """
    if state is None and convention == "lerobot":
        return (instruction if instruction.endswith("\n") else f"{instruction}\n",)
    cleaned = instruction.strip().replace("_", " ").replace("\n", " ")
    if state is None:
        return cleaned, "\n"
    return (f"Task: {cleaned}, State: {' '.join(map(str, state_bins(state).tolist()))};\nAction: ",)


def state_bins(state: Float[Tensor, "*batch dim"]) -> Int[Tensor, "*batch dim"]:
    """Bin of each number of a state: 256 of them over [-1, 1), closed below; 255 above, and -1 below.

    Examples:
        >>> state_bins(torch.tensor([-1.1, -1.0, 0.0, 0.9, 2.0]))
        tensor([ -1,   0, 128, 243, 255])
    """
    edges = torch.arange(_BINS, dtype=torch.float64, device=state.device) * (2 / _BINS) - 1
    return torch.bucketize(state.double(), edges, right=True) - 1
