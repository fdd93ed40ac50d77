"""Weights of training mixtures: the published one of InternVLA-A1, and weights per dataset from weights per corpus."""

import math
from collections.abc import Mapping
from typing import NamedTuple


class Corpus(NamedTuple):
    """One row of a mixture table; see `paper_mixture`."""

    name: str
    frames: int
    weight: float
    has_actions: bool


def paper_mixture() -> tuple[Corpus, ...]:
    """Pre-training mixture of InternVLA-A1 (paper, Table 3): 692 million frames.

    Returns:
        For each corpus a named tuple: `name`, `frames` (its size), `weight` (probability that a training sample comes
            from it), `has_actions` (False for human video, which trains foresight only).

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
    """Spread the weight of each corpus over its datasets, by size.

    Within a corpus, a dataset's weight is proportional to its size to the power `exponent`: with 1 every frame of the
    corpus is equally likely, with 0 every dataset; values between favour small datasets a little.

    Args:
        weights: Weight of each corpus.
        members: For each corpus the sizes of its datasets by name; a dataset is in one corpus only.
        exponent: Power of the size.

    Returns:
        Weight of each dataset, for `WeightedOrder`, which refuses weights that are not positive and finite.

    Raises:
        ValueError: `weights` and `members` have different corpora, a corpus has no datasets, a dataset is in two, or a
            size is not positive and finite.

    Examples:
        >>> spread_weights({"robots": 0.75, "video": 0.25}, {"robots": {"a": 2, "b": 1}, "video": {"c": 9}})
        {'a': 0.5, 'b': 0.25, 'c': 0.25}
    """
    if set(weights) != set(members):
        raise ValueError(f"members: expected the corpora {sorted(weights)}, got {sorted(members)}")
    result: dict[str, float] = {}
    for corpus, sizes in members.items():
        if not sizes or result.keys() & sizes.keys():
            raise ValueError(
                f"members: expected datasets of its own for {corpus!r}, "
                f"got {sorted(result.keys() & sizes.keys()) or 'none'}"
            )
        if not all(0 < size < math.inf for size in sizes.values()):
            raise ValueError(f"members: expected positive finite sizes in {corpus!r}, got {dict(sizes)}")
        # Relative to the size that counts most, so that no power overflows.
        most = max(sizes.values()) if exponent > 0 else min(sizes.values())
        powers = {name: (size / most) ** exponent for name, size in sizes.items()}
        total = math.fsum(powers.values())
        result |= {name: weights[corpus] * power / total for name, power in powers.items()}
    return result
