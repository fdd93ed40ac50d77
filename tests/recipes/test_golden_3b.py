"""The 3B recipe against numbers recorded from the reference implementation."""

import copy
import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moteur.recipes.checkpoints import use_released_precision
from moteur.recipes.checkpoints.keymap import TIED, released_keys, released_tensors
from moteur.recipes.config import CosmosSize, ExpertSize, InternVLAA1Config, Qwen3VLVision, TimeSampling, TokenIds
from moteur.recipes.inputs import Inputs, Targets
from moteur.recipes.internvla_a1 import InternVLAA1
from moteur.runtime import InferenceSession, Kernel

CASES = ["all_cameras", "dropped_camera"]
TOLERANCE = 5e-5  # float32, toy width: what the reference itself moves by when its sums are reordered, with room


def config_of(dims: dict) -> InternVLAA1Config:
    text, expert, vision = dims["text"], dims["expert"], dims["vision"]
    size = ExpertSize(dim=expert["hidden_size"], mlp_dim=expert["intermediate_size"])
    cosmos = dims["cosmos"]
    return InternVLAA1Config(
        depth=text["num_hidden_layers"],
        heads=text["num_attention_heads"],
        kv_heads=text["num_key_value_heads"],
        head_dim=text["head_dim"],
        und=ExpertSize(dim=text["hidden_size"], mlp_dim=text["intermediate_size"]),
        gen=size,
        act=size,
        norm_eps=1e-6,
        qk_norm=True,
        qkv_bias=False,
        rope_base=text["rope_theta"],
        rope_sections=tuple(text["mrope_section"]),
        vocabulary=text["vocab_size"],
        text_scaling=False,
        token_ids=TokenIds(
            image=dims["image_token_id"],
            vision_start=dims["vision_start_token_id"],
            vision_end=dims["vision_end_token_id"],
            pad=dims["pad_token_id"],
        ),
        vision=Qwen3VLVision(
            depth=vision["depth"],
            dim=vision["hidden_size"],
            mlp_dim=vision["intermediate_size"],
            heads=vision["num_heads"],
            patch=vision["patch_size"],
            patch_frames=vision["temporal_patch_size"],
            merge=vision["spatial_merge_size"],
            positions=vision["num_position_embeddings"],
            rope_base=10_000.0,
            deepstack=tuple(vision["deepstack_visual_indexes"]),
            min_pixels=dims["image_size"] ** 2,
            max_pixels=dims["image_size"] ** 2,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        cosmos=CosmosSize(
            channels=cosmos["channels"],
            multipliers=tuple(cosmos["channels_mult"]),
            residual_blocks=cosmos["num_res_blocks"],
            patch=4,
            downsamplings=1,
            z_channels=cosmos["z_channels"],
            groups=32,
            eps=1e-6,
            latent_channels=cosmos["latent_channels"],
        ),
        views=3,
        frame_size=dims["image_size"],
        text_length=dims["tokenizer_max_length"],
        history=15,
        foresight_size=256,
        foresight_cell=8,
        foresight_eps=1e-5,
        chunk=dims["chunk_size"],
        state_dim=dims["max_state_dim"],
        action_dim=dims["max_action_dim"],
        min_period=4e-3,
        max_period=4.0,
        steps=dims["num_inference_steps"],
        time=TimeSampling(),
        foresight_weight=0.01,
        action_reduction="released",
    )


@pytest.fixture(scope="module")
def loaded(golden: Path) -> InternVLAA1:
    folder = golden / "internvla_a1_3b"
    model = InternVLAA1(config_of(json.loads((folder / "dims.json").read_text())), decoder=True)
    stored = load_file(folder / "model.safetensors")
    keys = released_keys(model.config)
    model.load_state_dict(
        {name: torch.cat([stored.pop(key) for key in keys.sources(name)]) for name in model.state_dict()}
    )
    assert all(keys.unused(name) or name in TIED for name in stored)
    return model.eval()


@pytest.fixture
def model(loaded: InternVLAA1, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> InternVLAA1:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # convolutions too in float32
    return loaded if device.type == "cpu" else copy.deepcopy(loaded).to(device)


def case_of(golden: Path, name: str, device: torch.device) -> tuple[dict[str, torch.Tensor], Inputs, Targets]:
    case = load_file(golden / "internvla_a1_3b" / f"{name}.safetensors", device=str(device))
    grids = {tuple(grid) for grid in case["in.image_grid_thw"][..., 1:].flatten(0, 1).tolist()}
    assert len(grids) == 1
    inputs = Inputs(
        input_ids=case["in.input_ids"],
        und_valid=case["in.attention_mask"].bool(),
        pixel_values=case["in.pixel_values"],
        image_grid=tuple(grids) * 3,
        view_valid=case["in.img_masks"],
        state=case["in.state"],
        frames=case["in.images"][:, :, :2],
    )
    return case, inputs, Targets(actions=case["in.actions"], future_frames=case["in.images"][:, :, 2])


def close(actual: torch.Tensor, expected: torch.Tensor, where: torch.Tensor | None = None) -> None:
    difference = (actual - expected).abs()
    if where is not None:
        difference = difference[where]
    assert difference.max() <= TOLERANCE, f"largest difference {difference.max():.2e}"


@pytest.mark.parametrize("name", CASES)
def test_every_quantity_of_the_joint_pass_equals_the_reference(
    model: InternVLAA1, golden: Path, device: torch.device, name: str
) -> None:
    case, inputs, targets = case_of(golden, name, device)
    noise, tau = case["in.noise"], 1 - case["in.time"]
    noisy = (1 - tau[:, None, None]) * noise + tau[:, None, None] * targets.actions
    with torch.no_grad():
        joint = model.joint(inputs, noisy, tau)
        losses = model.loss(inputs, targets, noise=noise, tau=tau)
        predicted = model.foresight.head.predict(joint.hidden["gen"], joint.grid)
        latents = model.foresight.encode(case["in.images"])
        velocity = model.action.velocity(joint.hidden["act"][:, 1:])
    views, und, gen = inputs.view_valid, inputs.und_valid, joint.streams["gen"].valid
    positions = torch.cat([stream.positions for stream in joint.streams.values()], dim=-1)
    valid = torch.cat([stream.valid for stream in joint.streams.values()], dim=-1)
    assert torch.equal(positions[:, valid], case["train.position_ids"][:, valid])
    close(joint.streams["und"].tokens, case["train.und_in"], und)
    close(latents, case["cosmos.latent"], views)
    close(joint.streams["gen"].tokens, case["train.gen_in"], gen)
    close(joint.streams["act"].tokens, case["train.act_in"])
    close(joint.hidden["gen"], case["train.gen_out"], gen)
    close(joint.hidden["act"], case["train.act_out"])
    close(predicted, case["train.pred_latent"], views)
    close((velocity - (targets.actions - noise)) ** 2, case["train.loss_action_elementwise"])
    close(losses.foresight, case["train.loss_gen"][0])
    close(losses.action, case["train.loss_action_elementwise"].mean())
    close(losses.total, case["train.loss"][0])


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_the_reference(model: InternVLAA1, golden: Path, device: torch.device, name: str) -> None:
    case, inputs, targets = case_of(golden, name, device)
    model.zero_grad()
    model.loss(inputs, targets, noise=case["in.noise"], tau=1 - case["in.time"]).total.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    gradients = {
        name.removeprefix("model."): gradient for name, gradient in released_tensors(found, model.config).items()
    }
    recorded = {key.removeprefix("grad."): value for key, value in case.items() if key.startswith("grad.")}
    assert recorded
    for key, expected in recorded.items():
        assert (gradients[key] - expected).norm() <= TOLERANCE * expected.norm(), key
    total = torch.stack([gradient.norm() for gradient in gradients.values() if gradient is not None]).norm()
    torch.testing.assert_close(total, case["train.grad_norm_total"][0], rtol=TOLERANCE, atol=0)
    model.zero_grad()


def test_every_quantity_of_cached_inference_equals_the_reference(
    model: InternVLAA1, golden: Path, device: torch.device
) -> None:
    case, inputs, _ = case_of(golden, "all_cameras", device)
    velocities = []
    hook = model.action.action_out.register_forward_hook(lambda *call: velocities.append(call[2]))
    actions = model.act(inputs, noise=case["in.noise"])
    hook.remove()
    imagined = model.imagine(inputs, decode=True)
    close(torch.stack(velocities), case["infer.velocity"])
    close(actions, case["infer.actions"])
    context, _ = model.context(inputs)
    with torch.no_grad():
        _, hidden = model._read(context, model.layout(context), outputs=("gen",))
    close(hidden["gen"], case["infer.gen_out"])
    close(imagined.latents, case["infer.pred_latent"])
    image = case["infer.pred_image_view0"]
    close(model.foresight.decoder(imagined.latents[:, 0]), image)
    close(imagined.images[:, 0], (image / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize("kernel", ["aten", "onednn", "measured"])
def test_an_inference_session_gives_the_recorded_actions(
    model: InternVLAA1, golden: Path, device: torch.device, kernel: Kernel
) -> None:
    if kernel == "onednn" and device.type != "cpu":
        pytest.skip("oneDNN computes on the CPU")
    case, inputs, _ = case_of(golden, "all_cameras", device)
    session = InferenceSession(model, inputs.image_grid, kernel=kernel, still=False)
    close(session.act(inputs, noise=case["in.noise"]), case["infer.actions"])
    close(session.imagine(inputs).latents, case["infer.pred_latent"], inputs.view_valid)


def doubled(inputs: Inputs) -> Inputs:
    values = {f.name: getattr(inputs, f.name) for f in fields(inputs)}
    floats = {k: v for k, v in values.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
    return replace(inputs, **{k: v.double() for k, v in floats.items()})


@pytest.mark.parametrize("precision", ["released", "all bfloat16", "autocast"])
def test_bfloat16_errs_little_more_than_rounding_the_weights_must(
    model: InternVLAA1, golden: Path, device: torch.device, precision: str
) -> None:
    # Exact arithmetic on weights rounded to bfloat16 cannot be beaten. Rounding each activation once as well adds an
    # independent error of the same size, sqrt(2) in all; 2 leaves room for the few that are rounded twice.
    case, inputs, _ = case_of(golden, "all_cameras", device)
    noise = case["in.noise"]

    def run(model: InternVLAA1, inputs: Inputs, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return model.act(inputs, noise=noise).double(), model.imagine(inputs).latents.double()

    exact = run(copy.deepcopy(model).double(), doubled(inputs), noise.double())
    rounded = run(copy.deepcopy(model).bfloat16().double(), doubled(inputs), noise.double())
    half = copy.deepcopy(model)
    if precision == "released":
        use_released_precision(half)
        assert half.action.action_out.weight.dtype == torch.float32
        assert half.mot.expert("und").norm.weight.dtype == torch.float32
        assert half.mot.expert("gen").norm.weight.dtype == torch.bfloat16
        assert half.mot.expert("gen").layers[0].mlp_norm.weight.dtype == torch.float32
    elif precision == "all bfloat16":
        half.bfloat16()
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "autocast"):
        actual = run(half, inputs, noise)
    for value, best, truth in zip(actual, rounded, exact, strict=True):
        assert (value - truth).norm() <= 2 * (best - truth).norm()
