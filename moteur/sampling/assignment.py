"""What an assignment of datasets to workers looks like."""

from dataclasses import dataclass
from typing import NamedTuple

_ROWS, _BAR = 16, 40


class Share(NamedTuple):
    """One worker's part in one dataset."""

    dataset: str
    """Name of the dataset."""
    replica: int
    """Which replica this is, from 0; 0 where the dataset has only one."""
    replicas: int
    """How many workers hold the dataset. Each is expected to do 1 / `replicas` of its work."""
    seed: int
    """Seed for whatever this worker does at random with the dataset; no two replicas share one."""


@dataclass(frozen=True, repr=False)
class Assignment:
    """Which worker holds which datasets.

    Attributes:
        shares: For each worker its shares, largest dataset first.
        loads: For each worker the sum of size / replicas over its shares, in the units of the sizes.

    `print(assignment)` shows the loads as bars.
    """

    shares: tuple[tuple[Share, ...], ...]
    loads: tuple[float, ...]

    @property
    def workers(self) -> int:
        """Number of workers."""
        return len(self.shares)

    @property
    def imbalance(self) -> float:
        """Heaviest load divided by the mean load: 1 is perfect."""
        return max(self.loads) * self.workers / sum(self.loads)

    def __str__(self) -> str:
        total, heaviest = sum(self.loads), max(self.loads)
        held = sum(map(len, self.shares))
        summary = (
            f"{held} shares over {self.workers} workers; load: lightest {min(self.loads):,.6g}, "
            f"mean {total / self.workers:,.6g}, heaviest {heaviest:,.6g} ({self.imbalance:.4f} of the mean)"
        )
        lines = [summary]
        for worker, (shares, load) in enumerate(zip(self.shares[:_ROWS], self.loads[:_ROWS], strict=True)):
            names = ", ".join(
                share.dataset if share.replicas == 1 else f"{share.dataset} ({share.replica + 1}/{share.replicas})"
                for share in shares[:3]
            )
            more = f", and {len(shares) - 3} more" if len(shares) > 3 else ""  # noqa: PLR2004 - three names fit a line
            lines.append(f"{worker:5d} {'█' * round(_BAR * load / heaviest):{_BAR}s} {load:>14,.6g}  {names}{more}")
        if self.workers > _ROWS:
            lines.append(f"      ... and {self.workers - _ROWS} more workers")
        return "\n".join(lines)

    __repr__ = __str__
