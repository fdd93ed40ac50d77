"""What pyproject.toml declares is what the package imports, and what was tested."""

import ast
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import moteur

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RUNS = json.loads((ROOT / "benchmarks/results/floors.json").read_text(encoding="utf-8"))
# Its wheels do not say which torch they fit, so whoever wants it chooses one; its absence is handled.
UNDECLARED = {"torchcodec"}


def plain(name: str) -> str:
    """A package's name as indices compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def bounds(requirements: list[str]) -> dict[str, str]:
    return {plain(name): bound for name, bound in (requirement.split(">=") for requirement in requirements)}


CORE = bounds(PROJECT["dependencies"])
EXTRAS = {extra: bounds(requirements) for extra, requirements in PROJECT["optional-dependencies"].items()}


def imports(path: Path) -> Iterator[tuple[str, str | None, bool]]:
    """Packages that a module imports, the extra it names when one is absent, and whether that is at its own import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    later = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        at_import = node not in later
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], None, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield str(node.module).split(".")[0], None, at_import
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require":
            package, extra = [*node.args, *(keyword.value for keyword in node.keywords)]
            assert isinstance(extra, ast.Constant), f"{path}: name the extra where it is required"
            if isinstance(package, ast.Constant):
                yield package.value.split(".")[0], extra.value, at_import


def foreign() -> Iterator[tuple[str, str, str | None, bool]]:
    """Every import of a package that is neither ours nor Python's: where, which distribution, extra, at import."""
    distributions = packages_distributions()
    for path in sorted((ROOT / "moteur").rglob("*.py")):
        for package, extra, at_import in imports(path):
            if package not in sys.stdlib_module_names | UNDECLARED | {"moteur"}:
                (name,) = set(distributions[package])
                yield str(path.relative_to(ROOT)), plain(name), extra, at_import


def test_every_import_is_declared_where_it_is_needed() -> None:
    """The core declares what modules outside `moteur.data` import; `data`, what its modules import besides."""
    missing = {
        (place, name)
        for place, name, extra, at_import in foreign()
        if name not in CORE
        and (
            name not in EXTRAS[extra]
            if extra is not None
            else name not in EXTRAS["data"] or (at_import and not place.startswith("moteur/data/"))
        )
    }
    assert missing == set()


def test_nothing_is_declared_that_is_not_imported() -> None:
    """The extras `sim` and `viz` are the demo's, `dev` and `docs` this repository's own."""
    used = {name for _, name, _, _ in foreign()}
    assert CORE.keys() | EXTRAS["data"].keys() | EXTRAS["vlm"].keys() <= used


def test_the_version_stands_in_one_place() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert moteur.__version__ == PROJECT["version"]
    assert f"\nversion: {PROJECT['version']}\n" in citation


@pytest.mark.parametrize("name", ["no_such_name", "__path"])
def test_other_names_of_the_package_are_refused_as_python_does(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'moteur' has no attribute '{name}'"):
        getattr(moteur, name)


def test_lower_bounds_are_versions_that_tests_ran_with() -> None:
    """`make floors` says so anew when a bound changes."""
    ran = {plain(name): version for name, version in RUNS["floors, Python 3.11"]["versions"].items()}
    declared = CORE | EXTRAS["vlm"] | EXTRAS["data"] | EXTRAS["sim"] | EXTRAS["viz"]
    assert {name: whole(bound) for name, bound in declared.items()} == {name: whole(ran[name]) for name in declared}


def whole(version: str) -> tuple[int, ...]:
    """A version's numbers, without a local part and without zeros at the end."""
    numbers = [int(number) for number in version.partition("+")[0].split(".")]
    while numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def test_classifiers_name_the_pythons_that_tests_ran_under() -> None:
    ran = {name.rpartition(" ")[2] for name in RUNS}
    claimed = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line}
    assert claimed == ran
    assert not [part for run in RUNS.values() for part in run["tests"].values() if part["failed"]]
