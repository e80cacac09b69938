"""Words of the pages and of their errors, in the languages that they speak: one catalogue each, with the same keys."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from konomi.labelling.project import LANGUAGES

LOCALES = Path(__file__).parent / "locales"


@cache
def catalogue(name: str) -> Mapping[str, Mapping[str, str]]:
    """Language -> key -> words, from ``locales/NAME.LANGUAGE.json``."""
    return {lang: json.loads((LOCALES / f"{name}.{lang}.json").read_text(encoding="utf-8")) for lang in LANGUAGES}


def say(key: str, lang: str, /, **values: Any) -> str:
    """The words of errors.LANGUAGE.json for a key, with ``{name}`` filled in from ``values``.

    >>> say("enough_some", "en", comparisons="812", needed="2,000")
    '812 of about 2,000 comparisons'
    """
    return catalogue("errors")[lang][key].format(**values)


def preferred(header: str, languages: Sequence[str]) -> str | None:
    """Which of ``languages`` an Accept-Language header likes best; None if none of them.

    >>> preferred("fr, en-GB;q=0.7, ja;q=0.8", ("ja", "en"))
    'ja'
    """
    found: list[tuple[float, int, str]] = []
    for number, part in enumerate(header[:500].split(",")):
        tag, _, rest = part.strip().partition(";")
        weight = rest.strip().removeprefix("q=") or "1"
        lang = tag.split("-")[0].lower()
        try:
            found.append((-float(weight), number, lang)) if lang in languages and float(weight) > 0 else None
        except ValueError:
            continue
    return min(found)[2] if found else None
