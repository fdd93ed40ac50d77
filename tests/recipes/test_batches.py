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
from toy_model import randomised, toy_config
from toy_recordings import Recorded, opened, with_latents, written
from transformers import PreTrainedTokenizerFast

from moteur.data import Loader, RobotDataset
from moteur.recipes import Collator, Inputs, InternVLAA1, Processor, Targets
from moteur.recipes.cosmos import Foresight
from moteur.sampling import DatasetPool, EpochOrder, Sampler


@pytest.fixture(scope="module", autouse=True)
def same_sums_in_any_batch() -> Iterator[None]:
    """oneDNN and NNPACK choose how to sum by the size of the batch; without them a frame's company does not matter."""
    with torch.backends.nnpack.flags(enabled=False):
        before, torch.backends.mkldnn.enabled = torch.backends.mkldnn.enabled, False
        yield
        torch.backends.mkldnn.enabled = before


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
) -> dict[str, RobotDataset]:
    """Both robots, read from one folder of latents."""
    folder = tmp_path_factory.mktemp("latents")
    made = {"encode": foresight.encode, "digest": foresight.digest()}
    return {name: with_latents(dataset, written(folder, dataset, **made)) for name, dataset in whole.items()}


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
    whole: dict[str, RobotDataset], datasets: dict[str, RobotDataset], model: InternVLAA1, processor: Processor
) -> None:
    results = []
    for source in (whole, datasets):
        batch = Collator(processor)(of_both(source))
        model.zero_grad()
        losses = model(batch.inputs, batch.targets, generator=torch.Generator().manual_seed(0))
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
    whole: dict[str, RobotDataset], datasets: dict[str, RobotDataset], model: InternVLAA1, processor: Processor
) -> None:
    noise = torch.randn(5, model.config.chunk, model.config.action_dim)
    expected = model.act(Collator(processor)(of_both(whole)).inputs, noise=noise)
    assert torch.equal(model.act(Collator(processor)(of_both(datasets)).inputs, noise=noise), expected)


@pytest.mark.parametrize("repeated_history", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_a_batch_of_two_robots_holds_their_samples_masks_included(
    whole: dict[str, RobotDataset],
    datasets: dict[str, RobotDataset],
    processor: Processor,
    repeated_history: bool,
    cached: bool,
    device: torch.device,
) -> None:
    samples = of_both(datasets if cached else whole)
    batch = Collator(processor, repeated_history=repeated_history)(samples)
    assert batch.robots == ("arm", "person", "arm", "arm", "person")
    assert len(batch) == 5
    inputs, targets = batch.to(device)
    assert inputs.state.device.type == device.type
    assert inputs.frames.dtype == torch.uint8
    for place, sample in enumerate(samples):
        frames = sample.frames if cached else sample.frames[:, :2]
        assert torch.equal(inputs.frames[place].cpu(), frames)
        assert torch.equal(inputs.state[place].cpu(), sample.state)
        assert torch.equal(targets.actions[place].cpu(), sample.actions)
        assert torch.equal(inputs.view_valid[place].cpu(), sample.view_valid)
        assert targets.valid_samples[place] == sample.valid_sample
        expected = sample.frame_valid[:, 2] & (sample.frame_valid[:, 0] | repeated_history)
        assert torch.equal(targets.valid_future[place].cpu(), expected)
        if cached:
            assert torch.equal(inputs.latents[place].cpu(), sample.latents)
            assert torch.equal(targets.future_latents[place].cpu(), sample.future_latents)
        else:
            assert torch.equal(targets.future_frames[place].cpu(), sample.frames[:, 2])
    assert bool(targets.valid_future[0].any()) == repeated_history  # its history lies before the episode


@pytest.mark.parametrize("cached", [False, True])
def test_a_worker_makes_the_same_batches(
    whole: dict[str, RobotDataset], datasets: dict[str, RobotDataset], processor: Processor, cached: bool
) -> None:
    source = datasets if cached else whole
    sampler = Sampler(EpochOrder({name: len(dataset) for name, dataset in source.items()}, seed=2))
    pairs = list(Sampler(sampler.order))
    loader = Loader(DatasetPool(source), sampler, batch_size=18, collate=Collator(processor), workers=1, pin=False)
    for number, batch in enumerate(loader):
        together = Collator(processor)([source[name][frame] for name, frame in pairs[18 * number :][:18]])
        assert set(batch.robots) == {"arm", "person"}
        expect_equal(batch.inputs, together.inputs)
        expect_equal(batch.targets, together.targets)
    assert sampler.order.length == len(pairs) == 36


def test_samples_that_do_not_fit_the_model_are_refused(arm: Recorded, processor: Processor) -> None:
    with pytest.raises(ValueError, match=r"samples: expected frames of t-15, t and t\+15, got 1 time"):
        Collator(processor)([arm.prepared(offsets=(0,))[0]])
    assert pickle.loads(pickle.dumps(Collator(processor, repeated_history=True))).repeated_history  # noqa: S301


def test_latents_written_on_any_device_have_the_same_names_and_pass_for_each_other(
    whole: dict[str, RobotDataset],
    datasets: dict[str, RobotDataset],
    foresight: Foresight,
    tmp_path: Path,
    device: torch.device,
) -> None:
    elsewhere, dataset = copy.deepcopy(foresight).to(device), whole["arm"]
    there = written(tmp_path, dataset, encode=elsewhere.encode, digest=elsewhere.digest())
    here = datasets["arm"].latents
    assert [shard.key for shard in there.shards] == [shard.key for shard in here.shards]
    opened(tmp_path, dataset, encode=foresight.encode, digest=foresight.digest()).verify()
    ours, theirs = there.read("wrist", 2, range(14)), here.read("wrist", 2, range(14))
    # Convolutions on a GPU may round to TensorFloat-32: 2^-11 a product.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=16 * 2**-11 * theirs.abs().max().item())
