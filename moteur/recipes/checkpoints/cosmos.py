"""The Cosmos tokenizer from a place of its own, when a checkpoint does not hold it."""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from moteur.recipes.checkpoints.files import Stored
from moteur.recipes.checkpoints.layouts import Layout, is_cosmos
from moteur.recipes.checkpoints.source import Place
from moteur.tokenizers import CosmosDecoder, CosmosEncoder, load_weights


@dataclass(frozen=True)
class Cosmos:
    """Which halves of the tokenizer come from elsewhere.

    Attributes:
        source: Where they are.
        halves: Prefix of our names, and the module on the meta device.
    """

    source: Place | None
    halves: dict[str, CosmosEncoder | CosmosDecoder]

    @classmethod
    def plan(cls, source: Place | None, model: nn.Module, files: dict[str, Stored], layout: Layout) -> "Cosmos":
        """The halves that the model has and the files do not.

        Raises:
            ValueError: A source is given, and the model needs nothing from it.
        """
        halves: dict[str, CosmosEncoder | CosmosDecoder] = {
            f"{name}.": module
            for name, module in model.named_modules()
            if isinstance(module, CosmosEncoder | CosmosDecoder)
        }
        if source is None:
            return cls(None, {})
        absent = {
            prefix: module
            for prefix, module in halves.items()
            if not any(_name(layout, prefix + name) in files for name, _ in module.named_parameters())
        }
        if not absent:
            raise ValueError(
                f"cosmos: expected None, the model needs nothing that is not in its own file; got {source}"
            )
        return cls(source, absent)

    @property
    def names(self) -> list[str]:
        """Our names of the tensors that come from elsewhere."""
        return [prefix + name for prefix, module in self.halves.items() for name, _ in module.named_parameters()]

    def read(self, device: torch.device, dtype: torch.dtype | str | None, computing: torch.dtype) -> dict[str, Tensor]:
        """Those tensors, in the given dtype or the one that the model computes in.

        Raises:
            ValueError: The source does not fit; see `moteur.tokenizers.load_weights`.
        """
        wanted = dtype if isinstance(dtype, torch.dtype) else torch.bfloat16 if dtype else computing
        state: dict[str, Tensor] = {}
        for prefix, module in self.halves.items():
            assert self.source is not None
            assert is_cosmos(prefix)
            empty = module.to(wanted).to_empty(device=device)
            load_weights(empty, self.source.source, revision=self.source.revision, **asdict(self.source.hub))
            state |= {prefix + name: parameter for name, parameter in module.named_parameters()}
        return state


def _name(layout: Layout, name: str) -> str | None:
    try:
        return layout.theirs(name)
    except KeyError:
        return None
