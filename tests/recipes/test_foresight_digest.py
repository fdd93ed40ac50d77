"""The tokenizer's digest changes with whatever its latents depend on, and with nothing else."""

from dataclasses import replace

import pytest
import torch
from toy_model import randomised, toy_config

from moteur.recipes.cosmos import Foresight, tokenizer_alone
from moteur.tokenizers import Cosmos


def tokenizer(**changes: object) -> Foresight:
    found = randomised(replace(toy_config(), **changes)).foresight  # pyright: ignore[reportArgumentType]
    assert found is not None
    return found


def test_equal_tokenizers_have_equal_digests_whatever_surrounds_them(device: torch.device) -> None:
    expected = tokenizer().digest()
    assert tokenizer().to(device).digest() == expected
    alone = tokenizer_alone(toy_config())
    alone.encoder.load_state_dict(tokenizer().encoder.state_dict())
    assert alone.digest() == expected


def test_another_bit_dtype_epsilon_or_size_gives_another_digest() -> None:
    nudged = tokenizer()
    weight = nudged.encoder.quant_conv.weight
    with torch.no_grad():
        weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(9.0))
    found = {
        "as it is": tokenizer(),
        "one bit of one weight": nudged,
        "an epsilon": tokenizer(cosmos=replace(toy_config().cosmos, eps=2e-6)),
        "the dtype": tokenizer().bfloat16(),
        "the size that frames are resized to": tokenizer(foresight_size=64),
    }
    assert len({each.digest() for each in found.values()}) == len(found)


def test_encoding_takes_frames_from_the_cpu_to_the_weights(device: torch.device) -> None:
    frames = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    there = tokenizer().to(device)
    assert torch.equal(there.encode(frames), there.encode(frames.to(device)))


def test_frames_of_the_tokenizers_size_have_the_latents_that_the_pair_gives() -> None:
    foresight = tokenizer()
    pair = Cosmos(toy_config().cosmos)
    pair.encoder.load_state_dict(foresight.encoder.state_dict())
    side = toy_config().foresight_size
    frames = torch.rand(2, 3, 3, side, side, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pair.encode(frames), foresight.encode(frames))


def test_a_model_without_foresight_has_no_tokenizer() -> None:
    with pytest.raises(ValueError, match=r"config\.gen: expected sizes of a generation expert, got None"):
        tokenizer_alone(replace(toy_config(), gen=None))
