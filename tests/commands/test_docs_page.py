"""docs/commands.md: every command on the page runs and prints what the page says."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"
# Random weights give slightly other numbers on another processor, file sizes depend on the names of versions.
TOLERANCE = 0.05


def transcript() -> list[tuple[str, str]]:
    """Commands of the page and their outputs, in order."""
    fences = re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [tuple(part.split("\n", maxsplit=1)) for fence in fences for part in fence.split("$ ")[1:]]


def words(text: str) -> tuple[list[str], list[float]]:
    """Words with a mark for numbers and digests, and the numbers."""
    text = re.sub(r"\b[0-9a-f]{12}\b", "DIGEST", text)
    pattern = r"-?\d+\.\d+"
    return re.sub(pattern, "NUMBER", text).split(), [float(number) for number in re.findall(pattern, text)]


@pytest.mark.usefixtures("home")
def test_the_page_shows_real_output(moteur: Callable[..., Result]) -> None:
    shown = transcript()
    assert {command.split()[1] for command, _ in shown} == {"info", "schema", "statistics", "latents", "convert", "act"}
    for command, output in shown:
        run = moteur(*shlex.split(command)[1:])
        found, expected = words(run.stdout or run.stderr), words(output)  # progress is on standard error
        assert found[0] == expected[0], command
        assert found[1] == pytest.approx(expected[1], rel=TOLERANCE, abs=TOLERANCE), command
