"""Texts and figures as they stand in a terminal, a title or a table."""

from __future__ import annotations

import math
from typing import Any

import pytest

from konomi.text import flat, number, signed, visible


def test_what_is_not_seen_is_shown_as_its_code_and_what_belongs_stays() -> None:
    unseen = "\x00\x1b\x7f\x9b\xad\u034f\u061c\u115f\u180e\u200b\u200c\u200d\u200e\u2028\u202e\u2060\u2066\u2800\u3164"
    unseen += "\ufe0f\ufeff\uffa0\ufffb\U0001d173\U000e0001\U000e0041\U000e0100\ud800"
    for each in unseen:
        for before in ("", "a", "あ"):
            text = f"{before}{each}b"
            assert each not in visible(text) and flat(text) == f"{before}b", (before, hex(ord(each)))
    hidden = (
        ("☺\ufe0f", "\ufe0f" * 3), ("葛\U000e0100", "\U000e0101"), ("葛\ufe00", "\ufe01"), ("葛", "\U000e0141"),
        ("☺", "\U000e0100"), ("葛\U000e0100", "\u200d"), ("\u1820\u180b", "\u180b\u200d"), ("☺", "\u2800\ufe0f"),
        ("", "\ufe0f\u200d"), ("☺\ufe0f\u200d", "\u200d"),
    )  # fmt: skip
    for seen, rest in hidden:  # a second selector, one for no such sign, a joiner after one: what else could be written in them
        codes = [f"U+{ord(each):04X}" for each in rest]
        assert visible(seen + rest) == seen + "".join(codes) and flat(seen + rest) == seen
    belongs = [
        "ℹ\ufe0f",
        "❤\ufe0f\u200d🔥",
        "👨\u200d👩\u200d👧",
        "☺\ufe0f",
        "1\ufe0f\u20e3",
        "葛\U000e0100",
        "می\u200cخواهم",
        "क्\u200dष",
        "\u1820\u180b",
        "a\n\tb",
        "👍🏽\u200d",
    ]
    for each in belongs:
        assert visible(each) == flat(each) == each


@pytest.mark.parametrize(
    ("value", "plain", "with_sign"),
    [
        (0.0, "0", "0"), (1.234, "1.23", "+1.23"), (-0.01234, "−0.0123", "−0.0123"), (1.41e-5, "1.41e−05", "+1.41e−05"),
        (7, "7", "+7"), (123456.0, "1.23e+05", "+1.23e+05"), (None, "–", "–"), ("x", "–", "–"), (math.nan, "–", "–"),
    ],
)  # fmt: skip
def test_figures(value: Any, plain: str, with_sign: str) -> None:
    assert (number(value), signed(value)) == (plain, with_sign)
