"""The report: one page that holds its pictures, in plain words."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field

STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #1a202c; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
table { border-collapse: collapse; margin: .8rem 0 } th, td { padding: .3rem .9rem .3rem 0; text-align: left }
th { border-bottom: 2px solid #cbd5e0 } td { border-bottom: 1px solid #e2e8f0 } td.number { text-align: right }
img { max-width: 100%; height: auto } figure { display: inline-block; margin: .4rem 1rem .4rem 0; vertical-align: top }
figcaption { font-size: .85rem; color: #4a5568; max-width: 320px } code { background: #edf2f7; padding: 0 .25rem }
.verdict { padding: .8rem 1rem; border-left: 5px solid #2f855a; background: #f0fff4 }
.verdict.missed { border-color: #c53030; background: #fff5f5 }
"""


@dataclass
class Page:
    """An HTML page under construction; everything in it is part of the one file."""

    title: str
    parts: list[str] = field(default_factory=list)

    def heading(self, text: str) -> None:
        """Start a section."""
        self.parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, words: str, *, kind: str = "") -> None:
        """Add a paragraph; `words` may hold simple markup."""
        self.parts.append(f'<p class="{kind}">{words}</p>' if kind else f"<p>{words}</p>")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table; columns after the first are numbers."""
        cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
        lines = [f"<tr>{cells}</tr>"]
        for first, *others in rows:
            numbers = "".join(f'<td class="number">{html.escape(value)}</td>' for value in others)
            lines.append(f"<tr><td>{html.escape(first)}</td>{numbers}</tr>")
        self.parts.append(f"<table>{''.join(lines)}</table>")

    def picture(self, data: bytes, alt: str, *, kind: str = "png", caption: str = "") -> None:
        """Embed a picture."""
        code = base64.b64encode(data).decode()
        image = f'<img alt="{html.escape(alt)}" src="data:image/{kind};base64,{code}">'
        words = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
        self.parts.append(f"<figure>{image}{words}</figure>")

    def render(self) -> str:
        """The whole page."""
        title = html.escape(self.title)
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
            f"</head><body><h1>{title}</h1>{''.join(self.parts)}</body></html>\n"
        )
