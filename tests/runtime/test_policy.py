"""A policy: what a robot has goes in, what it needs comes out."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from toy_model import randomised, toy_config
from transformers import PreTrainedTokenizerFast

from moteur.data import FieldStatistics, Robot, RobotStatistics, RobotTransform, Source, Window
from moteur.recipes import InternVLAA1, Processor, dump_transforms
from moteur.runtime import InferenceSession, Policy

STATE = np.array([0.2, -0.4, 1.5])
ROBOT = Robot(
    name="toy",
    state=(Source("observation.state", 3),),
    action=(Source("action", 3),),
    cameras=("observation.images.front", None, "observation.images.wrist"),
    relative=(2, -1),
    joints=("lift", "turn", "grip"),
    rate=10,
)


def statistics(chunk: int) -> RobotStatistics:
    state = FieldStatistics(9, mean=(0.1, -0.2, 1.0), std=(0.5, 0.6, 0.7), min=(-1.0, -1.0, -1.0), max=(1.0, 1.0, 2.0))
    action = FieldStatistics(9, mean=(0.0, 0.1, 1.2), std=(0.2, 0.3, 0.4), min=(-1.0, -1.0, -1.0), max=(1.0, 1.0, 2.0))
    return RobotStatistics("toy", chunk, state, action)


def words() -> PreTrainedTokenizerFast:
    vocabulary = ["<pad>", "<start>", "<end>", "<image>", "<unk>", "fold", "the", "towel"]
    text = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="<unk>"))  # noqa: S106
    text.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=text, unk_token="<unk>")  # noqa: S106


@pytest.fixture(scope="module")
def model() -> InternVLAA1:
    return randomised(toy_config(), decoder=True)


@pytest.fixture(scope="module")
def transform(model: InternVLAA1) -> RobotTransform:
    return model.config.transform(ROBOT, statistics(model.config.chunk))


@pytest.fixture
def policy(model: InternVLAA1, transform: RobotTransform) -> Policy:
    return Policy(InferenceSession(model, kernel="aten"), words(), transform)


def camera(seed: int, height: int = 24, width: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def by_hand(
    model: InternVLAA1, transform: RobotTransform, before: list[np.ndarray], now: list[np.ndarray], state: np.ndarray
) -> np.ndarray:
    """The commands, computed from the recipe's parts without a session or a policy."""
    views: list[torch.Tensor | None] = [
        transform.resize(torch.from_numpy(np.stack(pair)).movedim(-1, 1))[None]
        for pair in zip(before, now, strict=True)
    ]
    views.insert(1, None)
    inputs = Processor(model.config, words())(views, transform.state(state)[None, :3], ["fold the towel"])
    actions = model.act(inputs, generator=seeded())[0]
    real = actions[:, :3].double() * torch.tensor([0.2, 0.3, 0.4]) + torch.tensor([0.0, 0.1, 1.2])
    real = real + 1e-6 * actions[:, :3]
    return (real + torch.tensor([*state[:2], 0.0])).numpy()


def test_commands_are_those_of_the_parts_put_together_by_hand(
    model: InternVLAA1, transform: RobotTransform, policy: Policy
) -> None:
    pictures = [[camera(2 * step), camera(2 * step + 1)] for step in range(20)]
    for step in range(20):
        chunk = policy.act(pictures[step], STATE + step / 50, "fold the towel", generator=seeded())
        expected = by_hand(model, transform, pictures[max(0, step - 15)], pictures[step], STATE + step / 50)
        np.testing.assert_allclose(chunk.actions, expected, rtol=0, atol=1e-5)
        assert (chunk.step, chunk.names, chunk.rate) == (step, ("lift", "turn", "grip"), 10)
        assert chunk.actions.dtype == np.float32
        assert np.asarray(chunk).shape == (model.config.chunk, 3)
    policy.reset()
    chunk = policy.act(pictures[7], STATE, "fold the towel", generator=seeded())
    np.testing.assert_allclose(chunk, by_hand(model, transform, pictures[7], pictures[7], STATE), rtol=0, atol=1e-5)
    assert chunk.step == 0


def test_steps_in_between_may_be_shown_or_counted(model: InternVLAA1, transform: RobotTransform) -> None:
    pictures = [[camera(2 * step), camera(2 * step + 1)] for step in range(31)]
    shown, counted = (Policy(InferenceSession(model, kernel="aten"), words(), transform) for _ in range(2))
    for step in range(31):
        if step % 15:
            shown.observe(pictures[step])
            continue
        one = shown.act(pictures[step], STATE, "fold the towel", generator=seeded())
        other = counted.act(pictures[step], STATE, "fold the towel", generator=seeded(), step=step)
        expected = by_hand(model, transform, pictures[max(0, step - 15)], pictures[step], STATE)
        np.testing.assert_allclose(one.actions, expected, rtol=0, atol=1e-5)
        assert np.array_equal(one.actions, other.actions)
        assert one.step == other.step == step


def test_pictures_come_as_they_are(policy: Policy) -> None:
    front, wrist = camera(1), camera(2, 32, 32)
    forms: list[Any] = [
        [front, wrist],
        {"front": front, "wrist": wrist},
        {"observation.images.wrist": wrist, "observation.images.front": front},
        {"front": Image.fromarray(front), "wrist": Image.fromarray(wrist)},
        {"front": torch.from_numpy(front).movedim(-1, 0), "wrist": torch.from_numpy(wrist)},
        {"front": front[:, ::-1][:, ::-1], "wrist": wrist},  # a view with negative strides
    ]
    found = []
    for pictures in forms:
        policy.reset()
        found.append(policy.act(pictures, STATE, "fold the towel", generator=seeded()).actions)
    assert all(np.array_equal(found[0], other) for other in found[1:])
    policy.reset()
    floats = {"front": front / np.float32(255), "wrist": wrist / np.float32(255)}
    chunk = policy.act(floats, torch.tensor(STATE), "fold the towel", generator=seeded())
    np.testing.assert_allclose(chunk.actions, found[0], rtol=0, atol=0.02)  # resized floats are not rounded to bytes


def test_a_batch_is_its_samples(model: InternVLAA1, policy: Policy, transform: RobotTransform) -> None:
    fronts, wrists = (np.stack([camera(seed), camera(seed + 1)]) for seed in (1, 3))
    states = np.stack([STATE, STATE / 2])
    sentences = ["fold the towel", "fold"]
    chunk = policy.act([fronts, wrists], states, sentences, generator=seeded())
    assert chunk.actions.shape == (2, model.config.chunk, 3)
    noise = torch.randn(2, model.config.chunk, model.config.action_dim, generator=seeded())
    for sample in range(2):
        single = Policy(InferenceSession(model, kernel="aten"), words(), transform)
        pictures = [fronts[sample], wrists[sample]]
        alone = single.act(pictures, states[sample], sentences[sample], noise=noise[sample])
        np.testing.assert_allclose(chunk.actions[sample], alone.actions, rtol=0, atol=1e-5)


def test_a_batch_may_be_a_list_of_pictures_of_each_camera(policy: Policy) -> None:
    fronts, wrists = (np.stack([camera(seed), camera(seed + 1)]) for seed in (1, 3))
    states, sentences = np.stack([STATE, STATE / 2]), ["fold the towel", "fold"]
    expected = policy.act([fronts, wrists], states, sentences, generator=seeded()).actions
    for kind in (Image.fromarray, np.asarray, torch.tensor):
        policy.reset()
        lists = [[kind(picture) for picture in camera] for camera in (fronts, wrists)]
        assert np.array_equal(policy.act(lists, states, sentences, generator=seeded()).actions, expected)


def test_a_checkpoint_brings_all_that_acting_needs(
    model: InternVLAA1, transform: RobotTransform, policy: Policy, tmp_path: Path
) -> None:
    pictures = [camera(1), camera(2)]
    expected = policy.act(pictures, STATE, "fold the towel", generator=seeded()).actions
    model.statistics = dump_transforms(transform)
    model.save_pretrained(tmp_path / "toy", tokenizer=words())
    loaded = Policy.from_pretrained(str(tmp_path / "toy"), session={"kernel": "aten"})
    assert np.array_equal(loaded.act(pictures, STATE, "fold the towel", generator=seeded()).actions, expected)
    assert "observation.images.front" in repr(loaded)
    other = Robot(**{**vars(ROBOT), "name": "other"})
    model.statistics = dump_transforms(
        transform, model.config.transform(other, replace(statistics(model.config.chunk), robot="other"))
    )
    model.save_pretrained(tmp_path / "two", tokenizer=words())
    with pytest.raises(ValueError, match=r"robot: expected one of \['other', 'toy'\] of .*two, got None"):
        Policy.from_pretrained(tmp_path / "two")
    with pytest.raises(ValueError, match=r"robot: expected one of \['other', 'toy'\] of .*two, got 'spot'"):
        Policy.from_pretrained(tmp_path / "two", robot="spot")
    assert Policy.from_pretrained(tmp_path / "two", robot="other").robot == other
    model.statistics = {}
    model.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"expected a text tokenizer, got none; .*Qwen/Qwen3-VL-2B-Instruct"):
        Policy.from_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="it holds no statistics, give transform="):
        Policy.from_pretrained(tmp_path / "bare", tokenizer=words())
    again = Policy.from_pretrained(
        tmp_path / "bare", tokenizer=words(), transform=transform, session={"kernel": "aten"}
    )
    assert np.array_equal(again.act(pictures, STATE, "fold the towel", generator=seeded()).actions, expected)


def test_it_imagines_pictures_by_camera_without_counting_a_step(
    model: InternVLAA1, transform: RobotTransform, policy: Policy
) -> None:
    pictures = [[camera(2 * step), camera(2 * step + 1)] for step in range(3)]
    policy.act(pictures[0], STATE, "fold the towel", generator=seeded())
    imagined = policy.imagine(pictures[1], "fold the towel")
    again = policy.imagine(pictures[0], "fold the towel", step=0)
    for found, (before, now) in ((imagined, (0, 1)), (again, (0, 0))):
        views: list[torch.Tensor | None] = [
            transform.resize(torch.from_numpy(np.stack(pair)).movedim(-1, 1))[None]
            for pair in zip(pictures[before], pictures[now], strict=True)
        ]
        views.insert(1, None)
        inputs = Processor(model.config, words())(views, torch.zeros(1, 3), ["fold the towel"])
        expected = model.imagine(inputs, decode=True).images
        assert set(found) == {"observation.images.front", "observation.images.wrist"}
        for view, name in ((0, "observation.images.front"), (2, "observation.images.wrist")):
            np.testing.assert_allclose(found[name], expected[0, view].permute(1, 2, 0), rtol=0, atol=1e-4)
    assert policy.act(pictures[1], STATE, "fold the towel").step == 1


def test_what_is_missing_far_or_unknown_is_said_once_an_episode(policy: Policy) -> None:
    far = np.array([0.2, 40.0, 1.0])
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            policy.act({"front": camera(1)}, far, "fold the serviette")
        said = sorted(str(warning.message) for warning in caught)
        assert [message.split(" ")[0] for message in said] == ["instruction:", "pictures:", "state:"]
        assert "does not know 'serviette'" in said[0]
        assert "'observation.images.wrist' is missing" in said[1]
        assert "observation.state[1] is 40, in training it was between -1 and 1" in said[2]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            policy.act({"front": camera(2)}, far, "fold the serviette")
        policy.reset()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pictures": {"top": camera(1)}}, r"pictures: expected cameras of \['front', 'wrist'\], got \['top'\]"),
        ({"pictures": [camera(1)]}, r"pictures: expected 2, of \[.*front.*wrist.*\] in order, got 1"),
        ({"pictures": {}}, "pictures: expected at least one of the cameras"),
        ({"pictures": {"front": camera(1)[:, :, :2]}}, r"pictures\['observation.images.front'\]: expected 3 channels"),
        (
            {"pictures": {"front": np.zeros((24, 40))}},
            r"pictures\['observation.images.front'\]: expected \(height, width",
        ),
        ({"pictures": {"front": "front.png"}}, "a PIL image or a list of them, got str"),
        (
            {"pictures": {"front": camera(1).astype(int)}},
            r"pictures\['observation.images.front'\]: expected uint8 or floats",
        ),
        ({"pictures": {"front": camera(1) / 1.0}}, r"expected floats in \[0, 1\], got floats in \[0, 255\]"),
        (
            {"pictures": {"front": np.zeros((0, 64, 3))}},
            r"\['observation.images.front'\]: expected a picture with pixels",
        ),
        (
            {"pictures": {"front": camera(1), "observation.images.front": camera(2)}},
            "pictures: expected each camera once",
        ),
        ({"pictures": {"front": []}}, "expected pictures of one size and number format, got"),
        ({"pictures": {"front": [camera(1), camera(1)[1:]]}}, "expected pictures of one size and number format, got"),
        ({"instruction": None}, "instruction: expected a sentence, or one for each sample, got None"),
        ({"instruction": [3]}, r"instruction: expected a sentence, or one for each sample, got \[3\]"),
        ({"state": [0.1, 0.2]}, "state: expected the 3 dimensions of robot 'toy'"),
        ({"state": [0.1, np.nan, 0.2]}, "state: expected finite numbers, got nan as dimension 1"),
        ({"instruction": ""}, r"instructions\[0\]: expected 1 to 5 tokens, got 0"),
        ({"instruction": ["fold", "the"]}, r"instructions: expected a list of 1, one a sample"),
        ({"step": -1}, "step: expected 0 or later, got -1"),
        ({"noise": torch.full((4, 5), torch.nan)}, "noise: expected finite values"),
    ],
)
@pytest.mark.filterwarnings("ignore:pictures. camera")
@pytest.mark.usefixtures("without_shape_checks")  # which would refuse other dtypes first
def test_what_does_not_fit_is_refused_by_name_and_counts_no_step(
    policy: Policy, change: dict[str, Any], message: str
) -> None:
    right = {"pictures": {"front": camera(1)}, "state": STATE, "instruction": "fold the towel"}
    with pytest.raises(ValueError, match=message):
        policy.act(**{**right, **change})
    assert policy.act(**right).step == 0


def test_a_transform_of_another_model_is_refused(model: InternVLAA1) -> None:
    session, known = InferenceSession(model, kernel="aten"), statistics(model.config.chunk)
    arms = Robot(**{**vars(ROBOT), "state": (Source("observation.state", 4),)})
    wide = FieldStatistics(9, mean=(0.0,) * 4, std=(1.0,) * 4, min=(-1.0,) * 4, max=(1.0,) * 4)
    wrong = [
        (RobotTransform(ROBOT, known, size=16, dims=5), "transform: expected size 32 as the model has, got 16"),
        (
            RobotTransform(ROBOT, known, size=32, dims=5, window=Window(offsets=(-5, 0, 5), chunk=known.chunk)),
            r"transform: expected frames 15 apart as the model has, got \(-5, 0, 5\)",
        ),
        (
            RobotTransform(arms, replace(known, state=wide), size=32, dims=5),
            "state_dim: expected at least 4 for robot 'toy', got 3",
        ),
    ]
    for transform, message in wrong:
        with pytest.raises(ValueError, match=message):
            Policy(session, words(), transform)


def test_a_far_state_is_named_with_its_own_value_in_a_batch(policy: Policy) -> None:
    pictures = [np.stack([camera(1)] * 2), np.stack([camera(2)] * 2)]
    with pytest.warns(UserWarning, match=r"observation.state\[1\] is 50, in training it was between -1 and 1"):
        policy.act(pictures, np.array([[0.0, 0.0, 1.0], [0.0, 50.0, 1.0]]), "fold")


def test_the_noise_that_a_chunk_starts_from_may_be_given(policy: Policy) -> None:
    shape = (policy.session.config.chunk, policy.session.config.action_dim)
    noise, pictures, text = torch.randn(shape, generator=seeded()), [camera(0), camera(1)], "fold the towel"
    drawn = policy.act(pictures, STATE, text, generator=seeded())  # a batch of one draws the same numbers
    policy.reset()
    np.testing.assert_array_equal(policy.act(pictures, STATE, text, noise=noise).actions, drawn.actions)
    policy.reset()
    batch = policy.act([picture[None] for picture in pictures], STATE[None], [text], noise=noise[None])
    np.testing.assert_array_equal(batch.actions[0], drawn.actions)
