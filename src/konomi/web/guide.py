"""The guidelines of a project as HTML that is safe whatever is in their Markdown."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache


def version_of(text: str) -> str:
    """Names a text: people who have read another one are shown it again."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


PARTS = {"ガイドライン": "ja", "Guidelines": "en"}
"""Headings of the parts for readers of one language."""


def part_of(text: str, lang: str) -> str:
    """What is for readers of ``lang``: what stands before the parts, and their part; all of it, unless each language has a part.

    >>> part_of("# ガイドライン\\nはい\\n# Guidelines\\nyes", "en")
    'yes'
    """
    before, *parts = re.split(rf"^# +({'|'.join(PARTS)})[ \t]*$\n?", text, flags=re.MULTILINE)
    found = {PARTS[heading]: part for heading, part in zip(parts[::2], parts[1::2], strict=True)}
    return before + found[lang] if len(found) == len(PARTS) == len(parts) // 2 else text


@lru_cache(maxsize=8)
def html_of(text: str) -> str:
    """Markdown as HTML: tags in it are text, links lead to the web alone, there are no pictures.

    >>> html_of("**a** <b>")
    '<p><strong>a</strong> &lt;b&gt;</p>\\n'
    """
    from markdown_it import MarkdownIt

    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    reader.validateLink = _to_the_web  # type: ignore[method-assign]
    return str(reader.render(text))


def _to_the_web(url: str) -> bool:
    return url.strip().lower().startswith(("https://", "http://"))
