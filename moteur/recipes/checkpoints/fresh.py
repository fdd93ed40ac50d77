"""Models on the meta device, and seeded initialisation that leaves the global random state unchanged."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from moteur.recipes.checkpoints.keymap import Config

Model = TypeVar("Model", bound=nn.Module)

_MEMORY = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}


class WeightlessMode(TorchFunctionMode):
    """Allocates new tensors on the meta device, and computes constants for real.

    Under `torch.device("meta")` a module's computed buffers, such as the rotary frequencies of a vision tower, would be
    on the meta device too, and no file could bring them back.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        _types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  # whatever the function returns
        """Call the function, on the meta device if it allocates and no device is given."""
        options = dict(kwargs or {})
        if func in _MEMORY and options.get("device") is None:
            options["device"] = "meta"
        return func(*args, **options)


def build_weightless(kind: Callable[..., Model], config: Config, *, decoder: bool) -> Model:
    """Build a model with its parameters on the meta device and its computed buffers in memory.

    Called is `kind(config)`, or `kind(config, decoder=True)`.

    Raises:
        ValueError: A parameter would have more elements than PyTorch can count.
    """
    try:
        with WeightlessMode():
            model = kind(config, decoder=True) if decoder else kind(config)
    except RuntimeError as error:
        raise ValueError(f"config: expected sizes that tensors can have, got others ({error})") from error
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    return model


def initialise(
    model: nn.Module, names: Collection[str], *, seed: int, hold: Callable[[str, Tensor], Tensor]
) -> dict[str, Tensor]:
    """Draw parameters of a model on the meta device as its constructors would, on the CPU in float32.

    Each part has a generator state made of `seed` and its name, so what it draws does not depend on which other parts
    are drawn. The global random state stays as it was, and so does the model: one part at a time has memory.

    `hold` is called with name and values of each of these parameters; what it returns is kept, and returned by name.

    Raises:
        ValueError: A parameter belongs to no module that can draw it.
    """
    kept: dict[str, Tensor] = {}
    wanted = set(names)
    with torch.random.fork_rng(devices=[]):
        for prefix, part in _parts(model, "", wanted):
            digest = hashlib.sha256(f"{seed}/{prefix}".encode()).digest()
            # The initialisers draw from the global generator. torch.manual_seed would reseed every device.
            torch.default_generator.manual_seed(int.from_bytes(digest[:7], "little"))
            assert not list(part.buffers())
            part.to_empty(device="cpu")
            cast("Callable[[], None]", part.reset_parameters)()
            for name, parameter in part.named_parameters():
                if prefix + name in wanted:
                    kept[prefix + name] = hold(prefix + name, parameter.detach())
            part.to_empty(device="meta")  # frees the memory before the next part is drawn
    return kept


def _parts(module: nn.Module, prefix: str, names: set[str]) -> Iterator[tuple[str, nn.Module]]:
    """The largest modules that can draw themselves, and hold some of these parameters."""
    if not any(name.startswith(prefix) for name in names):
        return
    if hasattr(module, "reset_parameters"):
        yield prefix, module
        return
    if alone := [prefix + name for name, _ in module.named_parameters(recurse=False) if prefix + name in names]:
        raise ValueError(f"{', '.join(alone)}: cannot be initialised alone, must come from a file")
    for name, child in module.named_children():
        yield from _parts(child, f"{prefix}{name}.", names)
