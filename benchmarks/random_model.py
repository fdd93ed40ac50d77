"""A model of any size with cheap random weights, and an observation for it: what a speed figure needs of both."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from moteur.recipes import Inputs, InternVLAA1, InternVLAA1Config, Processor, preset
from moteur.recipes.checkpoints.fresh import build_weightless
from moteur.recipes.checkpoints.precision import released_dtype

_POOL = 2**22 - 3  # normal numbers that weights are cut from; odd, so that rows of a weight differ


def sized(name: str, depth: int | None) -> InternVLAA1Config:
    """A preset, its experts and its vision tower cut to `depth` layers if given."""
    config = preset(name)
    if depth is None:
        return config
    vision = config.vision
    vision = (
        replace(vision, depth=depth, deepstack=()) if hasattr(vision, "deepstack") else replace(vision, depth=depth)
    )
    return replace(config, depth=depth, vision=vision)


def random_model(config: InternVLAA1Config, *, dtype: torch.dtype, device: torch.device) -> InternVLAA1:
    """A model whose weights keep activations near one: maps by 1/√fan-in, norm gains around 1, small biases.

    In bfloat16 it holds what the released runs hold in float32 in float32. Drawing three billion numbers takes
    minutes; these are cut from one pool of four million. What acting never reads stays zero, which takes no memory
    until it is touched: words that `FixedWords` does not say, and the largest map of the foresight read-out.
    """
    model = build_weightless(InternVLAA1, config, decoder=False)
    pool = torch.randn(_POOL, generator=torch.Generator().manual_seed(0))
    weights: dict[str, Tensor] = {}
    for index, (name, parameter) in enumerate(model.named_parameters()):
        held = released_dtype(name, config) if dtype == torch.bfloat16 else dtype
        if name.startswith("foresight.head.upsample."):
            values = torch.zeros(parameter.shape)
        elif name == "backbone.text_embedding.weight":
            values, said = torch.zeros(parameter.shape), _said(config)
            values[said] = _cut(pool, 7919 * index, torch.Size([len(said), config.und.dim]), name)
        else:
            values = _cut(pool, 7919 * index, parameter.shape, name)
        weights[name] = values.to(device, held)
    model.load_state_dict(weights, strict=True, assign=True)
    assert isinstance(model, InternVLAA1)
    return model.to(device).eval().requires_grad_(requires_grad=False)


def _said(config: InternVLAA1Config) -> list[int]:
    """Every token id that an observation of this benchmark holds."""
    ids = config.token_ids
    marks = {mark for mark in (ids.image, ids.vision_start, ids.vision_end, ids.pad) if mark is not None}
    return sorted(marks | set(FixedWords(config).words))


def _cut(pool: Tensor, start: int, shape: torch.Size, name: str) -> Tensor:
    """Numbers of the pool, from `start` on and around again, scaled for what they are."""
    values, size = torch.empty(shape), math.prod(shape)
    fan_in = size / shape[0] if len(shape) > 1 else 2500.0  # of a bias: standard deviation 0.02
    gain = len(shape) == 1 and not name.endswith("bias")
    source, flat, done = pool * (0.1 if gain else fan_in**-0.5), values.view(-1), 0
    position = start % _POOL
    while done < size:
        count = min(size - done, _POOL - position)
        flat[done : done + count] = source[position : position + count]
        done, position = done + count, 0
    return values.add_(1) if gain else values


def observation(config: InternVLAA1Config, *, batch: int) -> tuple[list[Tensor], Tensor, list[str]]:
    """Camera pictures of 480×640, uint8, of both times; a state of at most 14 joints; instructions."""
    draw = torch.Generator().manual_seed(1)
    frames = [
        torch.randint(0, 256, (batch, 2, 3, 480, 640), generator=draw, dtype=torch.uint8) for _ in range(config.views)
    ]
    state = torch.randn(batch, min(14, config.state_dim), generator=draw)
    return frames, state, ["put the red block into the left bin"] * batch


class FixedWords:
    """A stand-in for the text tokenizer: always a third of the slot, 16 tokens of 48 at the released sizes.

    The real one is a file that would have to be downloaded; what it costs is microseconds, and not in any figure.
    """

    def __init__(self, config: InternVLAA1Config) -> None:
        self.words = list(range(5, 5 + config.text_length // 3))

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        """The same tokens for every text."""
        del add_special_tokens
        return {"input_ids": [self.words for _ in text]}


def processed(config: InternVLAA1Config, *, batch: int) -> Inputs:
    """A processed batch: all views there, every instruction of the same length."""
    return Processor(config, FixedWords(config))(*observation(config, batch=batch))
