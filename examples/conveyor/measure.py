"""What the report claims, as numbers: success with its interval, and foresight against "nothing moves"."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from demonstrations import Demonstrations
from env import CAMERAS
from expert import wilson
from jaxtyping import Bool, Float
from rollouts import Episode
from torch import Tensor
from tqdm import tqdm

from moteur.recipes import InternVLAA1

PIXEL = 0.1  # a pixel changes if a colour of it moves by more than this share of its range within 15 steps
EVERY = 3  # steps from one measured moment to the next
LATENT = 0.1  # a latent cell changes if the mean square of its change exceeds this, in units of the latents' variance


@dataclass(frozen=True)
class Success:
    """How often the arm did what it was told, with Wilson's 95 % interval."""

    successes: int
    trials: int
    low: float
    high: float
    outcomes: dict[str, int]
    mean_steps: float | None

    @staticmethod
    def of(episodes: Sequence[Episode]) -> "Success":
        """Count the outcomes of these episodes; the mean length is that of the successful ones, if any."""
        outcomes = Counter(str(episode.outcome) for episode in episodes)
        won = [episode.steps for episode in episodes if episode.outcome == "success"]
        low, high = wilson(len(won), len(episodes))
        mean = sum(won) / len(won) if won else None
        return Success(len(won), len(episodes), low, high, dict(outcomes), mean)

    @property
    def rate(self) -> float:
        """Share of successes."""
        return self.successes / self.trials

    def clearly_above(self, other: "Success") -> bool:
        """Whether this interval lies above the other one and they do not overlap."""
        return self.low > other.high


@dataclass(frozen=True)
class Errors:
    """Mean squared errors over what changes, and how much that is.

    Attributes:
        predicted: Of the predicted future.
        nothing_moves: Of taking the present for the future.
        copied: Of the tokenizer's copy of the true future: the least that a prediction through it can reach.
        changing: Share of elements that change.
    """

    predicted: float
    nothing_moves: float
    copied: float
    changing: float

    @property
    def ratio(self) -> float:
        """Predicted error over that of "nothing moves": below 1 the model knows more than that."""
        return self.predicted / self.nothing_moves


def changing_pixels(
    now: Float[Tensor, "*lead 3 height width"], future: Float[Tensor, "*lead 3 height width"]
) -> Bool[Tensor, "*lead height width"]:
    """Where a colour channel, in [0, 1], differs by more than `PIXEL`."""
    return (future - now).abs().amax(dim=-3) > PIXEL


def changing_latents(
    now: Float[Tensor, "*lead channel rows columns"], future: Float[Tensor, "*lead channel rows columns"]
) -> Bool[Tensor, "*lead rows columns"]:
    """Where the mean square difference over channels exceeds `LATENT`."""
    return (future - now).square().mean(dim=-3) > LATENT


class Tally:
    """Sums squared errors over the elements that change, batch by batch."""

    def __init__(self) -> None:
        self.sums = torch.zeros(4, dtype=torch.float64)
        self.size = 0

    def add(self, changing: Tensor, now: Tensor, future: Tensor, predicted: Tensor, copied: Tensor) -> None:
        """Count one batch; the channel axis stands before the last two."""
        errors = [
            (values - future).square().mean(dim=-3)[changing].double().sum() for values in (predicted, now, copied)
        ]
        self.sums += torch.stack([*errors, changing.sum().double()])
        self.size += changing.numel()

    def errors(self) -> Errors:
        """Means over all that changed."""
        predicted, now, copied, count = self.sums.tolist()
        return Errors(predicted / count, now / count, copied / count, count / self.size)


@torch.no_grad()
def foresight_errors(
    model: InternVLAA1, held_out: Demonstrations, *, batch: int = 64, progress: bool = True
) -> dict[str, Errors]:
    """Errors of the predicted t+15 over pixels that change, in all views and in each, and over latents that change.

    Every third moment is taken: neighbours are nearly equal.

    Args:
        model: Predicts.
        held_out: With this model's latents.
        batch: Moments at once.
        progress: Show a progress bar.
    """
    assert model.foresight is not None
    tallies = {name: Tally() for name in ("pixels", "latents", *CAMERAS)}
    parts = held_out.moments(EVERY).split(batch)
    for part in tqdm(parts, desc="foresight", unit="batch", disable=not progress):
        moments = held_out.batch(part)
        before, after = moments.inputs.latents, moments.targets.future_latents
        assert before is not None
        assert after is not None
        before, after = before[:, :, 1].float(), after.float()
        latents = model.imagine(moments.inputs).latents
        now, future = held_out.pair(part)
        predicted, copied = model.foresight.decode(latents), model.foresight.decode(after)
        changing = changing_pixels(now, future)
        tallies["pixels"].add(changing, now, future, predicted, copied)
        for view, name in enumerate(CAMERAS):
            views = (values[:, view] for values in (changing, now, future, predicted, copied))
            tallies[name].add(*views)
        tallies["latents"].add(changing_latents(before, after), before, after, latents, after)
    return {name: tally.errors() for name, tally in tallies.items()}


def as_json(errors: dict[str, Errors]) -> dict[str, dict[str, float]]:
    """Errors with their ratios, ready to be written."""
    return {name: asdict(error) | {"ratio": error.ratio} for name, error in errors.items()}
