"""The raw door: what arrives at the model, and what is refused before it gets there."""

from dataclasses import replace

import pytest
import torch
from einops import repeat
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from moteur.data.images import as_unit_range, resize_with_pad
from moteur.recipes import InternVLAA1Config, Observation, Processor, preset
from moteur.recipes.internvla_a1 import InternVLAA1

WORDS = ["<pad>", "<start>", "<end>", "<image>", "<unk>", "put", "the", "red", "block", "away"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))  # noqa: S106 - a token of text
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words)


@pytest.fixture(scope="module")
def processor(toy: InternVLAA1Config, tokenizer: PreTrainedTokenizerFast) -> Processor:
    return Processor(toy, tokenizer)


def frames(batch: int = 2, times: int = 2, height: int = 24, width: int = 32, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, times, 3, height, width), dtype=torch.uint8, generator=draw)


def observation(**change: object) -> Observation:
    values = {
        "frames": [frames(seed=view) for view in range(3)],
        "state": torch.randn(2, 3),
        "instructions": ["put the red block away", "the block"],
    }
    return Observation(**(values | change))


def test_published_settings_give_64_tokens_a_view_and_246_in_all(tokenizer: PreTrainedTokenizerFast) -> None:
    config = preset("3B")
    views = [frames(1, 2, 480, 640), frames(1, 2, 224, 224), None]
    inputs = Processor(config, tokenizer)(Observation(views, torch.randn(1, 14), ["put the red block away"]))
    assert inputs.image_grid == ((16, 16),) * 3
    assert inputs.pixel_values.shape == (1, 3 * 256, 3 * 2 * 16 * 16)
    ids = config.token_ids
    view = [ids.vision_start, *[ids.image] * 64, ids.vision_end]
    assert inputs.input_ids.tolist() == [view * 3 + [5, 6, 7, 8, 9] + [ids.pad] * 43]
    assert inputs.input_ids.shape == (1, 246)
    assert inputs.und_valid.tolist() == [[True] * 132 + [False] * 66 + [True] * 5 + [False] * 43]
    assert inputs.view_valid.tolist() == [[True, True, False]]
    assert inputs.frames.shape == (1, 3, 2, 3, 224, 224)
    assert inputs.state.shape == (1, 32)
    assert inputs.state[0, 14:].eq(0).all()


def test_patches_hold_the_pixels_of_the_current_frame_in_merge_order(
    toy: InternVLAA1Config, processor: Processor
) -> None:
    views = [frames(2, 2, 32, 32, seed=view) for view in range(3)]
    inputs = processor(observation(frames=views))
    patch, merge = toy.vision.patch, toy.vision.merge
    now = torch.stack([view[:, 1] for view in views], dim=1) / 255 * 2 - 1  # batch view channel height width
    expected = []
    for view in range(3):
        for block_row in range(2):
            for block_column in range(2):
                for row in range(merge):
                    for column in range(merge):
                        top, left = (block_row * merge + row) * patch, (block_column * merge + column) * patch
                        square = now[:, view, :, None, top : top + patch, left : left + patch]
                        expected.append(square.expand(-1, -1, toy.vision.patch_frames, -1, -1).flatten(1))
    torch.testing.assert_close(inputs.pixel_values, torch.stack(expected, dim=1), rtol=0, atol=1e-6)


def test_uint8_and_unit_floats_are_the_same_observation(processor: Processor) -> None:
    bytes_, floats = processor(observation()), processor(observation(frames=[frames(seed=v) / 255 for v in range(3)]))
    assert torch.equal(bytes_.frames, floats.frames)
    assert torch.equal(bytes_.pixel_values, floats.pixel_values)


def test_resizing_keeps_the_aspect_ratio_and_pads_evenly_with_black() -> None:
    padded = resize_with_pad(torch.ones(2, 3, 30, 40), 16)
    assert padded.shape == (2, 3, 16, 16)
    assert padded[..., 2:14, :].eq(1).all()
    assert padded[..., :2, :].eq(0).all()
    assert padded[..., 14:, :].eq(0).all()
    tall = resize_with_pad(torch.ones(3, 40, 30), 16)
    assert torch.equal(tall, padded[0].transpose(-1, -2))
    ramp = torch.linspace(0, 1, 8).expand(3, 8, 8)
    assert torch.equal(resize_with_pad(ramp, 8), ramp)
    halves = resize_with_pad(ramp, 4)  # without antialiasing a halved bilinear image averages pairs of neighbours
    torch.testing.assert_close(halves, ramp.unflatten(2, (4, 2)).mean(3)[:, ::2])


def test_a_camera_can_be_missing_for_all_or_for_some(processor: Processor) -> None:
    valid = torch.tensor([[True, True, True], [True, True, False]])
    inputs = processor(observation(frames=[None, frames(), frames()], view_valid=valid))
    assert inputs.view_valid.tolist() == [[False, True, True], [False, True, False]]
    length = inputs.und_valid.shape[1] // 3
    assert not inputs.und_valid[:, : 4 + 2].any()
    assert length > 0
    assert inputs.frames[:, 0].eq(1).all()


def test_the_raw_door_leads_to_the_same_actions_as_the_processed_one(
    model: InternVLAA1, toy: InternVLAA1Config, processor: Processor
) -> None:
    seen = observation()
    together = model.act(processor(seen), noise=torch.zeros(2, toy.chunk, toy.action_dim))
    assert together.shape == (2, toy.chunk, toy.action_dim)
    alone = Observation([view[1:] for view in seen.frames], seen.state[1:], ["the block"])
    torch.testing.assert_close(
        model.act(processor(alone), noise=torch.zeros(1, toy.chunk, toy.action_dim)), together[1:], rtol=0, atol=1e-5
    )


def test_targets_are_padded_and_say_which_dimensions_are_real(processor: Processor) -> None:
    actions = torch.randn(2, 4, 3)
    targets = processor.targets(actions, future=[frames(times=1), None, frames(times=1)])
    assert torch.equal(targets.actions[..., :3], actions)
    assert targets.actions[..., 3:].eq(0).all()
    assert targets.valid_dims.tolist() == [[True] * 3 + [False] * 2] * 2
    assert targets.future_frames.shape == (2, 3, 3, 32, 32)


def test_robots_of_different_width_share_a_batch(processor: Processor) -> None:
    own = torch.tensor([[True, True, True, False], [True, True, True, True]])
    targets = processor.targets(torch.randn(2, 4, 4), valid_dims=own)
    assert targets.valid_dims.tolist() == [[True] * 3 + [False] * 2, [True] * 4 + [False]]


@pytest.mark.parametrize(
    ("name", "mask", "pattern"),
    [
        ("valid_steps", [[True, True, True, False], [True, False, False, False]], "batch step -> batch step 3"),
        ("valid_dims", [[True, True, False], [True, False, False]], "batch dim -> batch 4 dim"),
        ("valid_samples", [True, False], "batch -> batch 4 3"),
    ],
)
def test_actions_that_are_not_real_may_hold_anything(processor: Processor, name: str, mask: list, pattern: str) -> None:
    real, actions = repeat(torch.tensor(mask), pattern), torch.randn(2, 4, 3)
    broken = torch.where(real, actions, torch.nan)
    targets = processor.targets(broken, **{name: torch.tensor(mask)})
    assert torch.equal(targets.actions[..., :3], torch.where(real, actions, 0))
    with pytest.raises(ValueError, match=f"actions: expected finite values, got {int((~real).sum())} that are not"):
        processor.targets(broken)


def test_a_camera_without_a_future_frame_teaches_no_foresight(
    model: InternVLAA1, toy: InternVLAA1Config, processor: Processor
) -> None:
    inputs, actions = processor(observation()), torch.randn(2, toy.chunk, 3)
    future, noise, tau = [frames(times=1, seed=5), frames(times=1, seed=6)], torch.zeros(2, 4, 5), torch.rand(2)
    without = processor.targets(actions, future=[*future, None])
    assert without.valid_future.tolist() == [[True, True, False]] * 2
    past = torch.tensor([[True, True, True], [False, True, True]])
    assert processor.targets(actions, future=[*future, None], valid_future=past).valid_future.tolist() == [
        [True, True, False],
        [False, True, False],
    ]
    whole = processor.targets(actions, future=[*future, frames(times=1, seed=7)])
    masked = replace(whole, valid_future=without.valid_future)
    losses = [model.loss(inputs, targets, noise=noise, tau=tau).foresight for targets in (without, masked)]
    assert torch.equal(*losses)


def test_numbers_of_any_float_format_are_taken(processor: Processor) -> None:
    seen = observation()
    wide = Observation([view.double() / 255 for view in seen.frames], seen.state.double(), seen.instructions)
    inputs = processor(wide)
    assert inputs.state.dtype == inputs.frames.dtype == inputs.pixel_values.dtype == torch.float32
    torch.testing.assert_close(inputs.pixel_values, processor(seen).pixel_values)


def nan_state() -> torch.Tensor:
    return torch.tensor([[0.0, float("nan")], [1.0, 2.0]])


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": [frames(), frames()]}, r"frames: expected 3 views, got 2"),
        (
            {"frames": [frames()[:1], frames(), frames()]},
            r"frames\[0\]: expected batch 2 and 2 time\(s\), got \(1, 2\)",
        ),
        ({"frames": [frames(times=3), None, None]}, r"frames\[0\]: expected batch 2 and 2 time\(s\), got \(2, 3\)"),
        ({"frames": [None, frames().float(), None]}, r"frames\[1\]: expected floats in \[0, 1\] or uint8, got .*255"),
        ({"frames": [None, frames() / 255 - 1, None]}, r"frames\[1\]: expected floats in \[0, 1\] or uint8, got .*-1"),
        ({"frames": [None, frames() / 255 * float("nan"), None]}, r"frames\[1\]: .*nan"),
        ({"frames": [None, frames().int(), None]}, r"frames\[1\]: expected uint8 or floats, got torch.int32"),
        ({"frames": [None, frames()[:, :, :1], None]}, r"frames\[1\]: .*3 channels.*got 1"),
        ({"state": nan_state()}, r"state: expected finite values, got 1 that are not"),
        ({"state": torch.zeros(3)}, r"state: expected floats of axes \('batch', 'dimension'\), got .* shape \(3,\)"),
        ({"state": torch.zeros(2, 3, dtype=torch.int64)}, r"state: expected floats .*, got torch.int64"),
        ({"state": torch.zeros(2, 4)}, r"state: expected at most 3 dimensions, got 4"),
        ({"instructions": ["the block"]}, r"instructions: expected 2, one a sample, got 1"),
        ({"instructions": ["the", "put " * 6]}, r"instructions\[1\]: expected at most 5 tokens, got 6"),
        ({"view_valid": torch.ones(2, 2).bool()}, r"view_valid: expected shape \(2, 3\), got \(2, 2\)"),
    ],
)
def test_bad_observations_are_refused_by_name(processor: Processor, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processor(observation(**change))


@pytest.mark.usefixtures("without_shape_checks")
def test_bad_targets_are_refused_by_name(processor: Processor) -> None:
    with pytest.raises(ValueError, match="actions: expected at most 5 dimensions, got 6"):
        processor.targets(torch.zeros(2, 4, 6))
    with pytest.raises(ValueError, match="actions: expected 4 steps, got 3"):
        processor.targets(torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match="actions: expected finite values, got 24 that are not"):
        processor.targets(torch.full((2, 4, 3), float("inf")))
    with pytest.raises(ValueError, match=r"future\[0\]: expected batch 2 and 1 time\(s\), got \(2, 2\)"):
        processor.targets(torch.zeros(2, 4, 3), future=[frames(), None, None])


def test_unit_range_keeps_floats_and_divides_bytes() -> None:
    image = frames()
    assert torch.equal(as_unit_range("x", image), image / 255)
    assert torch.equal(as_unit_range("x", image / 255), image / 255)
