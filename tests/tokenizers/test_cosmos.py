import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from moteur.tokenizers import CosmosDecoder, CosmosEncoder, CosmosSize

GoldenTensors = Callable[[str], dict[str, torch.Tensor]]
TINY = replace(CosmosSize.ci8x8(), channels=32, multipliers=(1, 1), residual_blocks=1)
# Float32 rounding, magnified by the decoder: the recorded numbers themselves lie 1.8e-5 from a float64 run. Another
# device adds in another order, and gets that much again.
TOLERANCE = {"cpu": 2e-5, "cuda": 4e-5}


@pytest.mark.parametrize("case", ["0", "1"])
def test_encoder_equals_the_recorded_latents(
    golden_tensors: GoldenTensors, encoder: CosmosEncoder, device: torch.device, case: str
) -> None:
    cases = golden_tensors("cosmos_ci8x8/cases")
    latents = encoder.to(device)(cases[f"{case}.image"].to(device))
    torch.testing.assert_close(latents.cpu(), cases[f"{case}.latent"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("case", ["0", "1"])
def test_decoder_equals_the_recorded_reconstructions(
    golden_tensors: GoldenTensors, decoder: CosmosDecoder, device: torch.device, case: str
) -> None:
    cases = golden_tensors("cosmos_ci8x8/cases")
    images = decoder.to(device)(cases[f"{case}.latent"].to(device))
    torch.testing.assert_close(images.cpu(), cases[f"{case}.reconstruction"], rtol=0, atol=TOLERANCE[device.type])


@pytest.mark.parametrize("case", ["0", "1"])
def test_there_and_back_equals_the_recorded_reconstructions(
    golden_tensors: GoldenTensors, encoder: CosmosEncoder, decoder: CosmosDecoder, device: torch.device, case: str
) -> None:
    cases = golden_tensors("cosmos_ci8x8/cases")
    images = decoder.to(device)(encoder.to(device)(cases[f"{case}.image"].to(device)))
    torch.testing.assert_close(images.cpu(), cases[f"{case}.reconstruction"], rtol=0, atol=TOLERANCE[device.type])


@pytest.mark.parametrize("case", ["all_cameras", "dropped_camera"])
def test_the_tokenizer_inside_the_robot_model_equals_its_recorded_latents(
    golden_tensors: GoldenTensors, toy_encoder: CosmosEncoder, device: torch.device, case: str
) -> None:
    recorded = golden_tensors(f"internvla_a1_3b/{case}")
    # One view is as good as three, and takes a third of the time.
    frames, latents = recorded["in.images"][:, 0], recorded["cosmos.latent"][:, 0]
    images = functional.interpolate(frames.flatten(0, 1), size=(256, 256), mode="bilinear") * 2 - 1
    found = toy_encoder.to(device)(images.to(device)).unflatten(0, frames.shape[:2])
    torch.testing.assert_close(found.cpu(), latents, rtol=0, atol=2e-5)


def test_the_decoder_inside_the_robot_model_equals_its_recorded_image(
    golden_tensors: GoldenTensors, toy_decoder: CosmosDecoder, device: torch.device
) -> None:
    recorded = golden_tensors("internvla_a1_3b/all_cameras")
    images = toy_decoder.to(device)(recorded["infer.pred_latent"][:, 0].to(device))
    torch.testing.assert_close(images.cpu(), recorded["infer.pred_image_view0"], rtol=0, atol=5e-5)


def test_released_sizes_have_every_released_name_and_shape(golden: Path) -> None:
    released = json.loads((golden / "released_shapes_3b.json").read_text())
    ours = {}
    for prefix, model in {
        "model.cosmos._enc_model.": CosmosEncoder(CosmosSize.ci8x8(), device="meta"),
        "model.cosmos._dec_model.": CosmosDecoder(CosmosSize.ci8x8(), device="meta"),
    }.items():
        ours |= {prefix + name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    theirs = {name: shape for name, shape in released.items() if name.startswith("model.cosmos.")}
    assert ours == theirs
    assert len(ours) == 88 + 110


def test_released_sizes_count_76789472_parameters() -> None:
    models = [CosmosEncoder(CosmosSize.ci8x8(), device="meta"), CosmosDecoder(CosmosSize.ci8x8(), device="meta")]
    assert sum(parameter.numel() for model in models for parameter in model.parameters()) == 76_789_472
    assert models[0](torch.empty(2, 3, 256, 256, device="meta")).shape == (2, 16, 32, 32)
    assert models[1](torch.empty(2, 16, 32, 32, device="meta")).shape == (2, 3, 256, 256)


@pytest.mark.parametrize(
    ("patch", "downsamplings", "multipliers"),
    [(4, 1, (1, 1)), (4, 2, (1, 1)), (2, 1, (1, 2)), (8, 0, (2,)), (1, 3, (1, 1, 1))],
)
def test_the_compression_is_what_comes_out(
    device: torch.device, patch: int, downsamplings: int, multipliers: tuple[int, ...]
) -> None:
    size = replace(TINY, multipliers=multipliers, patch=patch, downsamplings=downsamplings)
    encoder, decoder = CosmosEncoder(size, device=device), CosmosDecoder(size, device=device)
    unit = size.compression
    assert unit == patch * 2**downsamplings
    for rows, columns in [(1, 1), (3, 2)]:
        images = torch.zeros(2, 3, rows * unit, columns * unit, device=device)
        latents = encoder(images)
        assert latents.shape == (2, 16, rows, columns)
        assert decoder(latents).shape == images.shape


def test_channels_of_latents_are_free() -> None:
    size = replace(TINY, z_channels=6, latent_channels=4)
    latents = CosmosEncoder(size)(torch.zeros(1, 3, 16, 16))
    assert latents.shape == (1, 4, 2, 2)
    assert CosmosDecoder(size)(latents).shape == (1, 3, 16, 16)


def test_a_batch_equals_its_samples_one_by_one(
    encoder: CosmosEncoder, decoder: CosmosDecoder, device: torch.device
) -> None:
    encoder, decoder = encoder.double().to(device), decoder.double().to(device)
    images = torch.rand(3, 3, 32, 48, dtype=torch.float64, device=device) * 2 - 1
    latents = encoder(images)
    torch.testing.assert_close(latents, torch.cat([encoder(image[None]) for image in images]), rtol=0, atol=1e-11)
    torch.testing.assert_close(
        decoder(latents), torch.cat([decoder(latent[None]) for latent in latents]), rtol=0, atol=1e-11
    )


def test_frozen_by_default_and_yet_gradients_reach_the_latents() -> None:
    encoder, decoder = CosmosEncoder(TINY), CosmosDecoder(TINY)
    assert not any(p.requires_grad for p in itertools.chain(encoder.parameters(), decoder.parameters()))
    assert not encoder(torch.zeros(1, 3, 16, 16)).requires_grad
    latents = torch.randn(1, 16, 2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(decoder(latents).square().sum(), latents)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


def test_unfrozen_every_parameter_gets_a_gradient_and_learns() -> None:
    torch.manual_seed(0)
    encoder, decoder = CosmosEncoder(TINY, frozen=False), CosmosDecoder(TINY, frozen=False)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (decoder(encoder(images)) - images).square().mean()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_gradients_equal_finite_differences() -> None:
    # Along one random direction per half: whole Jacobians would take minutes.
    torch.manual_seed(0)
    for model, inputs in [
        (CosmosEncoder(TINY, frozen=False, dtype=torch.float64), torch.rand(1, 3, 16, 8, dtype=torch.float64) - 0.5),
        (CosmosDecoder(TINY, frozen=False, dtype=torch.float64), torch.randn(1, 16, 2, 1, dtype=torch.float64)),
    ]:
        weights = torch.randn_like(model(inputs))
        direction = [torch.randn_like(parameter) for parameter in model.parameters()]
        length = torch.stack([d.square().sum() for d in direction]).sum().sqrt()
        direction = [d / length for d in direction]
        gradients = torch.autograd.grad((model(inputs) * weights).sum(), list(model.parameters()))
        slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
        values = []
        step = 1e-5
        for sign in (1, -2):
            with torch.no_grad():
                for parameter, d in zip(model.parameters(), direction, strict=True):
                    parameter.add_(d, alpha=sign * step)
                values.append((model(inputs) * weights).sum())
        torch.testing.assert_close((values[0] - values[1]) / (2 * step), slope, rtol=1e-7, atol=0)


def test_channels_last_changes_the_layout_and_not_the_numbers(
    encoder: CosmosEncoder, decoder: CosmosDecoder, device: torch.device
) -> None:
    encoder, decoder = encoder.double().to(device), decoder.double().to(device)
    images = torch.rand(2, 3, 32, 48, dtype=torch.float64, device=device) * 2 - 1
    latents = encoder(images)
    reconstruction = decoder(latents)
    last = torch.channels_last
    torch.testing.assert_close(
        encoder.to(memory_format=last)(images.to(memory_format=last)), latents, rtol=0, atol=1e-11
    )
    torch.testing.assert_close(
        decoder.to(memory_format=last)(latents.to(memory_format=last)), reconstruction, rtol=0, atol=1e-11
    )


@pytest.mark.usefixtures("without_shape_checks", "fresh_compiler")
def test_each_half_compiles_into_one_graph_that_does_not_look_at_values(device: torch.device) -> None:
    encoder, decoder = CosmosEncoder(TINY, device=device), CosmosDecoder(TINY, device=device)
    compiled = torch.compile(encoder, fullgraph=True, backend="eager")
    images = torch.rand(2, 3, 32, 48, device=device) * 2 - 1
    latents = compiled(images)
    torch.testing.assert_close(latents, encoder(images))
    reconstruction = torch.compile(decoder, fullgraph=True, backend="eager")(latents)
    torch.testing.assert_close(reconstruction, decoder(latents))
    assert compiled(255 * images).isfinite().all()
    without_a_check = torch.compile(encoder.latents, fullgraph=True, backend="eager")
    assert torch.equal(without_a_check(images), latents)


class ReadsNothing(TorchDispatchMode):
    """Fails when an operation brings a value of a tensor to the host."""

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_latents_are_computed_without_reading_a_value_and_equal_those_of_the_checked_call(
    encoder: CosmosEncoder, device: torch.device
) -> None:
    encoder = encoder.to(device)
    images = torch.rand(2, 3, 32, 48, device=device) * 2 - 1
    with ReadsNothing():
        latents = encoder.latents(images)
        if device.type == "cpu":
            with pytest.raises(AssertionError):
                encoder(images)
        else:
            encoder(images)
    assert torch.equal(latents, encoder(images))
    assert encoder.latents(255 * images).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_errs_by_a_few_times_what_rounded_weights_alone_cost(
    encoder: CosmosEncoder, decoder: CosmosDecoder, device: torch.device, dtype: torch.dtype
) -> None:
    encoder, decoder = encoder.to(device), decoder.to(device)
    images = (torch.rand(2, 3, 32, 48, device=device) * 2 - 1).to(dtype)
    with torch.no_grad():
        for model, inputs in [(encoder, images), (decoder, encoder(images.float()).to(dtype))]:
            exact = model.double()(inputs.double())
            low = model.to(dtype)(inputs)
            assert low.dtype == dtype
            # The same rounded weights, everything else exact: the least that this precision can cost.
            rounded = model.double()(inputs.double())
            cost = (rounded - exact).square().mean().sqrt()
            assert (low.double() - exact).square().mean().sqrt() <= 4 * cost


@pytest.mark.parametrize(("height", "width"), [(16, 12), (12, 16), (4, 16)])
def test_images_that_the_compression_does_not_divide_are_refused(height: int, width: int) -> None:
    encoder = CosmosEncoder(TINY)
    for encode in (encoder, encoder.latents):
        message = f"images: expected height and width that are multiples of 8, got {height} x {width}"
        with pytest.raises(ValueError, match=message):
            encode(torch.zeros(1, 3, height, width))


@pytest.mark.usefixtures("without_shape_checks")
def test_other_channels_axes_and_dtypes_do_not_pass_in_silence() -> None:
    encoder, decoder = CosmosEncoder(TINY), CosmosDecoder(TINY)
    for images in (
        torch.zeros(2, 1, 16, 16),
        torch.zeros(3, 16, 16),
        torch.zeros(1, 3, 0, 16),
    ):
        with pytest.raises(RuntimeError):
            encoder(images)
    for latents in (
        torch.zeros(1, 8, 2, 2),
        torch.zeros(1, 16, 2, 0),
        torch.zeros(1, 1, 16, 2, 2),
        torch.zeros(1, 16, 2, 2, dtype=torch.int64),
    ):
        with pytest.raises(RuntimeError):
            decoder(latents)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_pixels_that_are_not_real_numbers_are_refused_at_every_door(dtype: torch.dtype) -> None:
    encoder, images = CosmosEncoder(TINY), torch.ones(1, 3, 16, 16).to(dtype)
    for door in (encoder, encoder.latents, CosmosEncoder.check_range):
        with pytest.raises(ValueError, match=rf"^images: expected floating point in \[-1, 1\], got {dtype}$"):
            door(images)


@pytest.mark.parametrize("value", [255.0, -1.1, float("nan"), float("inf")])
def test_images_out_of_range_are_refused(value: float) -> None:
    images = torch.zeros(1, 3, 16, 16)
    images[0, 1, 2, 3] = value
    with pytest.raises(ValueError, match=r"images: expected values in \[-1, 1\] .*, got \["):
        CosmosEncoder(TINY)(images)
    with pytest.raises(ValueError, match=r"images: expected values in \[-1, 1\] .*, got \["):
        CosmosEncoder.check_range(images)


def test_rounding_beyond_the_range_is_forgiven_and_empty_batches_pass() -> None:
    encoder = CosmosEncoder(TINY)
    assert encoder(torch.full((1, 3, 16, 16), 1.0005)).isfinite().all()
    assert encoder(torch.zeros(0, 3, 16, 16)).shape == (0, 16, 2, 2)
    assert CosmosDecoder(TINY)(torch.zeros(0, 16, 2, 2)).shape == (0, 3, 16, 16)
