"""Refusing a number that no model can have, where the configuration is made and not where it fails later."""


def expect(condition: bool, name: str, expected: str, actual: object) -> None:  # noqa: FBT001 -- it is the condition
    """Refuse a value unless the condition holds.

    Raises:
        ValueError: If it does not; the message names the field, what was expected and what arrived.
    """
    if not condition:
        raise ValueError(f"{name}: expected {expected}, got {actual}")


def expect_positive(config: object, *names: str) -> None:
    """Refuse fields of a configuration that are not positive, or hold something that is not.

    Raises:
        ValueError: Naming the first such field.
    """
    for name in names:
        value = getattr(config, name)
        numbers = value if isinstance(value, tuple) else (value,)
        positive = bool(numbers) and all(number > 0 for number in numbers)
        expect(positive, f"{type(config).__name__}.{name}", "greater than 0", value)
