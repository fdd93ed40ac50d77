"""Golden weights for the tokenizer tests, and exact float32 on devices that would otherwise round to TF32."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from moteur.tokenizers import CosmosDecoder, CosmosEncoder, CosmosSize, ForesightHead

TINY = replace(CosmosSize.ci8x8(), channels=32, multipliers=(1, 1, 1), residual_blocks=1)
GOLDEN_SIZES = {"cosmos_ci8x8": replace(TINY, multipliers=(1, 2, 2)), "internvla_a1_3b": TINY}
HEAD_NAMES = {
    "project_in": "cosmos_in_proj",
    "downsample": "downsample_conv",
    "upsample": "upsample_conv",
    "norm": "cosmos_out_layer_norm",
    "project_out": "cosmos_out_proj",
}


@pytest.fixture(autouse=True)
def _full_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="session")
def golden_tensors(golden: Path) -> Callable[[str], dict[str, Tensor]]:
    """Read one golden file by its path inside the folder."""
    return lambda name: load_file(golden / f"{name}.safetensors")


def take(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose key starts with the prefix, under the rest of the key."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


@pytest.fixture
def encoder(golden_tensors: Callable[[str], dict[str, Tensor]]) -> CosmosEncoder:
    """Encoder of the Cosmos golden file, float32 on the CPU."""
    encoder = CosmosEncoder(GOLDEN_SIZES["cosmos_ci8x8"])
    encoder.load_state_dict(take(golden_tensors("cosmos_ci8x8/weights"), "encoder.jit/"))
    return encoder


@pytest.fixture
def decoder(golden_tensors: Callable[[str], dict[str, Tensor]]) -> CosmosDecoder:
    """Decoder of the Cosmos golden file, float32 on the CPU."""
    decoder = CosmosDecoder(GOLDEN_SIZES["cosmos_ci8x8"])
    decoder.load_state_dict(take(golden_tensors("cosmos_ci8x8/weights"), "decoder.jit/"))
    return decoder


@pytest.fixture
def toy_encoder(golden_tensors: Callable[[str], dict[str, Tensor]]) -> CosmosEncoder:
    """Encoder inside the InternVLA-A1 golden file, float32 on the CPU."""
    encoder = CosmosEncoder(GOLDEN_SIZES["internvla_a1_3b"])
    encoder.load_state_dict(take(golden_tensors("internvla_a1_3b/model"), "model.cosmos._enc_model."))
    return encoder


@pytest.fixture
def toy_decoder(golden_tensors: Callable[[str], dict[str, Tensor]]) -> CosmosDecoder:
    """Decoder inside the InternVLA-A1 golden file, float32 on the CPU."""
    decoder = CosmosDecoder(GOLDEN_SIZES["internvla_a1_3b"])
    decoder.load_state_dict(take(golden_tensors("internvla_a1_3b/model"), "model.cosmos._dec_model."))
    return decoder


@pytest.fixture
def head(golden_tensors: Callable[[str], dict[str, Tensor]]) -> ForesightHead:
    """Foresight head of the InternVLA-A1 golden file, float32 on the CPU."""
    weights = golden_tensors("internvla_a1_3b/model")
    head = ForesightHead(dim=48)
    head.load_state_dict(
        {
            f"{ours}.{kind}": weights[f"model.{theirs}.{kind}"]
            for ours, theirs in HEAD_NAMES.items()
            for kind in ("weight", "bias")
        }
    )
    return head
