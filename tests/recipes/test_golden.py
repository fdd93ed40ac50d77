"""Both variants against numbers recorded from the reference implementation."""

import copy
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from golden_model import recorded_case, recorded_model

from moteur.recipes import Inputs, InternVLAA1, Processor, use_released_precision
from moteur.recipes.checkpoints.keymap import TIED, released_keys, released_tensors
from moteur.runtime import InferenceSession
from moteur.runtime.kernels import Kernel

CASES = ["all_cameras", "dropped_camera"]
TOLERANCE = 5e-5  # float32, toy width: what the reference itself moves by when its sums are reordered, with room


@pytest.fixture(scope="module", params=["3B", "2B"])
def loaded(golden: Path, request: pytest.FixtureRequest) -> InternVLAA1:
    model, rest = recorded_model(golden, request.param)
    keys = released_keys(model.config)
    assert all(keys.unused(name) or name in TIED for name in rest)
    return model


@pytest.fixture
def model(loaded: InternVLAA1, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> InternVLAA1:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # convolutions too in float32
    return copy.deepcopy(loaded).to(device)


def read_case(golden: Path, name: str, model: InternVLAA1, device: torch.device) -> tuple:
    """A case whose recorded patches, where there are some, replace those that the backbone would cut."""
    case, inputs, targets = recorded_case(golden, name, model, device)
    if "in.pixel_values" in case:
        patches = case["in.pixel_values"].unflatten(1, (3, -1))
        model.backbone.patchify = lambda _: patches
    return case, inputs, targets


def close(actual: torch.Tensor, expected: torch.Tensor, where: torch.Tensor | None = None) -> None:
    difference = (actual - expected).abs()
    if where is not None:
        difference = difference[where]
    assert difference.max() <= TOLERANCE, f"largest difference {difference.max():.2e}"


@pytest.mark.parametrize("name", CASES)
def test_every_quantity_of_the_joint_pass_equals_the_reference(
    model: InternVLAA1, golden: Path, device: torch.device, name: str
) -> None:
    case, inputs, targets = read_case(golden, name, model, device)
    noise, time = case["in.noise"], case["in.time"]
    noisy = time[:, None, None] * noise + (1 - time[:, None, None]) * targets.actions
    with torch.no_grad():
        joint = model.joint(inputs, noisy, time)
        losses = model(inputs, targets, noise=noise, time=time)
        predicted = model.foresight.head.predict(joint.hidden["gen"], joint.grid)
        latents = model.foresight.encode(case["in.images"])
        velocity = model.action.velocity(joint.hidden["act"][:, 1:])
    views, und, gen = inputs.view_valid, joint.streams["und"].valid, joint.streams["gen"].valid
    if "train.und_in" in case:
        tokens = [stream.tokens.shape[:2] for stream in joint.streams.values()]
        valid = torch.cat([und, gen, torch.ones(tokens[2], dtype=torch.bool, device=device)], dim=-1)
        positions = torch.cat([stream.positions for stream in joint.streams.values()], dim=-1)
        assert torch.equal(und, case["in.attention_mask"].bool())
        assert torch.equal(positions[:, valid], case["train.position_ids"][:, valid])
        close(joint.streams["und"].tokens, case["train.und_in"], und)
        close(latents, case["cosmos.latent"], views)
        close(joint.streams["gen"].tokens, case["train.gen_in"], gen)
        close(joint.streams["act"].tokens, case["train.act_in"])
    close(joint.hidden["gen"], case["train.gen_out"], gen)
    close(joint.hidden["act"], case["train.act_out"])
    close(predicted, case["train.pred_latent"], views)
    close((velocity - (noise - targets.actions)) ** 2, case["train.loss_action_elementwise"])
    close(losses.foresight, case["train.loss_gen"][0])
    close(losses.action, case["train.loss_action_elementwise"].mean())
    close(losses.total, case["train.loss"][0])


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_the_reference(model: InternVLAA1, golden: Path, device: torch.device, name: str) -> None:
    case, inputs, targets = read_case(golden, name, model, device)
    model(inputs, targets, noise=case["in.noise"], time=case["in.time"]).total.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    released = released_tensors(found, model.config)
    gradients = {key.removeprefix("model."): gradient for key, gradient in released.items()}
    recorded = {key.removeprefix("grad."): value for key, value in case.items() if key.startswith("grad.")}
    assert len(recorded) >= 4
    for key, expected in recorded.items():
        assert (gradients[key] - expected).norm() <= TOLERANCE * expected.norm(), key
    total = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    torch.testing.assert_close(total, case["train.grad_norm_total"][0], rtol=TOLERANCE, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_every_quantity_of_cached_inference_equals_the_reference(
    model: InternVLAA1, golden: Path, device: torch.device, name: str
) -> None:
    case, inputs, _ = read_case(golden, name, model, device)
    if "infer.actions" not in case:  # 3B with a missing camera: the reference counts its tokens as positions here
        noisy, time = case["in.noise"], torch.ones(len(case["in.noise"]), device=device)
        with torch.no_grad():
            first = model.action.velocity(model.joint(inputs, noisy, time).hidden["act"][:, 1:])
        close(model.act(inputs, noise=noisy, steps=1), noisy - first)
        return
    velocities, hidden = [], []
    hooks = [
        model.action.action_out.register_forward_hook(lambda *call: velocities.append(call[2])),
        model.mot.register_forward_hook(lambda *call: hidden.append(call[2])),
    ]
    actions = model.act(inputs, noise=case["in.noise"])
    imagined = model.imagine(inputs, decode=True)
    for hook in hooks:
        hook.remove()
    close(torch.stack(velocities), case["infer.velocity"])
    close(actions, case["infer.actions"])
    valid = inputs.view_valid.repeat_interleave(case["infer.gen_out"].shape[1] // 3, dim=1)
    close(hidden[-1]["gen"], case["infer.gen_out"], valid)
    if "infer.pred_latent" in case:
        close(imagined.latents, case["infer.pred_latent"], inputs.view_valid)
        image = case["infer.pred_image_view0"]
        close(model.foresight.decoder(imagined.latents[:, 0]), image)
        close(imagined.images[:, 0], (image / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kernel", ["aten", "onednn", "measured"])
def test_an_inference_session_gives_the_recorded_actions(
    model: InternVLAA1, golden: Path, device: torch.device, name: str, kernel: Kernel
) -> None:
    if kernel == "onednn" and device.type != "cpu":
        pytest.skip("oneDNN computes on the CPU")
    case, inputs, _ = read_case(golden, name, model, device)
    if name == "dropped_camera":
        case |= {"infer.actions": model.act(inputs, noise=case["in.noise"])}
    session = InferenceSession(model, kernel=kernel)
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
def test_pictures_and_words_lead_to_the_recorded_actions(
    loaded: InternVLAA1, golden: Path, device: torch.device, name: str
) -> None:
    model = copy.deepcopy(loaded).to(device)
    case, expected, _ = recorded_case(golden, name, model, torch.device("cpu"))
    rows = [ids[mask].tolist() for ids, mask in zip(expected.instruction, expected.attention_mask, strict=True)]
    inputs = Processor(model.config, Recited(rows))(
        list(case["in.images"][:, :, :2].unbind(1)),
        case["in.state"],
        ["one", "two"],
        view_valid=case["in.img_masks"],
    )
    assert torch.equal(inputs.instruction, expected.instruction)
    assert torch.equal(inputs.attention_mask, expected.attention_mask)
    if model.config.variant == "2B":  # the patches that 3B recorded do not come from its pictures
        actions = model.act(inputs.to(device), noise=case["in.noise"].to(device))
        close(actions.cpu(), case["infer.actions"])


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
    case, inputs, _ = recorded_case(golden, "all_cameras", model, device)
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
