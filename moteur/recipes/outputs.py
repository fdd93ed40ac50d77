"""What the model hands back: losses, a joint pass, an imagined future."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from moteur.recipes.backbones import Stream
from moteur.tokenizers import Grid


@dataclass(frozen=True)
class Losses:
    """What training minimises: `total` = `action` + λ·`foresight`, each a scalar."""

    total: Float[Tensor, ""]
    action: Float[Tensor, ""]
    foresight: Float[Tensor, ""]


@dataclass(frozen=True)
class Joint:
    """One joint pass: what went into the experts, and what came out of their final norms."""

    streams: Mapping[str, Stream]
    grid: Grid | None
    hidden: Mapping[str, Tensor]


@dataclass(frozen=True)
class Imagined:
    """The predicted frame of t+15: its latents, and its images in [0, 1] when they were asked for."""

    latents: Float[Tensor, "batch view channel rows columns"]
    images: Float[Tensor, "batch view 3 height width"] | None
