"""The words of the pages and of their errors: the same keys in each language, each one that is needed, and no other."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from string import Formatter

from konomi.labelling import answers, chats, decisions, people, validation
from konomi.labelling.project import CHAT_GUIDELINES, GUIDELINES, LANGUAGES
from konomi.report.advice import locale
from konomi.report.page import STATIC
from konomi.web import chat
from konomi.web.errors import STATUS, catalogue, preferred, say

WEB = Path(__file__).resolve().parents[2] / "src" / "konomi" / "web"
PARTS = [*sorted((WEB / "static").glob("*.js")), *sorted((WEB / "templates").rglob("*.html"))]
SOURCES = "".join(map(inspect.getsource, (answers, chats, decisions, people, validation, chat)))
CODES = set(STATUS) | set(re.findall(r'Refused\(\s*"(\w+)"', SOURCES))


CATALOGUES = {
    "errors": catalogue("errors"), "page": catalogue("page"), "report": locale("page"), "advice": locale("advice"),
}  # fmt: skip
FIGURES_ONLY = {"progress_mine_value", "progress_team_value", "alert_stopped", "curve_label", "run_value"}


def test_the_languages_have_the_same_words() -> None:
    for name, words in CATALOGUES.items():
        assert set(words) == set(LANGUAGES)
        ja, en = words["ja"], words["en"]
        assert list(ja) == list(en)
        for key in ja:
            fields = [{field for _, field, _, _ in Formatter().parse(text[key]) if field} for text in (ja, en)]
            assert name == "advice" or fields[0] == fields[1], key
            assert all(text[key] == text[key].strip() != "" for text in (ja, en)), key
            assert re.search("[ぁ-んァ-ヶ一-龠]", ja[key]) or key in FIGURES_ONLY, key
            assert not re.search("[ぁ-んァ-ヶ一-龠]", en[key]), key


def test_one_thing_has_one_name() -> None:
    ja = [*catalogue("page")["ja"].values(), *catalogue("errors")["ja"].values(), GUIDELINES, CHAT_GUIDELINES]
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


def test_every_word_that_is_asked_for_is_there() -> None:
    for path in PARTS:
        text = path.read_text(encoding="utf-8")
        asked = re.findall(r'\bt\("(\w+)"[,)]', text) + re.findall(r'data-t(?:-label)?="(\w+)"', text)
        asked += re.findall(r"words\[lang\]\.(\w+)", text) + re.findall(r'"data-t": "(\w+)"', text)
        assert set(asked) <= set(catalogue("page")["en"]) | set(locale("page")["en"] if path.name == "runs.js" else ()), path.name


def test_no_word_is_left_over() -> None:
    """A key is used where it is quoted, named as ``words[lang].key``, or put together from a part of it."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in [*PARTS, WEB / "figures.py"])
    whole = set(re.findall(r'"(\w+)"', text)) | set(re.findall(r"words\[lang\]\.(\w+)", text))
    begun = tuple(re.findall(r"`(\w+_)\$\{", text) + re.findall(r'"(\w+_)" ~', text) + re.findall(r'"(\w+_)%d"', text))
    ended = tuple(re.findall(r"\}(_\w+)`", text))
    keys = set(catalogue("page")["en"])
    assert sorted(key for key in keys if key not in whole and not key.startswith(begun) and not key.endswith(ended)) == []


def test_templates_hold_no_script_and_no_style_and_files_are_small() -> None:
    for path in [*PARTS, *STATIC.glob("*.js")]:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 330, path.name
        if path.suffix == ".html":
            found = re.findall(r"<style|\bstyle=|\son\w+=|<script(?! type=\"module\" src=)|https?://", text)
            assert found == [], path.name


def test_which_language_a_browser_likes() -> None:
    for header, lang in (("ja", "ja"), ("en-US,en;q=0.9,ja;q=0.8", "en"), ("de, ja-JP;q=0.1", "ja"), ("ja;q=0, en;q=0.2", "en"),
                         ("", None), ("de", None), ("ja;q=x", None), (";;;,,,q=", None), ("*", None)):  # fmt: skip
        assert preferred(header, LANGUAGES) == lang, header
