"""Building a model without memory for its weights."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from moteur.recipes.config import InternVLAA1Config

_MEMORY = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}


class WeightlessMode(TorchFunctionMode):
    """Puts new memory on the meta device, and computes constants for real.

    Under `torch.device("meta")` a module's computed buffers, such as the rotary frequencies of a vision tower, would be
    on the meta device too. They are in no file, so nothing could bring them back.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 -- whatever the function returns
        """Call the function, on the meta device if it asks for memory and names no device."""
        del types
        options = dict(kwargs or {})
        if func in _MEMORY and options.get("device") is None:
            options["device"] = "meta"
        return func(*args, **options)


def build_weightless(
    make: Callable[..., torch.nn.Module], config: InternVLAA1Config, *, decoder: bool
) -> torch.nn.Module:
    """The model with every parameter on the meta device, and every buffer that is not saved computed."""
    with WeightlessMode():
        model = make(config, decoder=decoder)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    return model
