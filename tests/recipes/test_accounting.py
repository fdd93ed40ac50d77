"""Every key, shape and parameter of the released full-size models, without holding a single weight."""

import json
import re
from dataclasses import dataclass
from math import prod
from pathlib import Path

import pytest
import torch

from moteur.recipes import InternVLAA1, preset
from moteur.recipes.checkpoints.keymap import TIED, KeyMap, released_keys, released_name
from moteur.recipes.config import Variant

_3B = "model.qwen3_vl_with_expert."
_2B = "model.internvl_with_expert."

KEYS = {"3B": 1462, "2B": 1459}
OMITTED = {
    "3B": {
        f"{_3B}und_expert.model.language_model.embed_tokens.weight",  # a second name of lm_head.weight
        *(
            f"{_3B}und_expert.model.visual.deepstack_merger_list.{level}.{layer}.{kind}"
            for level in range(3)
            for layer in ("norm", "linear_fc1", "linear_fc2")
            for kind in ("weight", "bias")
        ),
    },
    "2B": {f"{_2B}und_expert.lm_head.weight", "model.imagenet_mean", "model.imagenet_std"},
}
BUFFERS = {"model.imagenet_mean", "model.imagenet_std"}  # constants, not parameters
PARAMETERS = {
    "3B": {
        "total": 3_222_760_208,
        "und": 2_127_532_032,
        "gen": 440_467_456,
        "act": 440_467_456,
        "cosmos": 76_789_472,
    },
    "2B": {
        "total": 1_835_996_688,
        "und": 938_119_296,
        "gen": 357_898_112,
        "act": 357_898_112,
        "cosmos": 76_789_472,
    },
}


@dataclass(frozen=True)
class Accounts:
    variant: Variant
    ours: dict[str, torch.Size]
    released: dict[str, torch.Size]

    @property
    def keys(self) -> KeyMap:
        return released_keys(preset(self.variant))

    @property
    def held(self) -> dict[str, torch.Size]:
        """Shapes of our tensors under their released keys, joined projections apart."""
        shapes = [self.keys.shapes(name, tuple(shape)) for name, shape in self.ours.items()]
        return {key: torch.Size(shape) for parts in shapes for key, shape in parts.items()}


@pytest.fixture(scope="module", params=["3B", "2B"])
def accounts(request: pytest.FixtureRequest, golden: Path) -> Accounts:
    variant = request.param
    with torch.device("meta"):
        model = InternVLAA1(preset(variant), decoder=True)
    assert all(parameter.is_meta for parameter in model.parameters())
    shapes = json.loads((golden / f"released_shapes_{variant.lower()}.json").read_text())
    return Accounts(
        variant,
        {name: tensor.shape for name, tensor in model.state_dict().items()},
        {name: torch.Size(shape) for name, shape in shapes.items()},
    )


def test_every_released_key_is_held_in_its_shape_or_listed_as_omitted(accounts: Accounts) -> None:
    held = accounts.held
    omitted = {name: shape for name, shape in accounts.released.items() if name in OMITTED[accounts.variant]}
    assert held | omitted == accounts.released
    assert held.keys().isdisjoint(omitted)
    assert len(accounts.released) == len(held) + len(omitted) == KEYS[accounts.variant]


def test_each_omission_is_declared_as_tied_or_unused_and_nothing_held_is(accounts: Accounts) -> None:
    declared = {name for name in accounts.released if accounts.keys.unused(name) or name in TIED}
    assert declared == OMITTED[accounts.variant]
    assert all(accounts.released[TIED[name]] == accounts.released[name] for name in declared & TIED.keys())
    assert {TIED[name] for name in declared & TIED.keys()} <= accounts.held.keys()


def test_parameters_held_and_deliberately_unused_add_up_to_the_last_digit(accounts: Accounts) -> None:
    held = accounts.held
    unused = {
        name: accounts.released[name] for name in OMITTED[accounts.variant] if name not in TIED and name not in BUFFERS
    }
    root = {"3B": _3B, "2B": _2B}[accounts.variant]
    parts = {
        "und": rf"{root}und_expert\.",
        "gen": rf"{root}gen_expert\.",
        "act": rf"{root}act_expert\.",
        "cosmos": r"model\.cosmos(_tokenizer)?\._(enc|dec)_model\.",
        "total": "",
    }
    sizes = {name: prod(shape) for name, shape in (held | unused).items()}
    counted = {
        part: sum(size for name, size in sizes.items() if re.match(pattern, name)) for part, pattern in parts.items()
    }
    assert counted == PARAMETERS[accounts.variant]


def test_our_own_parts_count_the_experts_the_same_way(accounts: Accounts) -> None:
    counts = {
        part: sum(prod(shape) for name, shape in accounts.ours.items() if name.startswith(prefixes))
        for part, prefixes in {
            "und": ("mot.experts.und.", "backbone."),
            "gen": ("mot.experts.gen.",),
            "act": ("mot.experts.act.",),
            "cosmos": ("foresight.encoder.", "foresight.decoder."),
        }.items()
    }
    unused = sum(
        prod(accounts.released[name]) for name in OMITTED[accounts.variant] if "und_expert" in name and name not in TIED
    )
    expected = {part: PARAMETERS[accounts.variant][part] for part in counts}
    assert counts | {"und": counts["und"] + unused} == expected


def test_a_name_the_recipe_does_not_have_is_refused() -> None:
    with pytest.raises(KeyError, match=r"backbone\.projector\.norm\.weight"):
        released_name("backbone.projector.norm.weight", "3B")
    with pytest.raises(KeyError, match="value_head"):
        released_name("value_head.weight", "2B")
