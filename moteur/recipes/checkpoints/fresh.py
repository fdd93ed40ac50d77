"""Fresh weights from a seed, without a trace in anybody else's random numbers."""

import hashlib
from collections.abc import Callable, Collection, Iterator
from typing import cast

import torch
from torch import Tensor, nn


def initialise(
    model: nn.Module, names: Collection[str], *, seed: int, hold: Callable[[str, Tensor], Tensor]
) -> dict[str, Tensor]:
    """Draw these parameters of a model on the meta device, as its constructors would; on the CPU, in float32.

    Each part has a generator state of its own, made of `seed` and its name: what it draws does not depend on which
    other parts are drawn. The global random state is left as it was, and so is the model: only one part at a time has
    memory.

    Args:
        model: On the meta device.
        names: Of the parameters to draw.
        seed: Decides the numbers.
        hold: Takes the name and the numbers of a parameter and gives back what to keep of them.

    Returns:
        What is kept, by name.

    Raises:
        ValueError: A parameter that no part can draw alone.
    """
    kept: dict[str, Tensor] = {}
    wanted = set(names)
    with torch.random.fork_rng(devices=[]):
        for prefix, part in _parts(model, "", wanted):
            # The global generator, as that is what the initialisers draw from; torch.manual_seed would reseed every
            # device.
            torch.default_generator.manual_seed(_mixed(seed, prefix))
            assert not list(part.buffers())
            part.to_empty(device="cpu")
            cast("Callable[[], None]", part.reset_parameters)()
            for name, parameter in part.named_parameters():
                if prefix + name in wanted:
                    kept[prefix + name] = hold(prefix + name, parameter.detach())
            part.to_empty(device="meta")  # what is not kept is free before the next part is drawn
    return kept


def _parts(module: nn.Module, prefix: str, names: set[str]) -> Iterator[tuple[str, nn.Module]]:
    """The largest modules that can draw themselves, and hold some of these parameters."""
    if not any(name.startswith(prefix) for name in names):
        return
    if hasattr(module, "reset_parameters"):
        yield prefix, module
        return
    alone = [prefix + name for name, _ in module.named_parameters(recurse=False) if prefix + name in names]
    if alone:
        raise ValueError(f"{', '.join(alone)}: cannot be initialised alone, must come from a file")
    for name, child in module.named_children():
        yield from _parts(child, f"{prefix}{name}.", names)


def _mixed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "little")
