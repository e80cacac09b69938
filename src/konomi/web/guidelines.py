"""Guidelines for raters: Markdown as safe HTML, in the reader's language."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

HEADINGS = {"ガイドライン": "ja", "Guidelines": "en"}
"""Headings of the sections for one language."""


def section_for(text: str, lang: str) -> str:
    """The text before the sections and the section for ``lang``; the whole text unless each language has one section.

    >>> section_for("# ガイドライン\\nはい\\n# Guidelines\\nyes", "en")
    'yes'
    """
    before, *parts = re.split(rf"^# +({'|'.join(HEADINGS)})[ \t]*$\n?", text, flags=re.MULTILINE)
    sections = {HEADINGS[heading]: part for heading, part in zip(parts[::2], parts[1::2], strict=True)}
    return before + sections[lang] if len(sections) == len(HEADINGS) == len(parts) // 2 else text


@lru_cache(maxsize=8)
def to_html(text: str) -> str:
    """Markdown as safe HTML: tags are escaped, links are http(s) only, images are off.

    >>> to_html("**a** <b>")
    '<p><strong>a</strong> &lt;b&gt;</p>\\n'
    """
    from markdown_it import MarkdownIt

    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    reader.validateLink = _is_http  # type: ignore[method-assign]
    return str(reader.render(text))


def _is_http(url: str) -> bool:
    return url.strip().lower().startswith(("https://", "http://"))


def version_of(text: str) -> str:
    """A hash: people who have read another version are shown the guidelines again."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
