"""Scripts as sets of characters, and whether a token of a vocabulary is written in some of them.

A text of wanted scripts has their characters and common ones: digits, punctuation, white space. A token belongs to the scripts
if such a text can contain it, or if it has one of their characters beside ASCII letters (``Tシャツ`` is Japanese). Tokens of a
byte-level vocabulary that begin or end inside a character belong to every script with such a character.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence

from konomi.errors import ConfigError

Ranges = tuple[tuple[int, int], ...]  # code points, both ends included

# ASCII without letters, Latin-1 signs, General Punctuation, and the sign that SentencePiece writes for a space
COMMON: Ranges = (
    (0x00, 0x40), (0x5B, 0x60), (0x7B, 0xA9), (0xAB, 0xB9), (0xBB, 0xBF), (0xD7, 0xD7), (0xF7, 0xF7), (0x2000, 0x206F),
    (0x2581, 0x2581),
)  # fmt: skip
_ASCII_LETTERS: Ranges = ((0x41, 0x5A), (0x61, 0x7A))
# letterlike signs, numerals, arrows, operators; enclosed numbers; boxes, geometric shapes, weather, cards, notes
_SIGNS: Ranges = ((0x2100, 0x22FF), (0x2460, 0x24FF), (0x2500, 0x2580), (0x2582, 0x266F))
_CJK_PUNCTUATION: Ranges = ((0x3000, 0x303F), (0xFE30, 0xFE4F), (0xFF00, 0xFFEF))
_HAN: Ranges = ((0x2E80, 0x2FDF), (0x31C0, 0x31EF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))
_KANA: Ranges = ((0x3040, 0x30FF), (0x3190, 0x319F), (0x31F0, 0x31FF), (0x3200, 0x33FF), (0x1B000, 0x1B16F))
_EAST_ASIAN = (*_CJK_PUNCTUATION, *_SIGNS)

SCRIPTS: dict[str, tuple[str, Ranges]] = {
    "ja": ("Hiragana, Katakana, Han, CJK punctuation and signs, full-width forms", (*_KANA, *_HAN, *_EAST_ASIAN)),
    "en": ("the ASCII letters", _ASCII_LETTERS),
    "zh": ("Han, Bopomofo, CJK punctuation and signs, full-width forms", (
        (0x3100, 0x312F), (0x31A0, 0x31BF), *_HAN, *_EAST_ASIAN,
    )),
    "ko": ("Hangul, CJK punctuation and signs", (
        (0x1100, 0x11FF), (0x3130, 0x318F), (0xA960, 0xA97F), (0xAC00, 0xD7FF), *_EAST_ASIAN,
    )),
    "latin": ("Latin letters with all their accents", (
        *_ASCII_LETTERS, (0xAA, 0xAA), (0xBA, 0xBA), (0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x24F), (0x300, 0x36F), (0x1E00, 0x1EFF),
    )),
    "ru": ("Cyrillic", ((0x0400, 0x052F), (0x1C80, 0x1C8F), (0x2DE0, 0x2DFF), (0xA640, 0xA69F))),
    "el": ("Greek", ((0x0370, 0x03FF), (0x1F00, 0x1FFF))),
    "ar": ("Arabic", ((0x0600, 0x06FF), (0x0750, 0x077F), (0x08A0, 0x08FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFF))),
    "hi": ("Devanagari", ((0x0900, 0x097F), (0xA8E0, 0xA8FF))),
    "th": ("Thai", ((0x0E00, 0x0E7F),)),
}  # fmt: skip
"""Name: what it has, and the code points."""


def parse_scripts(text: str) -> tuple[str, ...]:
    """Return the names in ``text``, which commas part.

    >>> parse_scripts("ja, en")
    ('ja', 'en')

    Raises:
        ConfigError: no name, or one that is not in ``SCRIPTS``.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in SCRIPTS]
    if unknown or not names:
        known = "; ".join(f"{name}: {what}" for name, (what, _) in SCRIPTS.items())
        wrong = f"no script named {unknown[0]!r}" if unknown else "no script given"
        raise ConfigError(f"--scripts: {wrong}. Known, to be parted by commas: {known}")
    return names


_LATIN = re.compile("[A-Za-z]")


class Belongs:
    """Tests whether the text of a token belongs to some scripts; bytes of incomplete characters are lone surrogates."""

    def __init__(self, scripts: Sequence[str]) -> None:
        letters = [one for script in scripts for one in SCRIPTS[script][1]]
        self._letter = re.compile(f"[{_class(letters)}]")
        # bytes that are no whole character stand as U+DC80 + byte - 0x80: see bytes.decode with surrogateescape
        characters = f"[{_class([*letters, *COMMON, *_ASCII_LETTERS])}]*"
        self._possible = re.compile(f"(?P<end>[\udc80-\udcbf]*){characters}(?P<start>(?:[\udcc2-\udcf4][\udc80-\udcbf]*)?)")
        self._parts = functools.cache(lambda: _parts([*letters, *COMMON]))

    def __call__(self, text: str) -> bool:
        """Whether the token belongs to the scripts.

        >>> belongs = Belongs(["ja"])
        >>> [belongs(token) for token in ("今日", " 今", "Tシャツ", "1.5", "the", "ไทย")]
        [True, True, True, True, False, False]
        """
        match = self._possible.fullmatch(text)
        if not text or not match or (_LATIN.search(text) and not self._letter.search(text)):
            return False
        end, start = (match[key].encode("utf-8", "surrogateescape") for key in ("end", "start"))
        if not end and not start:
            return True
        starts, ends, middles = self._parts()
        if len(match["end"]) == len(text):
            return end in ends or end in middles
        return (not end or end in ends) and (not start or start in starts)


def _class(ranges: Iterable[tuple[int, int]]) -> str:
    """Return ranges as the inside of a character class."""
    return "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in ranges)


def _parts(ranges: Iterable[tuple[int, int]]) -> tuple[frozenset[bytes], frozenset[bytes], frozenset[bytes]]:
    """Return what UTF-8 characters of ``ranges`` can begin with, end with, and have in the middle, each less than all."""
    starts, ends, middles = set(), set(), set()
    for low, high in ranges:
        for code in range(low, high + 1):
            character = chr(code).encode("utf-8")
            for i in range(1, len(character)):
                starts.add(character[:i])
                ends.add(character[i:])
                middles |= {character[i:j] for j in range(i + 1, len(character))}
    return frozenset(starts), frozenset(ends), frozenset(middles)
