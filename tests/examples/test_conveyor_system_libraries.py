"""The script that brings the drawing libraries: silent when they are there, exact when they are not."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "system_libraries.sh"
EVERYTHING = "libEGL.so.1 (x) libEGL_mesa.so.0 (x) libGL.so.1 (x) libOpenGL.so.0 (x)"
PACKAGES = "libegl1 libegl-mesa0 libgl1 libopengl0"

pytestmark = pytest.mark.skipif(shutil.which("sh") is None, reason="needs a POSIX shell")


def run(folder: Path, *, libraries: str, user: int, apt: str = "exit 0") -> subprocess.CompletedProcess[str]:
    """Run the script among stand-ins for the commands that look at the system or change it."""
    (folder / "libraries").write_text(libraries)
    stand_ins = {
        "uname": "echo Linux",
        "ldconfig": f'[ "$#" -eq 0 ] || cat {folder}/libraries',
        "id": f"echo {user}",
        "apt-get": f'echo "apt-get $*" >> {folder}/calls\n{apt}',
    }
    for name, body in stand_ins.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}:/usr/bin:/bin"}
    return subprocess.run(["sh", str(SCRIPT)], env=environment, capture_output=True, text=True, check=False)  # noqa: S603, S607


def test_it_does_nothing_when_the_libraries_are_there(tmp_path: Path) -> None:
    result = run(tmp_path, libraries=EVERYTHING, user=0)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert not (tmp_path / "calls").exists()


def test_it_tells_an_ordinary_user_exactly_what_to_install(tmp_path: Path) -> None:
    result = run(tmp_path, libraries="libGL.so.1 (x) libOpenGL.so.0 (x)", user=1000)
    assert result.returncode == 1
    assert "apt-get install --yes --no-install-recommends libegl1 libegl-mesa0 \n" in result.stderr
    assert not (tmp_path / "calls").exists()


def test_as_root_it_installs_what_is_missing(tmp_path: Path) -> None:
    result = run(tmp_path, libraries="", user=0, apt=f'echo "{EVERYTHING}" > {tmp_path}/libraries')
    assert result.returncode == 0
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0].startswith("apt-get update")
    assert calls[1].split("--no-install-recommends ")[1].strip() == PACKAGES


def test_it_fails_when_installing_fails_or_does_not_help(tmp_path: Path) -> None:
    assert run(tmp_path, libraries="", user=0, apt="exit 100").returncode == 100
    result = run(tmp_path, libraries="", user=0)
    assert result.returncode == 1
    assert f"still not found: {PACKAGES}" in result.stderr
