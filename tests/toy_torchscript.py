"""TorchScript files without a tokenizer's code."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn


class Tree(nn.Module):
    """A module with given tensors under given names."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        children: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            first, _, rest = name.partition(".")
            if rest:
                children.setdefault(first, {})[rest] = tensor
            else:
                self.register_buffer(first, tensor)
        for name, inside in children.items():
            self.add_module(name, Tree(inside))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def save_torchscript(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and its files are what there is
        torch.jit.save(torch.jit.trace(Tree(tensors), torch.zeros(1)), path)
