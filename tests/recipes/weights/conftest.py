"""Models and checkpoint folders at toy size."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor
from toy_checkpoints import STATISTICS, released_config, released_tensors, write_tensors
from toy_model import randomised, toy_config, toy_config_2b

from moteur.recipes.config import Variant
from moteur.recipes.internvla_a1 import InternVLAA1


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
