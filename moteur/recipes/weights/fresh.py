"""Fresh weights from a seed, without a trace in anybody else's random numbers."""

import hashlib
from collections.abc import Collection

import torch
from torch import Tensor, nn


def initialise(model: nn.Module, names: Collection[str], *, seed: int) -> dict[str, Tensor]:
    """Draw these parameters of a model on the meta device, as its constructors would; on the CPU, in float32.

    Each part has a generator state of its own, made of `seed` and its name: what it draws does not depend on which
    other parts are drawn. The global random state is left as it was.

    Raises:
        ValueError: A parameter that no part can draw alone.
    """
    drawn: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        _visit(model, "", set(names), seed, drawn)
    return drawn


def _visit(module: nn.Module, prefix: str, names: set[str], seed: int, drawn: dict[str, Tensor]) -> None:
    if not any(name.startswith(prefix) for name in names):
        return
    reset = getattr(module, "reset_parameters", None)
    if reset is not None:
        # The global generator, as that is what the initialisers draw from; torch.manual_seed would reseed every device.
        torch.default_generator.manual_seed(_mixed(seed, prefix))
        module.to_empty(device="cpu")
        reset()
        own = {prefix + name: parameter.detach() for name, parameter in module.named_parameters()}
        drawn |= {name: tensor for name, tensor in own.items() if name in names}
        return
    alone = [prefix + name for name, _ in module.named_parameters(recurse=False) if prefix + name in names]
    if alone:
        raise ValueError(f"{', '.join(alone)}: cannot be initialised alone, must come from a file")
    for name, child in module.named_children():
        _visit(child, f"{prefix}{name}.", names, seed, drawn)


def _mixed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "little")
