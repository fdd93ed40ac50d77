"""The closed loop: the policy commands what the model predicts, and arms side by side do not disturb each other."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "conveyor"))  # the example's files are no package

from env import CAMERAS, COLORS, INSTRUCTIONS
from robot import ROBOT, config, text_tokenizer, transform, untrained
from rollouts import rollouts, starting_noise

from moteur.data import FieldStatistics, RobotStatistics
from moteur.recipes import InternVLAA1, Processor
from moteur.runtime import InferenceSession, Policy


def field(seed: int) -> FieldStatistics:
    draw = torch.Generator().manual_seed(seed)
    mean, std = torch.randn(4, generator=draw), torch.rand(4, generator=draw) + 0.5
    return FieldStatistics(0, tuple(mean.tolist()), tuple(std.tolist()), (-9.0,) * 4, (9.0,) * 4)


SHORT, LONG = 1_000_003, 1_000_001  # seeds: the block is out of reach before the time is over, and not
STATISTICS = RobotStatistics(ROBOT.name, config().chunk, field(0), field(1))


def acting(model: InternVLAA1) -> Policy:
    return Policy(InferenceSession(model), text_tokenizer(), transform(model))


def test_a_batch_of_arms_is_commanded_what_the_model_predicts_undone_by_hand() -> None:
    model, draw = untrained(STATISTICS), np.random.default_rng(0)
    before, now = draw.integers(0, 256, (2, 3, 3, 64, 64, 3), dtype=np.uint8)  # time, view, batch, ...
    state = draw.uniform(-1, 1, (3, 4)).astype(np.float32)
    texts = [INSTRUCTIONS[place].format(COLORS[place]) for place in range(3)]
    noise = torch.stack([starting_noise((config().chunk, 4), 0, place) for place in range(3)])
    policy = acting(model)
    policy.observe(dict(zip(CAMERAS, before, strict=True)), step=0)
    found = policy.act(dict(zip(CAMERAS, now, strict=True)), state, texts, step=15, noise=noise).actions
    frames = [torch.from_numpy(np.stack(times, axis=1)).movedim(-1, 2) for times in zip(before, now, strict=True)]
    pose, mean, std = (torch.tensor(x) for x in (state, STATISTICS.state.mean, STATISTICS.state.std))
    actions = model.act(Processor(config(), text_tokenizer())(frames, (pose - mean) / (std + 1e-6), texts), noise=noise)
    assert STATISTICS.action is not None
    real = actions * (torch.tensor(STATISTICS.action.std) + 1e-6) + torch.tensor(STATISTICS.action.mean)
    real += torch.tensor([1.0, 1.0, 1.0, 0.0]) * pose[:, None]  # places relative to the arm, the gap as it is
    torch.testing.assert_close(torch.from_numpy(found), real, rtol=0, atol=1e-5)


class Still:
    """A policy that commands each arm to stay where it is, and notes what it is asked."""

    session = SimpleNamespace(config=config(), model=SimpleNamespace(foresight=True), history=SimpleNamespace(reach=15))

    def __init__(self) -> None:
        self.acted: list[tuple[int, list[str], torch.Tensor]] = []
        self.observed: list[int] = []
        self.overhead: dict[int, np.ndarray] = {}

    def reset(self) -> None:
        pass

    def observe(self, pictures: dict[str, np.ndarray], *, step: int) -> None:
        self.observed.append(step)
        self.overhead[step] = pictures["overhead"]

    def act(
        self, pictures: dict[str, np.ndarray], state: np.ndarray, texts: list[str], *, step: int, noise: torch.Tensor
    ) -> SimpleNamespace:
        self.acted.append((step, texts, noise))
        self.overhead[step] = pictures["overhead"]
        return SimpleNamespace(actions=np.repeat(state[:, None], config().chunk, axis=1))


def test_an_episode_goes_the_same_way_alone_and_beside_one_that_ends_earlier() -> None:
    seeds, policies = (SHORT, LONG), [Still() for _ in range(3)]
    alone = [
        rollouts(policy, [seed], execute=30, progress=False)[0] for policy, seed in zip(policies, seeds, strict=False)
    ]
    beside = rollouts(policies[2], seeds, execute=30, together=2, progress=False)
    assert [episode.outcome for episode in beside] == ["lost", "time"]
    assert beside == alone
    acted = policies[2].acted
    assert [step for step, _, _ in acted] == [0, 30, 60, 90, 120]
    assert policies[2].observed == [15, 45, 75, 105, 135]  # the frames of t-15 that later calls look at
    for step, texts, noise in acted:
        assert texts == [episode.instruction for episode in alone]
        assert torch.equal(noise, torch.stack([starting_noise((config().chunk, 4), 0, seed, step) for seed in seeds]))
    for place, policy in enumerate(policies[:2]):
        for step, seen in policy.overhead.items():
            np.testing.assert_array_equal(policies[2].overhead[step][place], seen[0])
