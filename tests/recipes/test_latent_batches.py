"""Learning and acting from cached latents is learning and acting from frames, bit for bit."""

import copy
import pickle
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.utils.data import default_collate
from toy_model import randomised, toy_config
from toy_recordings import Recorded, record_arm, record_person
from transformers import PreTrainedTokenizerFast

from moteur.data import LatentCache, LatentDataset, Loader, RobotDataset, write_latents
from moteur.recipes import Inputs, InternVLAA1, Processor, Targets
from moteur.recipes.batches import observation_of, targets_of
from moteur.recipes.collate import Collator
from moteur.recipes.foresight import Foresight
from moteur.recipes.latent_batches import LatentCollator, latent_inputs, latent_targets
from moteur.sampling import EpochOrder, DatasetPool, Sampler


@pytest.fixture(scope="module", autouse=True)
def same_sums_in_any_batch() -> Iterator[None]:
    """oneDNN and NNPACK choose how to sum by the size of the batch; without them a frame's company does not matter."""
    with torch.backends.nnpack.flags(enabled=False):
        before, torch.backends.mkldnn.enabled = torch.backends.mkldnn.enabled, False
        yield
        torch.backends.mkldnn.enabled = before


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record_arm(tmp_path_factory.mktemp("arm") / "set", 0)


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record_person(tmp_path_factory.mktemp("person") / "set")


@pytest.fixture(scope="module")
def model() -> InternVLAA1:
    """Takes five numbers of state and of action."""
    return randomised(replace(toy_config(), state_dim=5))


@pytest.fixture(scope="module")
def foresight(model: InternVLAA1) -> Foresight:
    assert model.foresight is not None
    return model.foresight


@pytest.fixture(scope="module")
def processor(model: InternVLAA1) -> Processor:
    words = ["<pad>", "<start>", "<end>", "<image>", "<unk>", "reach", "far", "pour"]
    text = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))  # noqa: S106 - a token of text
    text.pre_tokenizer = pre_tokenizers.Whitespace()
    return Processor(model.config, PreTrainedTokenizerFast(tokenizer_object=text))


@pytest.fixture(scope="module")
def whole(arm: Recorded, person: Recorded) -> dict[str, RobotDataset]:
    return {"arm": arm.prepared(), "person": person.prepared()}


@pytest.fixture(scope="module")
def datasets(
    whole: dict[str, RobotDataset], foresight: Foresight, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, LatentDataset]:
    """Both robots, read from one folder of latents."""
    folder = tmp_path_factory.mktemp("latents")
    made = {"encode": foresight.encode, "digest": foresight.digest(), "progress": False}
    return {name: LatentDataset(dataset, write_latents(folder, dataset, **made)) for name, dataset in whole.items()}


def expect_equal(found: Inputs | Targets, expected: Inputs | Targets) -> None:
    """Every field is there or not, and holds the same bits."""
    for field in fields(expected):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(theirs, Tensor):
            assert ours.dtype == theirs.dtype, field.name
            assert torch.equal(ours.cpu(), theirs), field.name
        else:
            assert ours == theirs, field.name


def of_both(datasets: dict[str, Any]) -> list[Any]:
    """Samples from the start, middle and end of episodes of both robots."""
    return [
        datasets[name][place] for name, place in (("arm", 0), ("person", 10), ("arm", 7), ("arm", 24), ("person", 4))
    ]


def test_losses_and_gradients_of_two_robots_are_the_same_bits_from_the_cache(
    whole: dict[str, RobotDataset], datasets: dict[str, LatentDataset], model: InternVLAA1, processor: Processor
) -> None:
    slow, fast = default_collate(of_both(whole)), default_collate(of_both(datasets))
    results = []
    for inputs, targets in (
        (processor(observation_of(slow)), targets_of(slow)),
        (latent_inputs(fast, processor), latent_targets(fast)),
    ):
        model.zero_grad()
        losses = model.loss(inputs, targets, generator=torch.Generator().manual_seed(0))
        losses.total.backward()
        results.append((losses, [parameter.grad for parameter in model.parameters()]))
    (expected, slopes), (found, own_slopes) = results
    for name in ("total", "action", "foresight"):
        assert getattr(expected, name) > 0, name
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    for ours, theirs in zip(own_slopes, slopes, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)


def test_acting_from_latents_is_acting_from_frames(
    whole: dict[str, RobotDataset], datasets: dict[str, LatentDataset], model: InternVLAA1, processor: Processor
) -> None:
    slow, fast = default_collate(of_both(whole)), default_collate(of_both(datasets))
    noise = torch.randn(5, model.config.chunk, model.config.action_dim)
    expected = model.act(processor(observation_of(slow)), noise=noise)
    assert torch.equal(model.act(latent_inputs(fast, processor), noise=noise), expected)


@pytest.mark.parametrize("repeated_history", [False, True])
def test_a_collated_batch_of_two_robots_is_what_latent_inputs_and_latent_targets_make(
    datasets: dict[str, LatentDataset], processor: Processor, repeated_history: bool, device: torch.device
) -> None:
    samples = of_both(datasets)
    batch = LatentCollator(processor, repeated_history=repeated_history)(samples)
    assert batch.robots == ("arm", "person", "arm", "arm", "person")
    inputs, targets = batch.to(device)
    assert inputs.state.device.type == device.type
    together = default_collate(samples)
    expect_equal(inputs, latent_inputs(together, processor))
    expect_equal(targets, latent_targets(together, repeated_history=repeated_history))
    assert targets.valid_future is not None
    assert bool(targets.valid_future[0].any()) == repeated_history  # its history lies before the episode


def test_a_worker_makes_the_same_batches(datasets: dict[str, LatentDataset], processor: Processor) -> None:
    sampler = Sampler(EpochOrder({name: len(dataset) for name, dataset in datasets.items()}, seed=2))
    pairs = list(Sampler(sampler.order))
    loader = Loader(
        DatasetPool(datasets.__getitem__), sampler, batch_size=18, collate=LatentCollator(processor), workers=1, pin=False
    )
    for number, batch in enumerate(loader):
        inputs, targets = batch.to("cpu")
        together = default_collate([datasets[name][frame] for name, frame in pairs[18 * number :][:18]])
        assert set(batch.robots) == {"arm", "person"}
        expect_equal(inputs, latent_inputs(together, processor))
        expect_equal(targets, latent_targets(together))
    assert sampler.order.length == len(pairs) == 36


def test_a_collator_given_other_samples_says_what_it_takes(
    arm: Recorded,
    whole: dict[str, RobotDataset],
    datasets: dict[str, LatentDataset],
    processor: Processor,
    foresight: Foresight,
    tmp_path: Path,
) -> None:
    message = r"expected frames, got latents; moteur\.recipes\.latent_batches\.LatentCollator takes them"
    with pytest.raises(ValueError, match=message):
        Collator(processor)([datasets["arm"][0]])
    with pytest.raises(ValueError, match=r"expected those of LatentDataset, got \[.*'images'.*; frames take Collator"):
        LatentCollator(processor)([whole["arm"][0]])
    large = arm.prepared(size=48)
    cache = write_latents(tmp_path, large, encode=foresight.encode, digest=foresight.digest(), progress=False)
    with pytest.raises(ValueError, match=r"expected frames of \(32, 32\), got \(48, 48\)"):
        LatentCollator(processor)([LatentDataset(large, cache)[0]])
    assert pickle.loads(pickle.dumps(LatentCollator(processor, repeated_history=True))).repeated_history  # noqa: S301


def test_latents_written_on_any_device_have_the_same_names_and_pass_for_each_other(
    whole: dict[str, RobotDataset],
    datasets: dict[str, LatentDataset],
    foresight: Foresight,
    tmp_path: Path,
    device: torch.device,
) -> None:
    elsewhere, dataset = copy.deepcopy(foresight).to(device), whole["arm"]
    there = write_latents(tmp_path, dataset, encode=elsewhere.encode, digest=elsewhere.digest(), progress=False)
    here = datasets["arm"].cache
    assert [shard.key for shard in there.shards] == [shard.key for shard in here.shards]
    LatentCache(tmp_path, dataset, encode=foresight.encode, digest=foresight.digest(), progress=False).verify()
    ours, theirs = there.read("wrist", 2, range(14)), here.read("wrist", 2, range(14))
    # Convolutions on a GPU may round to TensorFloat-32: 2^-11 a product.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=16 * 2**-11 * theirs.abs().max().item())
