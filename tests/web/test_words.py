"""The words: the same keys in each language, and each one that is needed."""

from __future__ import annotations

import inspect
import re
from string import Formatter

import pytest

from konomi.feedback import answers, checks, people, store
from konomi.feedback.project import LANGUAGES
from konomi.web.refusals import STATUS
from konomi.web.words import catalogue, preferred, say


@pytest.mark.parametrize("name", ["errors", "page"])
def test_the_languages_have_the_same_words(name: str) -> None:
    both = catalogue(name)
    assert set(both) == set(LANGUAGES)
    ja, en = both["ja"], both["en"]
    assert ja.keys() == en.keys()
    for key in ja:
        fields = [{field for _, field, _, _ in Formatter().parse(words[key]) if field} for words in (ja, en)]
        assert fields[0] == fields[1], key
        assert ja[key].strip() and en[key].strip()


def test_errors_are_japanese_in_japanese() -> None:
    for key, words in catalogue("errors")["ja"].items():
        assert re.search("[\u3041-\u30ff]", words), key
        assert words == words.strip() and not re.search("[ｦ-ﾟ]", words)
    for key, words in catalogue("errors")["en"].items():
        assert words.isascii(), key


def test_every_code_has_words() -> None:
    source = "".join(inspect.getsource(module) for module in (answers, checks, people, store))
    codes = set(re.findall(r'Refused\(\s*"(\w+)"', source)) | set(STATUS)
    assert len(codes) > 25
    assert {f"error_{code}" for code in codes} <= set(catalogue("errors")["en"])
    assert say("error_frozen", "ja") == "回答は締め切られました。これ以上は受け付けられません。"


@pytest.mark.parametrize(
    ("header", "lang"),
    [
        ("ja", "ja"),
        ("en-US,en;q=0.9,ja;q=0.8", "en"),
        ("de, ja-JP;q=0.1", "ja"),
        ("ja;q=0, en;q=0.2", "en"),
        ("", None),
        ("de", None),
        ("ja;q=x", None),
        (";;;,,,q=", None),
        ("*", None),
    ],
)
def test_which_language_a_browser_likes(header: str, lang: str | None) -> None:
    assert preferred(header, LANGUAGES) == lang
