"""Figures and untrusted texts for pages and terminals: without characters that hide, reorder or steer."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# what steers a terminal, reorders or hides text, or is not seen: control and format characters, tags, fillers, blank Braille,
# variation selectors, joiners, surrogates that stand alone
_ODD = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff\ud800-\udfff]"
)
_JOINERS = "\u200c\u200d"


def number(value: Any) -> str:
    """A figure with two decimals, three significant digits if it is below 1 or very large; "–" for none."""
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


def shortened(text: str) -> str:
    """The beginning of a text, for messages."""
    return text if len(text) <= 30 else text[:30] + "..."


def interval_words(
    interval: Mapping[str, Any],
    end: Callable[[Any], str] = "{:+.2f}".format,
    known: str = "95 % interval {low} to {high}",
    unknown: str = "no interval",
) -> str:
    """An interval with ``end`` for each of its ends, in the words of ``known``, or ``unknown`` where there is none.

    >>> interval_words({"low": -0.5, "high": 1.25}), interval_words({"low": None, "high": None})
    ('95 % interval -0.50 to +1.25', 'no interval')
    """
    if interval.get("low") is None or interval.get("high") is None:
        return unknown
    return known.format(low=end(interval["low"]), high=end(interval["high"]))


def flat(text: Any) -> str:
    """The text without such characters, for places that hold no markup."""
    return _replaced(str(text), lambda _: "")


def visible(text: Any) -> str:
    """The text for a terminal, which nothing in it may steer: lines stay, other such characters are shown as signs or codes.

    >>> visible("a\\x1b[31m \\u202e")
    'a␛[31m U+202E'
    """
    return _replaced(str(text).replace("\r\n", "\n"), lambda odd: chr(0x2400 + ord(odd)) if odd < " " else _code(odd))


def _replaced(text: str, shown: Callable[[str], str]) -> str:
    parts, start = [], 0
    for odd in _odd(text):
        parts += [text[start : odd.start()], shown(odd[0])]
        start = odd.end()
    return "".join([*parts, text[start:]])


def _code(odd: str) -> str:
    return f"U+{ord(odd):04X}"


def _odd(text: str) -> Iterator[re.Match[str]]:
    return (odd for odd in _ODD.finditer(text) if not _belongs(text, odd.start()))


def _belongs(text: str, place: int) -> bool:
    """Whether a joiner or a variation selector is a part of the emoji, ideograph or letter before it: one after each, no more."""
    mark, before = text[place], text[place - 1 : place]
    chosen = mark in _JOINERS and before == "\ufe0f"  # the shape of an emoji, before what is joined to it
    if chosen:
        before = text[place - 2 : place - 1]
    if not before or _ODD.match(before):
        return False
    kind, name = unicodedata.category(before), unicodedata.name(before, "")
    picture = before in "©®ℹ" or (before >= "\u203c" and kind in ("So", "Sm", "Sk", "Po", "Pd"))
    if mark in _JOINERS:  # Arabic and Indic scripts need them too
        return picture or (not chosen and (kind.startswith("M") or name.startswith("ARABIC LETTER")))
    if "\u180b" <= mark <= "\u180f" and mark != "\u180e":
        return "\u1800" <= before <= "\u18af"
    if "\ufe00" <= mark <= "\ufe0f":
        keycap = before in "0123456789#*" and text[place + 1 : place + 2] == "\u20e3"
        return picture or keycap or name.startswith("CJK ")
    return "\U000e0100" <= mark <= "\U000e011f" and name.startswith("CJK ")  # those beyond are registered for no ideograph


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss.

    >>> duration(3661.4), duration(59.6)
    ('1:01:01', '1:00')
    """
    total = round(seconds)
    hours = f"{total // 3600}:" if total >= 3600 else ""
    minutes = total % 3600 // 60
    return f"{hours}{minutes:02d}:{total % 60:02d}" if hours else f"{minutes}:{total % 60:02d}"
