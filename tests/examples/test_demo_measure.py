"""The numbers of the report against closed forms."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "conveyor"))  # the example's files are no package

from measure import LATENT, PIXEL, Success, Tally, changing_latents, changing_pixels
from rollouts import Episode


def episodes(**outcomes: int) -> list[Episode]:
    return [
        Episode(seed, "", outcome.replace("_", " "), steps=10 + seed)
        for outcome, count in outcomes.items()
        for seed in range(count)
    ]


def test_success_counts_outcomes_and_takes_wilsons_interval() -> None:
    found = Success.of(episodes(success=8, wrong_block=1, time=1))
    assert found.rate == 0.8
    assert found.outcomes == {"success": 8, "wrong block": 1, "time": 1}
    assert found.mean_steps == 13.5  # of the successes: 10 to 17
    # Wilson 1927 for 8 of 10 at z = 1.96, worked out by hand: (0.8 + 0.19208 ± 0.30426) / 1.38416
    assert found.low == pytest.approx(0.49016, abs=2e-4)
    assert found.high == pytest.approx(0.94330, abs=2e-4)


def test_success_is_clearly_above_only_if_the_intervals_do_not_overlap() -> None:
    low, middle, high = (Success.of(episodes(success=n, time=40 - n)) for n in (1, 12, 20))
    assert high.clearly_above(low)
    assert not high.clearly_above(middle)
    assert not low.clearly_above(high)


def test_without_a_success_there_is_no_mean_time() -> None:
    found = Success.of(episodes(time=3))
    assert found.mean_steps is None
    assert found.low == 0


@pytest.mark.parametrize(("share", "ratio"), [(0.0, 1.0), (0.5, 0.25), (1.0, 0.0)])
def test_going_a_share_of_the_way_leaves_the_square_of_the_rest(share: float, ratio: float) -> None:
    torch.manual_seed(0)
    now, future = torch.rand(2, 4, 3, 3, 8, 8).unbind(0)
    tally = Tally()
    for part in ([0, 1, 2], [3]):
        predicted = now[part] + share * (future[part] - now[part])
        tally.add(changing_pixels(now[part], future[part]), now[part], future[part], predicted, future[part])
    errors = tally.errors()
    assert errors.ratio == pytest.approx(ratio, abs=1e-6)
    assert errors.copied == 0
    changing = ((future - now).abs() > PIXEL).any(2)
    assert errors.changing == pytest.approx(changing.float().mean().item())
    assert errors.nothing_moves == pytest.approx((future - now).square().mean(2)[changing].mean().item(), rel=1e-5)


def test_what_stands_still_is_not_counted() -> None:
    now = torch.zeros(1, 3, 4, 4)
    future = now.clone()
    future[0, 1, 2, 3] = 1.0
    predicted = torch.full_like(now, 0.5)  # wrong everywhere, but only one pixel changes
    tally = Tally()
    tally.add(changing_pixels(now, future), now, future, predicted, future)
    assert tally.errors().predicted == pytest.approx(0.25)
    assert tally.errors().nothing_moves == pytest.approx(1 / 3)
    assert tally.errors().changing == pytest.approx(1 / 16)


def test_a_latent_changes_when_its_mean_square_difference_exceeds_the_threshold() -> None:
    now = torch.zeros(1, 4, 1, 2)
    future = now.clone()
    future[0, 0, 0, 0], future[0, 0, 0, 1] = (4 * LATENT) ** 0.5 * 1.01, (4 * LATENT) ** 0.5 * 0.99
    assert changing_latents(now, future).tolist() == [[[True, False]]]
