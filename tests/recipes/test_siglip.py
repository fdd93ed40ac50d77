"""The SigLIP tower beside recorded numbers and beside that of `transformers`."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import SiglipVisionModel

from moteur.recipes.backbones.siglip import PaliGemma, SigLIP

PALIGEMMA = "paligemma_with_expert.paligemma."
LAYER = {  # ours, and the parts of theirs whose rows it joins
    "norm1": ["layer_norm1"],
    "attn.qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attn.proj": ["self_attn.out_proj"],
    "norm2": ["layer_norm2"],
    "mlp.linear_fc1": ["mlp.fc1"],
    "mlp.linear_fc2": ["mlp.fc2"],
}
OTHERS = {
    "patches": "embeddings.patch_embedding",
    "positions": "embeddings.position_embedding",
    "norm": "post_layernorm",
}


def tower_state(state: dict[str, Tensor], ours: SigLIP, prefix: str) -> dict[str, Tensor]:
    """Weights of their tower by our names."""
    held = {}
    for name in ours.state_dict():
        part, kind = name.rsplit(".", 1)
        if part in OTHERS:
            held[name] = state[f"{prefix}{OTHERS[part]}.{kind}"]
        else:
            _, number, part = part.split(".", 2)
            held[name] = torch.cat(
                [state[f"{prefix}encoder.layers.{number}.{theirs}.{kind}"] for theirs in LAYER[part]]
            )
    return held


@pytest.fixture(params=["pi0", "pi05"])
def folder(golden: Path, request: pytest.FixtureRequest) -> Path:
    return golden / request.param


@pytest.fixture
def backbone(folder: Path) -> PaliGemma:
    dims = json.loads((folder / "dims.json").read_text())
    vision = dims["vision"]
    tower = SigLIP(
        dim=vision["hidden"],
        depth=vision["depth"],
        heads=vision["heads"],
        mlp_dim=vision["mlp"],
        patch=vision["patch"],
        side=vision["image"],
        norm_eps=1e-6,
    )
    stored = load_file(folder / "model.safetensors")
    state = {key.removeprefix(f"model.{PALIGEMMA}"): value for key, value in stored.items()}
    tower.load_state_dict(tower_state(state, tower, "model.vision_tower.vision_model."))
    model = PaliGemma(tower, dim=dims["vlm_dim"], vocabulary=dims["vocab"])
    for kind in ("weight", "bias"):
        model.projector.register_parameter(kind, nn.Parameter(state[f"model.multi_modal_projector.linear.{kind}"]))
    return model


@pytest.mark.parametrize("case", ["all_cameras", "dropped_camera"])
def test_image_tokens_equal_the_recorded_ones(
    folder: Path, backbone: PaliGemma, case: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    recorded = load_file(folder / f"{case}.safetensors", device=str(device))
    with torch.no_grad():
        found = backbone.to(device)((recorded["in.images"] + 1) / 2)
    there = recorded["in.img_masks"]
    assert there.all() == (case == "all_cameras")
    torch.testing.assert_close(found[there], recorded["train.image_features"][there], rtol=0, atol=1e-5)


SIZES = [
    {"dim": 24, "depth": 2, "heads": 3, "mlp_dim": 40, "patch": 14, "side": 56},
    {"dim": 32, "depth": 3, "heads": 4, "mlp_dim": 20, "patch": 4, "side": 12},
    {"dim": 18, "depth": 1, "heads": 1, "mlp_dim": 50, "patch": 5, "side": 5},
]


def their_tower(sizes: dict[str, int], norm_eps: float) -> nn.Module:
    """The tower of `transformers` without a pooling head, its weights large enough for each to matter."""
    torch.manual_seed(3)
    theirs = SiglipVisionModel(
        SiglipVisionModel.config_class(
            hidden_size=sizes["dim"],
            num_hidden_layers=sizes["depth"],
            num_attention_heads=sizes["heads"],
            intermediate_size=sizes["mlp_dim"],
            patch_size=sizes["patch"],
            image_size=sizes["side"],
            layer_norm_eps=norm_eps,
            hidden_act="gelu_pytorch_tanh",
            vision_use_head=False,
        )
    )
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2)
    return theirs.double().eval()


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("norm_eps", [1e-6, 1e-2])
def test_features_and_gradients_are_those_of_transformers(sizes: dict[str, int], norm_eps: float) -> None:
    theirs, ours = their_tower(sizes, norm_eps), SigLIP(**sizes, norm_eps=norm_eps).double()
    state = {name.removeprefix("vision_model."): value for name, value in theirs.state_dict().items()}
    ours.load_state_dict(tower_state(state, ours, ""))
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, sizes["side"], sizes["side"], dtype=torch.float64, generator=draw) * 2 - 1
    found, expected = ours(images), theirs(images).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    direction = torch.randn(found.shape, dtype=torch.float64, generator=draw)
    for output in (found, expected):
        (output * direction).sum().backward()
    gradients = {name.removeprefix("vision_model."): value.grad for name, value in theirs.named_parameters()}
    for name, value in tower_state(gradients, ours, "").items():
        torch.testing.assert_close(ours.get_parameter(name).grad, value, rtol=1e-11, atol=1e-11)


def test_the_released_tower_and_projector_have_as_many_parameters_as_recorded(golden: Path) -> None:
    parts = json.loads((golden / "released_shapes_pi0.json").read_text())["parts"]
    with torch.device("meta"):
        tower = SigLIP(dim=1152, depth=27, heads=16, mlp_dim=4304, patch=14, side=224, norm_eps=1e-6)
        model = PaliGemma(tower, dim=2048, vocabulary=257_152)
    counts = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
    assert counts == {"text_embedding": 526_647_296, "vision": 412_442_352, "projector": 2_361_344}
    assert {412_442_352, 2_361_344} <= set(parts.values())


def test_fresh_weights_have_the_spread_of_the_release_and_a_half_precision_tower_may_keep_wide_embeddings() -> None:
    torch.manual_seed(0)
    tower = SigLIP(dim=64, depth=2, heads=4, mlp_dim=128, patch=8, side=32, norm_eps=1e-6)
    for name, parameter in tower.state_dict().items():
        if parameter.ndim > 1:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
        else:
            assert parameter.eq(float("norm" in name and name.endswith("weight"))).all(), name
    model = PaliGemma(tower, dim=16, vocabulary=5)
    frames = torch.rand(2, 2, 3, 32, 32)
    exact = model(frames)
    model.to(torch.bfloat16)
    tower.patches.float()
    tower.positions.float()
    half = model(frames)
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).norm() < 0.03 * exact.norm()
