"""Pages of the documentation: every public name has its place, and code blocks are of a kind that renders and runs."""

import re
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FACES = ("data", "flowmatch", "masks", "mot", "recipes", "runtime", "sampling", "tokenizers")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"```(|bash|console|python|text|toml|yaml|\{\.python continuation\})")
COLUMNS = 92  # what fits beside both side bars in a window of 1280 pixels

LISTED = [name for page in PAGES for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)]


@pytest.mark.parametrize("face", FACES)
def test_every_public_name_is_on_one_api_page(face: str) -> None:
    public = {f"moteur.{face}.{name}": 1 for name in import_module(f"moteur.{face}").__all__}
    assert {name: count for name, count in Counter(LISTED).items() if name in public} == public


def test_api_pages_name_what_is_public_at_its_face() -> None:
    public = {name: face for face in FACES for name in import_module(f"moteur.{face}").__all__}
    past = [name for name in LISTED if name.count(".") > 2 and name.rpartition(".")[2] in public]
    assert past == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_on_a_page_renders_and_is_not_cut_off(page: Path) -> None:
    inside = wraps = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.lstrip().startswith("```"):
            assert FENCE.fullmatch(line.strip()), f"line {number}: {line}"
            inside, wraps = not inside, "console" in line  # what a command printed is wrapped
        elif inside and not wraps:
            assert len(line) <= COLUMNS, f"line {number} has {len(line)} columns"
    assert not inside
