"""The guidelines of a project as HTML that is safe whatever is in their Markdown."""

from __future__ import annotations

import hashlib
from functools import lru_cache


def version_of(text: str) -> str:
    """Names a text: people who have read another one are shown it again."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


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
