"""The 2B recipe against numbers recorded from the reference implementation."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file

from moteur.recipes.checkpoints.keymap import released_keys, released_tensors
from moteur.recipes.config import CosmosSize, ExpertSize, InternVLAA1Config, InternVLVision, TokenIds
from moteur.recipes.inputs import Inputs, Targets, moved
from moteur.recipes.internvla_a1 import InternVLAA1
from moteur.recipes.presets import preset
from moteur.recipes.processing import Observation, Processor
from moteur.runtime import InferenceSession, Kernel

CASES = ["all_cameras", "dropped_camera"]
TOLERANCE = 5e-5  # float32, toy width: what the reference itself moves by when its sums are reordered, with room
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def config_of(dims: dict) -> InternVLAA1Config:
    text, expert, vision, cosmos = dims["text"], dims["expert"], dims["vision"], dims["cosmos"]
    size = ExpertSize(dim=expert["hidden_size"], mlp_dim=expert["intermediate_size"])
    return replace(
        preset("2B"),
        depth=text["num_hidden_layers"],
        heads=text["num_attention_heads"],
        kv_heads=text["num_key_value_heads"],
        head_dim=text["head_dim"],
        und=ExpertSize(dim=text["hidden_size"], mlp_dim=text["intermediate_size"]),
        gen=size,
        act=size,
        rope_base=text["rope_theta"],
        vocabulary=text["vocab_size"],
        token_ids=TokenIds(image=dims["image_token_id"], vision_start=None, vision_end=None, pad=dims["pad_token_id"]),
        vision=InternVLVision(
            depth=vision["num_hidden_layers"],
            dim=vision["hidden_size"],
            mlp_dim=vision["intermediate_size"],
            heads=vision["num_attention_heads"],
            size=vision["image_size"][0],
            patch=vision["patch_size"][0],
            merge=2,
            norm_eps=1e-6,
            projector_eps=1e-5,
            mean=MEAN,
            std=STD,
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
        frame_size=dims["image_size"],
        text_length=dims["tokenizer_max_length"],
        chunk=dims["chunk_size"],
        state_dim=dims["max_state_dim"],
        action_dim=dims["max_action_dim"],
        steps=dims["num_inference_steps"],
        action_reduction="released",
    )


@pytest.fixture(scope="module")
def loaded(golden: Path) -> InternVLAA1:
    folder = golden / "internvla_a1_2b"
    model = InternVLAA1(config_of(json.loads((folder / "dims.json").read_text())), decoder=True)
    stored = load_file(folder / "model.safetensors")
    keys = released_keys(model.config)
    model.load_state_dict(
        {name: torch.cat([stored.pop(key) for key in keys.sources(name)]) for name in model.state_dict()}
    )
    assert all(keys.unused(name) for name in stored)
    return model.eval()


@pytest.fixture
def model(loaded: InternVLAA1, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> InternVLAA1:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # convolutions too in float32
    return loaded if device.type == "cpu" else copy.deepcopy(loaded).to(device)


def case_of(
    golden: Path, name: str, config: InternVLAA1Config, device: torch.device
) -> tuple[dict[str, torch.Tensor], Inputs, Targets]:
    case = load_file(golden / "internvla_a1_2b" / f"{name}.safetensors", device=str(device))
    frames, views = case["in.images"], case["in.img_masks"]
    mean, std = (frames.new_tensor(value)[:, None, None] for value in (MEAN, STD))
    patch = config.vision.patch
    side = config.vision.size // patch
    tokens = (side // config.vision.merge) ** 2
    seen = views.repeat_interleave(tokens, dim=1)
    inputs = Inputs(
        input_ids=torch.cat([torch.full_like(seen, config.token_ids.image, dtype=torch.long), case["in.input_ids"]], 1),
        und_valid=torch.cat([seen, case["in.attention_mask"].bool()], dim=1),
        pixel_values=rearrange(
            (frames[:, :, 1] - mean) / std, "b view c (h y) (w x) -> b (view h w) (c y x)", y=patch, x=patch
        ),
        image_grid=((side, side),) * 3,
        view_valid=views,
        state=case["in.state"],
        frames=frames[:, :, :2],
    )
    return case, inputs, Targets(actions=case["in.actions"], future_frames=frames[:, :, 2])


def close(actual: torch.Tensor, expected: torch.Tensor, where: torch.Tensor | None = None) -> None:
    difference = (actual - expected).abs()
    if where is not None:
        difference = difference[where]
    assert difference.max() <= TOLERANCE, f"largest difference {difference.max():.2e}"


@pytest.mark.parametrize("name", CASES)
def test_every_quantity_of_the_joint_pass_equals_the_reference(
    model: InternVLAA1, golden: Path, device: torch.device, name: str
) -> None:
    case, inputs, targets = case_of(golden, name, model.config, device)
    noise, tau = case["in.noise"], 1 - case["in.time"]
    noisy = (1 - tau[:, None, None]) * noise + tau[:, None, None] * targets.actions
    with torch.no_grad():
        joint = model.joint(inputs, noisy, tau)
        losses = model.loss(inputs, targets, noise=noise, tau=tau)
        predicted = model.foresight.head.predict(joint.hidden["gen"], joint.grid)
        velocity = model.action.velocity(joint.hidden["act"][:, 1:])
    close(joint.hidden["gen"], case["train.gen_out"], joint.streams["gen"].valid)
    close(joint.hidden["act"], case["train.act_out"])
    close(predicted, case["train.pred_latent"], inputs.view_valid)
    close((velocity - (targets.actions - noise)) ** 2, case["train.loss_action_elementwise"])
    close(losses.foresight, case["train.loss_gen"][0])
    close(losses.action, case["train.loss_action_elementwise"].mean())
    close(losses.total, case["train.loss"][0])


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_the_reference(model: InternVLAA1, golden: Path, device: torch.device, name: str) -> None:
    case, inputs, targets = case_of(golden, name, model.config, device)
    model.zero_grad()
    model.loss(inputs, targets, noise=case["in.noise"], tau=1 - case["in.time"]).total.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    gradients = {
        name.removeprefix("model."): gradient for name, gradient in released_tensors(found, model.config).items()
    }
    recorded = {key.removeprefix("grad."): value for key, value in case.items() if key.startswith("grad.")}
    assert len(recorded) == 4
    for key, expected in recorded.items():
        assert (gradients[key] - expected).norm() <= TOLERANCE * expected.norm(), key
        close(gradients[key], expected)
    total = torch.stack([gradient.norm() for gradient in gradients.values() if gradient is not None]).norm()
    torch.testing.assert_close(total, case["train.grad_norm_total"][0], rtol=TOLERANCE, atol=0)
    model.zero_grad()


@pytest.mark.parametrize("name", CASES)
def test_every_quantity_of_cached_inference_equals_the_reference(
    model: InternVLAA1, golden: Path, device: torch.device, name: str
) -> None:
    case, inputs, _ = case_of(golden, name, model.config, device)
    velocities, hidden = [], []
    hooks = [
        model.action.action_out.register_forward_hook(lambda *call: velocities.append(call[2])),
        model.mot.register_forward_hook(lambda *call: hidden.append(call[2])),
    ]
    actions = model.act(inputs, noise=case["in.noise"])
    model.imagine(inputs)
    for hook in hooks:
        hook.remove()
    close(torch.stack(velocities), case["infer.velocity"])
    close(actions, case["infer.actions"])
    valid = inputs.view_valid.repeat_interleave(case["infer.gen_out"].shape[1] // 3, dim=1)
    close(hidden[-1]["gen"], case["infer.gen_out"], valid)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kernel", ["aten", "onednn", "measured"])
def test_an_inference_session_gives_the_recorded_actions(
    model: InternVLAA1, golden: Path, device: torch.device, name: str, kernel: Kernel
) -> None:
    if kernel == "onednn" and device.type != "cpu":
        pytest.skip("oneDNN computes on the CPU")
    case, inputs, _ = case_of(golden, name, model.config, device)
    session = InferenceSession(model, inputs.image_grid, kernel=kernel, still=False)
    close(session.act(inputs, noise=case["in.noise"]), case["infer.actions"])
    close(session.imagine(inputs).latents, model.imagine(inputs).latents, inputs.view_valid)


class Recited:
    """A tokenizer that answers with the recorded ids."""

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        assert len(text) == len(self.rows)
        assert not add_special_tokens
        return {"input_ids": self.rows}


@pytest.mark.parametrize("name", CASES)
def test_the_raw_door_leads_to_the_recorded_actions(
    model: InternVLAA1, golden: Path, device: torch.device, name: str
) -> None:
    case, processed, _ = case_of(golden, name, model.config, torch.device("cpu"))
    lengths = case["in.attention_mask"].sum(1).tolist()
    rows = [row[:length] for row, length in zip(case["in.input_ids"].tolist(), lengths, strict=True)]
    inputs = Processor(model.config, Recited(rows))(
        Observation(
            frames=list(case["in.images"][:, :, :2].unbind(1)),
            state=case["in.state"],
            instructions=["", ""],
            view_valid=case["in.img_masks"],
        )
    )
    assert torch.equal(inputs.input_ids, processed.input_ids)
    assert torch.equal(inputs.und_valid, processed.und_valid)
    close(inputs.pixel_values, processed.pixel_values)
    actions = model.act(moved(inputs, device), noise=case["in.noise"].to(device))
    close(actions.cpu(), case["infer.actions"])
