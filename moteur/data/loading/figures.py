"""How fast samples come, and how long the training step waits for them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Figures:
    """What a stretch of training cost.

    Attributes:
        samples: Samples handed out.
        seconds: Time from asking for the first batch to receiving the last: waiting, and the training steps between.
        waited: The part of it in which the training step stood still because no batch was ready.

    Examples:
        >>> print(Figures(samples=640, seconds=10.0, waited=0.5))
        64.0 samples/s, 5.0 % of the time waiting for data
    """

    samples: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    @property
    def samples_per_second(self) -> float:
        """Samples handed out in a second; 0 before the first."""
        return self.samples / self.seconds if self.seconds else 0.0

    @property
    def wait_ratio(self) -> float:
        """Share of the time spent waiting, from 0 to 1. Near 0 the model is the limit, near 1 the data are.

        On an accelerator the step that is timed is the one that the processor sees: a loop that never waits for the
        device asks for batches ahead of it, and its waiting may be hidden behind the device's work.
        """
        return self.waited / self.seconds if self.seconds else 0.0

    def __add__(self, other: "Figures") -> "Figures":
        return Figures(self.samples + other.samples, self.seconds + other.seconds, self.waited + other.waited)

    def __str__(self) -> str:
        return f"{self.samples_per_second:.1f} samples/s, {100 * self.wait_ratio:.1f} % of the time waiting for data"
