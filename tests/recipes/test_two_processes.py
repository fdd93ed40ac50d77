"""Two gloo processes, one with video only, against one process with the whole batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_model import randomised, toy_config
from two_ranks import SAMPLES, Batch, gradients, head_loss, part, small_head, train, whole_batch

from moteur.recipes import Losses

# The bar of the project: float32 sums of a few hundred products, in another order.
BAR = {"rtol": 1e-6, "atol": 1e-6}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(train, args=(str(folder),), nprocs=2)
    return [torch.load(Path(folder, f"{rank}.pt"), weights_only=True) for rank in range(2)]


def of_model(batch: Batch) -> tuple[Losses, dict[str, Tensor]]:
    """Losses and gradients of one process without a group."""
    model = randomised(toy_config())
    inputs, targets, noise, time = batch
    losses = model(inputs, targets, noise=noise, time=time)
    losses.total.backward()
    return losses, gradients(model)


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Norm of the difference of two gradients, relative to the second."""
    assert one.keys() == other.keys()
    missed = nn.utils.get_total_norm([one[name] - value for name, value in other.items()])
    return (missed / nn.utils.get_total_norm(list(other.values()))).item()


@pytest.mark.parametrize("how", ["model", "accumulated"])
def test_two_processes_have_the_gradient_of_one(ranks: list[dict[str, Any]], how: str) -> None:
    _, expected = of_model(whole_batch())
    for found in ranks:
        torch.testing.assert_close(found[how], expected, **BAR)
        assert distance(found[how], expected) < 1e-6


def test_a_mean_of_the_means_of_two_processes_would_be_another_gradient() -> None:
    batch, half = whole_batch(), SAMPLES // 2
    (_, expected), (_, one), (_, other) = (of_model(part(batch, *ends)) for ends in ((0, 6), (0, half), (half, 6)))
    assert distance({name: (value + other[name]) / 2 for name, value in one.items()}, expected) > 0.1


def test_the_average_of_the_losses_of_two_processes_is_the_loss_of_one(ranks: list[dict[str, Any]]) -> None:
    losses, _ = of_model(whole_batch())
    for name, expected in losses._asdict().items():
        torch.testing.assert_close((ranks[0]["losses"][name] + ranks[1]["losses"][name]) / 2, expected.detach(), **BAR)
    assert ranks[1]["losses"]["action"] == 0


def test_without_gradients_a_process_evaluates_alone_over_its_own_elements(ranks: list[dict[str, Any]]) -> None:
    losses, _ = of_model(part(whole_batch(), 0, SAMPLES // 2))
    torch.testing.assert_close(ranks[0]["alone"], {name: value.detach() for name, value in losses._asdict().items()})


def test_an_action_head_alone_trains_under_data_parallelism(ranks: list[dict[str, Any]]) -> None:
    head = small_head()
    total, count = head_loss(head, head, whole_batch())
    (total / count).backward()
    for found in ranks:
        torch.testing.assert_close(found["head"], gradients(head), **BAR)
