"""Each corpus of a mixture weighs in the loss what it was given, however its sets lie on the ranks."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moteur.flowmatch import flow_loss, mean_over
from moteur.sampling import WeightedOrder, paper_mixture, spread_weights

# 116 sets: the video in one piece and few small sets, so that ranks have very different amounts of actions.
SETS = {"InternData-A1": 70, "RoboTwin": 5, "AgiBot-World Beta": 36, "RoboMind": 4, "EgoDex": 1}
GLOBAL_BATCH, STEPS = 1024, 1500
TABLE = {corpus.name: corpus for corpus in paper_mixture()}
WANTED = {name: corpus.weight / 0.92 for name, corpus in TABLE.items() if corpus.has_actions}  # of the action loss


def frames_of_sets() -> dict[str, dict[str, int]]:
    """For each corpus its sets, of sizes that differ as those of real collections do."""
    draw = torch.Generator().manual_seed(1)
    members: dict[str, dict[str, int]] = {}
    for name, count in SETS.items():
        share = torch.randn(count, generator=draw, dtype=torch.float64).mul(1.5).exp()
        sizes = (share / share.sum() * TABLE[name].frames).long().tolist()
        members[name] = {f"{name}/{index}": size for index, size in enumerate(sizes)}
    return members


def corpora_drawn(ranks: int) -> list[Tensor]:
    """For each rank the corpora of its samples, (step, sample), as numbers in the order of the table."""
    members = frames_of_sets()
    weights = spread_weights({name: corpus.weight for name, corpus in TABLE.items()}, members)
    frames = {name: size for sets in members.values() for name, size in sets.items()}
    batch, drawn = GLOBAL_BATCH // ranks, []
    for rank in range(ranks):
        order = WeightedOrder(frames, weights, rank=rank, ranks=ranks, seed=1)
        places, _ = order.draw(0, 0, STEPS * batch)
        corpus = torch.tensor([list(TABLE).index(name.split("/")[0]) for name in order.names])
        drawn.append(corpus[torch.from_numpy(places)].reshape(STEPS, batch))
    return drawn


def parts_of(corpus: int, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Parts of the loss at each step when samples of this corpus err by 1 and all others not at all."""
    has_actions = torch.tensor([row.has_actions for row in TABLE.values()])

    def step(drawn: Tensor) -> tuple[Tensor, Tensor]:
        error = (drawn == corpus).float()[:, None, None]
        return flow_loss(error, torch.zeros_like(error), valid_samples=has_actions[drawn], reduction="parts")

    return torch.vmap(step)(drawn)


@pytest.fixture
def as_one_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor, int], None]:
    """A process group of these ranks, in which the sum over all ranks is known."""

    def group(total: Tensor, ranks: int) -> None:
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda _group: ranks)
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, group: tensor.copy_(total))  # noqa: ARG005

    return group


@pytest.mark.parametrize("ranks", [1, 2, 8, 64])
def test_every_corpus_of_table_3_has_its_weight_in_the_loss_within_three_percent(
    ranks: int, as_one_of: Callable[[Tensor, int], None]
) -> None:
    drawn = corpora_drawn(ranks)
    weight, naive = {}, {}
    for number, name in enumerate(TABLE):
        parts = [parts_of(number, own) for own in drawn]
        as_one_of(torch.stack([count for _, count in parts]).sum(dim=0), ranks)
        # Data parallelism averages over ranks; training averages over steps.
        weight[name] = torch.stack([mean_over(own) for own in parts]).mean().item()
        naive[name] = torch.stack([total / count.clamp(min=1) for total, count in parts]).mean().item()
    assert weight["EgoDex"] == naive["EgoDex"] == 0
    for name, wanted in WANTED.items():
        assert weight[name] == pytest.approx(wanted, rel=0.03)
    if ranks == 8:  # what it is for: RoboMind shares a rank with much video
        assert naive["RoboMind"] / WANTED["RoboMind"] > 1.5
