"""The command itself: help, errors, warnings, and what importing it costs."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from moteur import data
from moteur.optional import require

COMMANDS = ("info", "schema", "statistics", "latents", "convert", "act")
ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603  # our own program
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_importing_the_command_loads_nothing_heavy() -> None:
    program = "import moteur.commands, sys; print(*{name.split('.')[0] for name in sys.modules})"
    found = run("-c", program)
    assert found.returncode == 0, found.stderr
    assert not {"torch", "numpy", "pyarrow", "av", "pydantic", "transformers"} & set(found.stdout.split())


def test_python_m_moteur_is_the_command_and_fails_with_code_2(tmp_path: Path) -> None:
    shown = run("-m", "moteur", "--help")
    assert shown.returncode == 0
    assert all(f"  {name} " in shown.stdout for name in COMMANDS)
    refused = run("-m", "moteur", "info", str(tmp_path))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: source: expected a set")
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_has_an_example(command: str, moteur: Callable[..., Result]) -> None:
    found = moteur(command, "--help")
    assert found.exit_code == 0
    assert f"\n    moteur {command} " in found.stdout.partition("Examples:")[2]


def test_debug_shows_where_an_error_was_raised(moteur: Callable[..., Result], tmp_path: Path) -> None:
    plain = moteur("info", tmp_path)
    assert isinstance(plain.exception, SystemExit)
    debugged = moteur("--debug", "info", tmp_path)
    assert isinstance(debugged.exception, ValueError)


def test_a_missing_extra_is_an_error_of_the_user_and_a_missing_module_of_ours_is_not(
    moteur: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(data.Info, "load", lambda _: require("no_such_package", extra="data"))
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").touch()
    found = moteur("info", tmp_path)
    assert found.exit_code == 2
    assert found.stderr.startswith("error: no_such_package is not installed: pip install")
    monkeypatch.setattr(data.Info, "load", lambda _: __import__("moteur.no_such_module"))
    assert isinstance(moteur("info", tmp_path).exception, ModuleNotFoundError)
