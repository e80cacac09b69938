"""Texts and figures as they stand on a page: inert, isolated, with nothing in them that hides or reorders."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup

# control characters, bidirectional marks and overrides, byte order mark, surrogates that stand alone
_ODD = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]")
_KANA = re.compile("[\u3041-\u30ff\uff66-\uff9f]")


def number(value: Any) -> str:
    """A figure with three significant digits after a leading 0, else two decimals; "–" for none."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return "–"
    size = abs(value)
    text = str(value) if isinstance(value, int) else f"{value:.3g}" if size < 1 or size >= 1e5 else f"{value:.2f}"
    return text.replace("-", "−")


def signed(value: Any) -> str:
    """As :func:`number`, with a plus sign where it belongs."""
    text = number(value)
    return f"+{text}" if text[0].isdigit() and value > 0 else text


def percent(value: Any) -> str:
    """A share in per cent, one decimal; "–" for none.

    >>> percent(0.7534)
    '75.3 %'
    """
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return "–"
    return f"{100 * value:.1f} %".replace("-", "−")


def plural(count: int, one: str, many: str = "") -> str:
    """A count with its noun.

    >>> plural(1, "held-out prompt"), plural(1200, "reply", "replies")
    ('1 held-out prompt', '1,200 replies')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def interval_words(gap: Mapping[str, Any]) -> str:
    """The interval of a difference, for a terminal.

    >>> interval_words({"low": -0.5, "high": 1.25}), interval_words({"low": None, "high": None})
    ('95 % interval -0.50 to +1.25', 'no interval')
    """
    known = gap["low"] is not None and gap["high"] is not None
    return f"95 % interval {gap['low']:+.2f} to {gap['high']:+.2f}" if known else "no interval"


def words(text: Any) -> Markup:
    """Somebody's text as inert, isolated HTML; characters that could mislead the eye are shown as their code."""
    from markupsafe import Markup, escape

    text = str(text).replace("\r\n", "\n")
    parts, start = [], 0
    for odd in _ODD.finditer(text):
        parts += [
            escape(text[start : odd.start()]),
            Markup('<span class="code">U+{}</span>').format(f"{ord(odd[0]):04X}"),
        ]
        start = odd.end()
    language = "ja" if _KANA.search(text) else ""  # picks Japanese shapes for characters shared with Chinese
    return Markup('<bdi lang="{}">{}</bdi>').format(language, Markup("").join([*parts, escape(text[start:])]))


def flat(text: Any) -> str:
    """The text without those characters, for places that hold no markup."""
    return _ODD.sub("", str(text))


def security_policy(style: str, script: str) -> str:
    """A content security policy: the one style and the one script by their hashes, nothing else from anywhere."""
    allowed = f"style-src {_hash(style)}; script-src {_hash(script)}"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss.

    >>> duration(3661.4), duration(59.6)
    ('1:01:01', '1:00')
    """
    whole = round(seconds)
    hours = f"{whole // 3600}:" if whole >= 3600 else ""
    minutes = whole % 3600 // 60
    return f"{hours}{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
