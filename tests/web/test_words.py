"""The words of the pages and of their errors: the same keys in each language, each one that is needed, and no other."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from string import Formatter

import pytest

from konomi.labelling import answers, people
from konomi.labelling.project import GUIDELINES, LANGUAGES
from konomi.report.advice import locale
from konomi.web.errors import STATUS, catalogue, preferred, say

WEB = Path(__file__).resolve().parents[2] / "src" / "konomi" / "web"
PARTS = [*sorted((WEB / "static").glob("*.js")), *sorted((WEB / "templates").rglob("*.html"))]
CODES = set(STATUS) | set(re.findall(r'Refused\(\s*"(\w+)"', "".join(inspect.getsource(module) for module in (answers, people))))


@pytest.mark.parametrize("name", ["errors", "page"])
def test_the_languages_have_the_same_words(name: str) -> None:
    both = catalogue(name)
    assert set(both) == set(LANGUAGES)
    ja, en = both["ja"], both["en"]
    assert list(ja) == list(en)
    for key in ja:
        fields = [{field for _, field, _, _ in Formatter().parse(words[key]) if field} for words in (ja, en)]
        assert fields[0] == fields[1], key
        assert all(words[key] == words[key].strip() != "" for words in (ja, en)), key


def test_japanese_is_japanese_and_english_is_not() -> None:
    for name in ("errors", "page"):
        latin = {key for key, text in catalogue(name)["ja"].items() if not re.search("[ぁ-んァ-ヶ一-龠]", text)}
        assert latin <= {"progress_mine_value", "progress_team_value"}
        assert not [key for key, text in catalogue(name)["en"].items() if re.search("[ぁ-んァ-ヶ一-龠]", text)]


def test_one_thing_has_one_name() -> None:
    ja = [*catalogue("page")["ja"].values(), *catalogue("errors")["ja"].values(), GUIDELINES]
    for text in ja:
        assert not re.search("(?<![受応])答え|飛ば|同点|順位付|[ぁ-んァ-ヶ一-龠][()]|[ｦ-ﾟ]", text), text


def test_every_code_has_words() -> None:
    assert len(CODES) > 25
    assert {f"error_{code}" for code in CODES} <= set(catalogue("errors")["en"])
    assert say("error_frozen", "ja") == "回答は締め切られました。これ以上は受け付けられません。"


def test_no_error_is_left_over() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in WEB.glob("*.py"))
    used = {f"error_{code}" for code in CODES}
    assert [key for key in catalogue("errors")["en"] if key not in used and f'"{key}"' not in source] == []


@pytest.mark.parametrize("path", PARTS, ids=lambda path: path.name)
def test_every_word_that_is_asked_for_is_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    asked = re.findall(r'\bt\("(\w+)"[,)]', text) + re.findall(r'data-t(?:-label)?="(\w+)"', text)
    asked += re.findall(r"words\[lang\]\.(\w+)", text) + re.findall(r'"data-t": "(\w+)"', text)
    assert set(asked) <= set(catalogue("page")["en"]) | set(locale("page")["en"] if path.name == "runs.js" else ())


def test_no_word_is_left_over() -> None:
    """A key is used where it is quoted, named as ``words[lang].key``, or put together from a part of it."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in PARTS)
    whole = set(re.findall(r'"(\w+)"', text)) | set(re.findall(r"words\[lang\]\.(\w+)", text))
    begun = tuple(re.findall(r"`(\w+_)\$\{", text) + re.findall(r'"(\w+_)" ~', text) + re.findall(r'"(\w+_)%d"', text))
    ended = tuple(re.findall(r"\}(_\w+)`", text))
    keys = set(catalogue("page")["en"])
    assert sorted(key for key in keys if key not in whole and not key.startswith(begun) and not key.endswith(ended)) == []


@pytest.mark.parametrize("path", [path for path in PARTS if path.suffix == ".html"], ids=lambda path: path.name)
def test_templates_hold_no_script_and_no_style(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"<style|\bstyle=|\son\w+=|<script(?! type=\"module\" src=)|https?://", text) == []


def test_files_are_small() -> None:
    assert [path.name for path in PARTS if len(path.read_text(encoding="utf-8").splitlines()) > 330] == []


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
