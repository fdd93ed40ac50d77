"""What became of every tensor of a file, and of every tensor of the model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Misfit:
    """A tensor of the right name and the wrong kind.

    Attributes:
        name: Its name in the file.
        expected: What the model needs there.
        found: What the file holds.
    """

    name: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.name} (expected {self.expected}, got {self.found})"


@dataclass(frozen=True)
class LoadingReport:
    """Every tensor accounted for; names are those of the file unless it says otherwise.

    Attributes:
        source: What was read.
        layout: Whose names it has: "moteur", "released 3B", "released 2B", or a backbone's.
        loaded: Tensors that the model holds now.
        tied: Second names of tensors that are loaded under their first one; both hold the same bytes.
        unused: Tensors that no output of this model depends on, and why; they were not read.
        missing: Tensors of the model that the file lacks.
        unexpected: Tensors that the model has no place for.
        wrong_shape: Tensors of the right name, but another shape or kind of number.
        elsewhere: Our names of tensors that came from another source, and from which.
        fresh: Our names of tensors that were initialised from a seed.
        notes: What else should be known, such as fields of a configuration that mean nothing here.

    >>> report = LoadingReport("folder", "released 3B", loaded=("a", "b"), unexpected=("value_head.weight",))
    >>> report.exact
    False
    >>> print(report)
    folder (released 3B layout)
      loaded (2)
      unexpected (1): value_head.weight
    """

    source: str
    layout: str
    loaded: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    unused: tuple[tuple[str, str], ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    wrong_shape: tuple[Misfit, ...] = ()
    elsewhere: tuple[tuple[str, str], ...] = ()
    fresh: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether nothing is missing, left over or of the wrong shape."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    def __str__(self) -> str:
        lines = [
            f"{self.source} ({self.layout} layout)",
            _line("loaded", self.loaded, named=False),
            _line("tied", self.tied),
            *(
                _line(f"unused on purpose, {reason}", [name for name, why in self.unused if why == reason])
                for reason in dict.fromkeys(reason for _, reason in self.unused)
            ),
            _line("missing", self.missing),
            _line("unexpected", self.unexpected),
            _line("wrong shape", [str(misfit) for misfit in self.wrong_shape]),
            *(
                _line(f"from {place}", [name for name, source in self.elsewhere if source == place])
                for place in dict.fromkeys(source for _, source in self.elsewhere)
            ),
            _line("fresh", self.fresh),
            *(f"  note: {note}" for note in self.notes),
        ]
        return "\n".join(line for line in lines if line)


def _line(kind: str, names: tuple[str, ...] | list[str], *, named: bool = True) -> str:
    if not names:
        return ""
    return f"  {kind} ({len(names)}): {', '.join(names)}" if named else f"  {kind} ({len(names)})"
