"""Models and checkpoint folders at toy size."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy_backbones import CONFIGS, image_processor, internvl, qwen3_vl
from toy_checkpoints import STATISTICS, released_config, released_tensors, write_tensors
from toy_model import randomised, toy_config, toy_config_2b

from moteur.recipes.config import Variant
from moteur.recipes.internvla_a1 import InternVLAA1
from moteur.tokenizers import CosmosEncoder, save_weights


@pytest.fixture(scope="session")
def models() -> dict[Variant, InternVLAA1]:
    return {"3B": randomised(toy_config(), decoder=True), "2B": randomised(toy_config_2b(), decoder=True)}


@pytest.fixture(params=["3B", "2B"])
def any_model(request: pytest.FixtureRequest, models: dict[Variant, InternVLAA1]) -> InternVLAA1:
    return models[request.param]


@pytest.fixture
def model(models: dict[Variant, InternVLAA1]) -> InternVLAA1:
    return models["3B"]


@pytest.fixture
def released(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder in the released layout, whole or in shards."""

    def write(
        model: InternVLAA1,
        *,
        tensors: dict[str, Tensor] | None = None,
        shards: int = 1,
        name: str = "released",
        **changes: object,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        tensors = released_tensors(model) if tensors is None else tensors
        (folder / "config.json").write_text(json.dumps(released_config(model.config, **changes)))
        (folder / "stats.json").write_text(json.dumps(STATISTICS))
        write_tensors(folder, tensors, shards=shards)
        return folder

    return write


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Backbones as transformers saves them, and a tokenizer."""
    torch.manual_seed(0)
    found = {name: tmp_path_factory.mktemp(name) for name in ("3B", "2B", "sharded", "cosmos")}
    qwen = qwen3_vl()
    qwen.save_pretrained(found["3B"])
    qwen.save_pretrained(found["sharded"], max_shard_size="20KB")
    internvl().save_pretrained(found["2B"])
    for name, variant in {"3B": "3B", "sharded": "3B", "2B": "2B"}.items():
        (found[name] / "preprocessor_config.json").write_text(json.dumps(image_processor(variant)))
    encoder = CosmosEncoder(CONFIGS["3B"].cosmos)
    save_weights(found["cosmos"] / "cosmos.safetensors", encoder=encoder)
    return found


@pytest.fixture
def start(folders: dict[str, Path]) -> Callable[..., InternVLAA1]:
    def load(source: str | Path = "3B", variant: Variant = "3B", **options: object) -> InternVLAA1:
        given = {"config": CONFIGS[variant], "seed": 0, "cosmos": folders["cosmos"], **options}
        return InternVLAA1.from_backbone(folders.get(str(source), Path(source)), **given)

    return load
