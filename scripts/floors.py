"""The test suite in an environment of its own: the oldest packages that pyproject.toml allows, or the pinned ones.

`floors` takes the lower bound of every run-time dependency and extra; the tests' own tools may be newer. `pinned` takes
the versions of constraints.txt, for another Python than that of `.venv`. Environments are kept in `.venvs` (ignored by
git): `floors-3.11` and so on, about 5 GB each where pip finds no CPU build of torch.

Usage: PYTHON scripts/floors.py {floors,pinned}, with the Python to test. Standard library only.
Writes what ran, and how it ended, to benchmarks/results/floors.json; exits with 1 if a test failed.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/floors.json"
EXTRAS = ("vlm", "data", "sim", "viz")  # what `docs` and `dev` bring runs on a developer's machine alone
SUITE = {
    **{
        f"tests/{path.name}": [f"tests/{path.name}"]
        for path in sorted((ROOT / "tests").glob("[a-z]*"))
        if any(path.glob("**/test_*.py"))
    },
    "examples in docstrings": ["--doctest-modules", "moteur"],
    "code on pages": ["--markdown-docs", "--markdown-docs-syntax=superfences", "README.md", "docs"],
}


def floors() -> dict[str, str]:
    """Lower bounds by package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = project["dependencies"] + [
        requirement for extra in EXTRAS for requirement in project["optional-dependencies"][extra]
    ]
    bounds: dict[str, str] = {}
    for requirement in requirements:
        match = re.fullmatch(r"([\w.-]+)>=([\w.]+)", requirement)
        if match is None or bounds.setdefault(*match.groups()) != match[2]:
            raise SystemExit(f"pyproject.toml: expected name>=version, the same wherever it stands, got {requirement}")
    return bounds


def installed(environment: Path, kind: str) -> Path:
    """Python of an environment with moteur, its extras and the tools of its tests, brought up to date."""
    python = environment / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)  # noqa: S603 - our own command
    constraints = ROOT / "constraints.txt"
    if kind == "floors":
        constraints = environment / "floors.txt"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in floors().items()), encoding="utf-8")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", constraints]
    subprocess.run([*install, "-e", f".[dev,{','.join(EXTRAS)}]"], cwd=ROOT, check=True)  # noqa: S603
    return python


def tested(python: Path, environment: Path, arguments: list[str], workers: int) -> dict[str, object]:
    """Counts of one part of the suite, and the names of what failed."""
    report = environment / "tests.xml"
    report.unlink(missing_ok=True)
    processes = ["-n", str(workers), "--dist", "worksteal"] if workers > 1 else []
    subprocess.run(  # noqa: S603 - our own command
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *processes, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,  # the report says what failed
    )
    cases = list(ET.parse(report).getroot().iter("testcase"))  # noqa: S314 - pytest wrote it
    skipped = sum(case.find("skipped") is not None for case in cases)
    failed = sorted(
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    )
    passed = len(cases) - skipped - len(failed)
    return {"measured_at_commit": commit(), "passed": passed, "failed": failed, "skipped": skipped}


def versions(python: Path) -> dict[str, str]:
    """Installed versions of the packages that pyproject.toml names."""
    asked = f"{{name: version(name) for name in {list(floors())}}}"
    program = f"import json; from importlib.metadata import version; print(json.dumps({asked}))"
    return json.loads(subprocess.run([python, "-c", program], capture_output=True, check=True).stdout)  # noqa: S603


def commit() -> str:
    """The commit that was tested, marked where files differ from it."""
    describe = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603


def main() -> None:
    """Build the environment, run the parts that are asked for, and record each as it ends."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=("floors", "pinned"))
    parser.add_argument("parts", nargs="*", help=f"what to run anew, instead of everything: {', '.join(SUITE)}")
    parser.add_argument("--workers", type=int, default=2, help="test processes")
    options = parser.parse_args()
    if unknown := set(options.parts) - SUITE.keys():
        parser.error(f"parts: expected some of {', '.join(SUITE)}, got {', '.join(sorted(unknown))}")

    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    environment = ROOT / f".venvs/{options.kind}-{version}"
    environment.parent.mkdir(exist_ok=True)
    python = installed(environment, options.kind)
    name = f"{options.kind}, Python {version}"
    made_with = {
        "command": f"make {options.kind} PYTHON=python{version}",
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(python),
    }
    runs = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    kept = runs.get(name, {"tests": {}})
    fresh = not options.parts or any(kept.get(key) != value for key, value in made_with.items())
    runs[name] = run = made_with | {"tests": {} if fresh else kept["tests"]}
    for part in options.parts or SUITE:
        run["tests"][part] = tested(python, environment, SUITE[part], options.workers)
        RESULTS.write_text(json.dumps(dict(sorted(runs.items())), indent=2) + "\n", encoding="utf-8")
    failed = [test for part in run["tests"].values() for test in part["failed"]]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
