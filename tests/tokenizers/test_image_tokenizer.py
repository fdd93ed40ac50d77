"""The pair of encoder and decoder: pictures in [0, 1] with any leading axes, there and back."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from moteur.tokenizers import Cosmos, CosmosDecoder, CosmosEncoder, CosmosSize, ForesightHead, save_weights

GoldenTensors = Callable[[str], dict[str, Tensor]]
TINY = replace(CosmosSize.ci8x8(), channels=32, multipliers=(1, 1), residual_blocks=1)


@pytest.fixture
def cosmos(encoder: CosmosEncoder, decoder: CosmosDecoder) -> Cosmos:
    """The pair with the weights of the Cosmos golden file."""
    pair = Cosmos(encoder.size)
    pair.encoder.load_state_dict(encoder.state_dict())
    pair.decoder.load_state_dict(decoder.state_dict())
    return pair


@pytest.mark.parametrize("case", ["0", "1"])
def test_pictures_and_latents_equal_the_recorded_ones(
    golden_tensors: GoldenTensors, cosmos: Cosmos, device: torch.device, case: str
) -> None:
    cases, cosmos = golden_tensors("cosmos_ci8x8/cases"), cosmos.to(device)
    frames = ((cases[f"{case}.image"] + 1) / 2).to(device)
    reconstruction = (cases[f"{case}.reconstruction"] / 2 + 0.5).clamp(0, 1)
    # Halving the numbers of the halves; twice their tolerance for rounding frames.
    torch.testing.assert_close(cosmos.encode(frames).cpu(), cases[f"{case}.latent"], rtol=0, atol=4e-6)
    decoded = cosmos.decode(cases[f"{case}.latent"].to(device))
    torch.testing.assert_close(decoded.cpu(), reconstruction, rtol=0, atol=2e-5)
    torch.testing.assert_close(cosmos(frames).cpu(), reconstruction, rtol=0, atol=4e-5)


@pytest.mark.parametrize("lead", [(), (2,), (2, 3), (1, 2, 2), (0, 3)])
def test_leading_axes_of_any_number_are_those_of_a_batch_through_the_halves(
    cosmos: Cosmos, device: torch.device, lead: tuple[int, ...]
) -> None:
    cosmos = cosmos.to(device)
    frames = torch.rand(*lead, 3, 16, 24, generator=torch.Generator().manual_seed(0)).to(device)
    latents, flat = cosmos.encode(frames), cosmos.encoder(2 * frames.reshape(-1, 3, 16, 24) - 1)
    assert latents.shape == (*lead, 16, 2, 3)
    assert torch.equal(latents.reshape(-1, 16, 2, 3), flat)
    decoded = cosmos.decode(3 * latents)  # far enough that the range is left
    unclamped = (cosmos.decoder(3 * flat) + 1) / 2
    assert decoded.shape == frames.shape
    assert torch.equal(decoded.reshape(-1, 3, 16, 24), unclamped.clamp(0, 1))
    assert not flat.numel() or not torch.equal(unclamped, unclamped.clamp(0, 1))


def test_bytes_are_255ths() -> None:
    cosmos = Cosmos(TINY, dtype=torch.float64)
    frames = torch.arange(256, dtype=torch.uint8).repeat(2, 3, 1).reshape(2, 3, 16, 16)
    assert torch.equal(cosmos.encode(frames), cosmos.encode(frames.float() / 255))
    assert torch.equal(cosmos.encode(torch.full_like(frames, 255)), cosmos.encoder(torch.ones(2, 3, 16, 16).double()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_whatever_the_dtype_of_pictures_what_comes_out_has_that_of_the_weights(dtype: torch.dtype) -> None:
    cosmos = Cosmos(TINY, dtype=dtype)
    for frames in (torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16).half(), torch.zeros(1, 3, 16, 16).byte()):
        latents = cosmos.encode(frames)
        assert latents.dtype == cosmos.decode(latents.float()).dtype == cosmos.dtype == dtype
    # A byte is a number of half precision only after it was mapped to [-1, 1].
    frames = torch.full((1, 3, 16, 16), 129 / 255)
    assert torch.equal(cosmos.encode(frames), cosmos.encoder((2 * frames - 1).to(dtype)))


def test_the_pair_knows_where_it_is(device: torch.device) -> None:
    cosmos = Cosmos(TINY, device="meta", dtype=torch.bfloat16)
    assert (cosmos.device, cosmos.dtype) == (torch.device("meta"), torch.bfloat16)
    assert cosmos.encode(torch.empty(2, 5, 3, 16, 16, device="meta", dtype=torch.uint8)).shape == (2, 5, 16, 2, 2)
    moved = cosmos.to_empty(device=device).float()
    assert (moved.device.type, moved.dtype) == (device.type, torch.float32)


def test_its_weights_are_those_of_the_halves_and_without_a_decoder_there_are_none_of_it() -> None:
    pair, alone = Cosmos(TINY), Cosmos(TINY, decoder=False)
    halves = {"encoder": CosmosEncoder(TINY), "decoder": CosmosDecoder(TINY)}
    expected = {f"{half}.{name}" for half, model in halves.items() for name in model.state_dict()}
    assert set(pair.state_dict()) == expected
    assert set(alone.state_dict()) == {name for name in expected if name.startswith("encoder.")}
    assert alone.encode(torch.zeros(3, 16, 16)).shape == (16, 2, 2)
    with pytest.raises(ValueError, match="decode: expected a tokenizer built with decoder=True, got one without"):
        alone.decode(torch.zeros(16, 2, 2))


def test_frozen_unless_asked_and_gradients_reach_what_goes_in() -> None:
    frozen, trained = Cosmos(TINY), Cosmos(TINY, frozen=False)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    latents = (0.1 * torch.randn(2, 1, 16, 2, 2)).requires_grad_()
    (gradient,) = torch.autograd.grad(frozen.decode(latents).sum(), latents)
    assert gradient.abs().max() > 0
    (trained(torch.rand(2, 1, 3, 16, 16)) - 0.5).square().sum().backward()
    assert all(parameter.grad is not None for parameter in trained.parameters())


@pytest.mark.usefixtures("without_shape_checks", "fresh_compiler")
def test_both_ways_compile_into_one_graph_that_does_not_look_at_values(device: torch.device) -> None:
    cosmos = Cosmos(replace(TINY, multipliers=(1,)), device=device)
    encode = torch.compile(cosmos.encode, fullgraph=True, backend="eager")
    decode = torch.compile(cosmos.decode, fullgraph=True, backend="eager")
    frames = torch.rand(2, 3, 3, 16, 16, device=device)
    latents = encode(frames)
    torch.testing.assert_close(latents, cosmos.encode(frames))
    torch.testing.assert_close(decode(latents), cosmos.decode(latents))
    assert encode(255 * frames).isfinite().all()


@pytest.mark.parametrize("form", ["own", "halves"])
@pytest.mark.parametrize("decoder", [True, False])
def test_a_pair_is_loaded_bit_for_bit_in_the_dtype_asked_for(tmp_path: Path, form: str, *, decoder: bool) -> None:
    original = Cosmos(TINY, dtype=torch.bfloat16)
    assert original.decoder is not None
    source = tmp_path / "cosmos.safetensors" if form == "own" else tmp_path
    if form == "own":
        save_weights(source, encoder=original.encoder, decoder=original.decoder)
    else:
        save_file(original.encoder.state_dict(), tmp_path / "encoder.safetensors")
        save_file(original.decoder.state_dict(), tmp_path / "decoder.safetensors")
    before = torch.get_rng_state()
    for dtype, expected in ((None, torch.float32), (torch.bfloat16, torch.bfloat16)):
        found = Cosmos.from_pretrained(source, size=TINY, decoder=decoder, dtype=dtype)
        assert found.dtype == expected
        kept = {name: value for name, value in original.state_dict().items() if decoder or name.startswith("encoder.")}
        assert set(found.state_dict()) == set(kept)
        assert all(torch.equal(found.state_dict()[name], value.to(expected)) for name, value in kept.items())
        assert not any(parameter.requires_grad for parameter in found.parameters())
    assert torch.equal(torch.get_rng_state(), before)
    trained = Cosmos.from_pretrained(source, size=TINY, frozen=False)
    assert all(parameter.requires_grad for parameter in trained.parameters())


def test_a_released_pair_has_the_released_sizes_and_misfits_are_listed(tmp_path: Path) -> None:
    save_weights(tmp_path / "cosmos.safetensors", encoder=CosmosEncoder(TINY), decoder=CosmosDecoder(TINY))
    with pytest.raises(ValueError, match=r"does not fit this CosmosEncoder\n  missing"):
        Cosmos.from_pretrained(tmp_path)
    save_weights(tmp_path / "cosmos.safetensors", encoder=CosmosEncoder(TINY))
    with pytest.raises(ValueError, match=r"cosmos\.safetensors: holds no decoder"):
        Cosmos.from_pretrained(tmp_path, size=TINY)
    with pytest.raises(ValueError, match="source: expected a file, a folder or a Hub id"):
        Cosmos.from_pretrained(tmp_path / "nothing")


@pytest.mark.parametrize(
    "build",
    [
        lambda device: Cosmos(TINY, device=device),
        lambda device: Cosmos(TINY, decoder=False, device=device),
        lambda device: CosmosEncoder(replace(TINY, multipliers=(1, 2)), device=device),
        lambda device: CosmosDecoder(replace(TINY, multipliers=(1, 2)), device=device),
        lambda device: ForesightHead(dim=8, cell=4, futures=2, device=device),
    ],
    ids=["pair", "encoder alone", "encoder", "decoder", "head"],
)
def test_weights_drawn_after_to_empty_are_those_of_a_constructor(build: Callable[[str], torch.nn.Module]) -> None:
    model = build("meta").to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    torch.manual_seed(3)
    model.reset_parameters()  # pyright: ignore[reportCallIssue]
    torch.manual_seed(3)
    expected = build("cpu").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(16, 16, 3), r"images: expected shape \(\.\.\., 3, height, width\), got \(16, 16, 3\)"),
        (torch.zeros(2, 1, 16, 16), r"images: expected shape \(\.\.\., 3, height, width\), got \(2, 1, 16, 16\)"),
        (torch.zeros(16, 16), r"images: expected shape \(\.\.\., 3, height, width\), got \(16, 16\)"),
        (torch.zeros(3, 16, 12), "images: expected height and width that are multiples of 8, got 16 x 12"),
        (torch.zeros(3, 16, 16).int(), r"images: expected uint8 or floating point in \[0, 1\], got torch.int32"),
        (torch.full((3, 16, 16), 255.0), r"images: expected values in \[0, 1\], got \[255, 255\]"),
        (torch.full((3, 16, 16), -0.01), r"images: expected values in \[0, 1\], got \[-0.01, -0.01\]"),
        (torch.full((3, 16, 16), float("nan")), r"images: expected values in \[0, 1\], got \[nan, nan\]"),
    ],
)
def test_pictures_that_are_none_are_refused_by_name(images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Cosmos(TINY).encode(images)


def test_rounding_beyond_the_range_is_forgiven() -> None:
    assert Cosmos(TINY).encode(torch.full((3, 16, 16), 1.0004)).isfinite().all()


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("latents", [torch.zeros(2, 8, 2, 2), torch.zeros(16, 2), torch.zeros(16, 2, 2).long()])
def test_latents_that_are_none_are_refused_by_name(latents: Tensor) -> None:
    found = rf"got {latents.dtype} of shape \({', '.join(map(str, latents.shape))}\)"
    with pytest.raises(ValueError, match=rf"latents: expected floating point of shape \(\.\.\., 16, rows, .*{found}"):
        Cosmos(TINY).decode(latents)
