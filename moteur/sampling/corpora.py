"""Weights of corpora that consist of many datasets, and the published ones of InternVLA-A1."""

import math
from collections.abc import Mapping
from typing import NamedTuple


class Corpus(NamedTuple):
    """One line of a mixture table."""

    name: str
    frames: int
    """Size, in frames."""
    weight: float
    """Probability that a training sample comes from here."""
    has_actions: bool
    """False for human video, which trains foresight only."""


def paper_mixture() -> tuple[Corpus, ...]:
    """Pre-training mixture of InternVLA-A1 (paper, Table 3): 692 million frames.

    Examples:
        >>> table = paper_mixture()
        >>> sum(corpus.frames for corpus in table), round(sum(corpus.weight for corpus in table), 12)
        (692000000, 1.0)
    """
    return (
        Corpus("InternData-A1", 396_000_000, 0.64, has_actions=True),
        Corpus("RoboTwin", 17_000_000, 0.08, has_actions=True),
        Corpus("AgiBot-World Beta", 206_000_000, 0.18, has_actions=True),
        Corpus("RoboMind", 5_000_000, 0.02, has_actions=True),
        Corpus("EgoDex", 68_000_000, 0.08, has_actions=False),
    )


def spread_weights(
    weights: Mapping[str, float], members: Mapping[str, Mapping[str, int]], *, exponent: float = 1.0
) -> dict[str, float]:
    """Weight of each dataset, given the weight of each corpus.

    Within a corpus, datasets are drawn in proportion to size to the power `exponent`: 1 makes every frame of a corpus
    equally likely, 0 every dataset, values between favour the small ones a little.

    Args:
        weights: Weight of each corpus.
        members: For each corpus its datasets' sizes by name; a name may occur once in all.
        exponent: Power of the size.

    Raises:
        ValueError: No corpora, or others in `weights` than in `members`; a weight that is not positive and finite, an
            exponent that is not finite, a corpus without datasets, a size below 1, a dataset in two corpora.

    Examples:
        >>> spread_weights({"robots": 0.75, "video": 0.25}, {"robots": {"a": 2, "b": 1}, "video": {"c": 9}})
        {'a': 0.5, 'b': 0.25, 'c': 0.25}
    """
    _check_corpora(weights, members)
    if not math.isfinite(exponent):
        raise ValueError(f"exponent: expected a finite number, got {exponent}")
    result: dict[str, float] = {}
    for corpus, sizes in members.items():
        if not sizes:
            raise ValueError(f"members: expected at least one dataset in {corpus!r}, got none")
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"members: expected a size of at least 1 for {name!r}, got {size}")
        # Relative to the one that counts most, so that no power overflows.
        most = max(sizes.values()) if exponent > 0 else min(sizes.values())
        powers = {name: (size / most) ** exponent for name, size in sizes.items()}
        total = math.fsum(powers.values())
        for name, power in powers.items():
            if name in result:
                raise ValueError(f"members: expected each dataset in one corpus, got {name!r} in two")
            result[name] = weights[corpus] * power / total
    return result


def _check_corpora(weights: Mapping[str, float], members: Mapping[str, Mapping[str, int]]) -> None:
    if not weights:
        raise ValueError("weights: expected at least one corpus, got none")
    if set(weights) != set(members):
        raise ValueError(f"members: expected the corpora {sorted(weights)}, got {sorted(members)}")
    for corpus, weight in weights.items():
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"weights: expected a positive finite weight for {corpus!r}, got {weight}")
