"""The documentation page shows the pictures that its layouts print."""

import re
from pathlib import Path

from moteur.masks import Layout

PAGE = Path(__file__).parents[2] / "docs" / "blocks" / "masks.md"
FENCE = re.compile(r"^```(\{\.python continuation\}|python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_every_picture_on_the_page_is_what_the_layout_before_it_prints() -> None:
    _, patterns = PAGE.read_text(encoding="utf-8").split("## Patterns of public models")
    scope: dict[str, object] = {}
    shown: list[Layout] = []
    for kind, content in FENCE.findall(patterns):
        if kind == "text":
            assert content == f"{shown[-1]}\n"
        else:
            before = set(scope)
            exec(content, scope)  # noqa: S102  # our own page
            shown += [made for name, made in scope.items() if name not in before and isinstance(made, Layout)]
    assert len(shown) == patterns.count("```text")
