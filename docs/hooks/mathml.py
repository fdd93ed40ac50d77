"""Turns formulas into MathML while the site is built, so that reading a page needs no script from elsewhere."""

import html
import re

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: object) -> str:
    """Replace every formula that arithmatex marked."""
    return _FORMULA.sub(
        lambda m: convert(html.unescape(m[3]).strip(), display="block" if m[2] == "[" else "inline"), content
    )
