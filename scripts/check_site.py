"""Check the built documentation as it renders.

    python scripts/check_site.py .cache/site

Fails on code blocks that came out as text (back-ticks, prompts), nested block quotes (examples without a heading), API
entries without an anchor or a description, and pictures without a file.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
SILENT = {"script", "style", "title"}
PAGES = Path(__file__).parents[1] / "docs"


class Page(HTMLParser):
    """What is wrong with one page, and the ids that it has.

    Args:
        path: The page's HTML.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.ids: set[str] = set()
        self.folder = path.parent
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note ids, nested quotes and pictures that are not there."""
        values = dict(attrs)
        self.ids.add(values.get("id") or "")
        if tag == "blockquote" and "blockquote" in self.open:
            self.wrong.append(f"nested block quotes, line {self.getpos()[0]}")
        source = values.get("src") or ""
        if tag == "img" and ":" not in source and not (self.folder / source).exists():
            self.wrong.append(f"no picture {source}")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close a tag and those inside it that were left open."""
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        """Note code that came out as text."""
        if SILENT.intersection(self.open):
            return
        if "```" in data or (">>> " in data and "pre" not in self.open):
            self.wrong.append(f"code as text: {data.strip()[:60]!r}")


def main() -> int:
    """Print what is wrong, page by page; return how many things are."""
    site = Path(sys.argv[1])
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    wrong = [f"{path.relative_to(site)}: {problem}" for path, page in pages.items() for problem in page.wrong]
    for source in sorted(PAGES.rglob("*.md")):
        built = site / source.relative_to(PAGES).with_suffix("") / "index.html"  # pages with API entries
        for name in re.findall(r"^::: (\S+)$", source.read_text(encoding="utf-8"), re.MULTILINE):
            if name not in pages[built].ids:
                wrong.append(f"{source.relative_to(PAGES)}: {name} did not render")
            elif not _described(built, name):
                wrong.append(f"{source.relative_to(PAGES)}: {name} has no description")
    print(*wrong, sep="\n", end="\n" * bool(wrong))
    return len(wrong)


def _described(page: Path, name: str) -> bool:
    """Whether text follows the heading of an API entry."""
    _, _, rest = page.read_text(encoding="utf-8").partition(f'id="{name}"')
    _, _, contents = rest.partition('<div class="doc doc-contents')
    return "<p>" in re.split("<h[23]", contents, maxsplit=1)[0]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    raise SystemExit(1 if main() else 0)
