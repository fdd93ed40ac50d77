"""The model card of a saved model."""

from huggingface_hub import ModelCard

from moteur.recipes.config import InternVLAA1Config

_BACKBONES = {
    "3B": "Qwen3-VL-2B (`Qwen/Qwen3-VL-2B-Instruct`)",
    "2B": "InternVL3-1B (`OpenGVLab/InternVL3-1B-hf`)",
}
UNSTATED = (
    "not stated by whoever saved this. Weights that derive from others carry the others' conditions: look at the "
    "licence of each file this model started from"
)


def model_card(config: InternVLAA1Config, *, weights_licence: str | None) -> ModelCard:
    """A card that names the licences of code and weights separately.

    Args:
        config: Of the model.
        weights_licence: The licence of these weights, if it is known.
    """
    foresight = "with foresight" if config.gen is not None else "without foresight"
    return ModelCard(f"""---
library_name: moteur
pipeline_tag: robotics
license: other
license_name: code-and-weights-differ
tags:
- robotics
- vision-language-action
- internvla-a1
---

# InternVLA-A1, {config.variant} variant

A vision-language-action policy {foresight}: {config.views} cameras and an instruction in,
chunks of {config.chunk} actions out.

```text
from moteur.recipes import InternVLAA1

model = InternVLAA1.from_pretrained("this repository", revision="a commit")
```

## Licences

| part | licence |
|---|---|
| code that runs it (moteur) | Apache-2.0 |
| these weights | {weights_licence or UNSTATED} |

The understanding expert has the shape of {_BACKBONES[config.variant]}, the image tokenizer that of
`nvidia/Cosmos-Tokenizer-CI8x8`; each was published under a licence of its own, and so were the InternVLA-A1 weights.

## Files

`config.json`: every size and constant. `model.safetensors`: the weights, under moteur's names. `stats.json`, if there
is one: what the state and the actions of each robot looked like in training.
""")
