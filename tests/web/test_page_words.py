"""The words of the pages: both languages have the same keys, and every key that is asked for is there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

WEB = Path(__file__).resolve().parents[2] / "src" / "konomi" / "web"
WORDS = {lang: json.loads((WEB / "locales" / f"page.{lang}.json").read_text(encoding="utf-8")) for lang in ("ja", "en")}
SOURCES = [*sorted((WEB / "static").glob("*.js")), *sorted((WEB / "templates").rglob("*.html"))]


def test_both_languages_say_the_same_things() -> None:
    assert list(WORDS["ja"]) == list(WORDS["en"])
    for key in WORDS["ja"]:
        blanks = [set(re.findall(r"\{\w+\}", words[key])) for words in WORDS.values()]
        assert blanks[0] == blanks[1], key
        assert all(words[key].strip() for words in WORDS.values()), key


def test_japanese_is_japanese() -> None:
    latin = {key for key, text in WORDS["ja"].items() if not re.search("[ぁ-んァ-ヶ一-龠]", text)}
    assert latin <= {"progress_mine_value", "progress_team_value", "curve_label", "alert_stopped"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_key_that_is_asked_for_is_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    asked = re.findall(r'\bt\("(\w+)"[,)]', text) + re.findall(r'data-t(?:-label)?="(\w+)"', text)
    asked += re.findall(r"words\[lang\]\.(\w+)", text)
    assert set(asked) <= set(WORDS["en"])


def test_no_key_is_left_over() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    families = (
        "state_",
        "kind_",
        "status_",
        "flag_",
        "confidence_",
        "progress_",
        "better_",
        "worse_",
        "clear_",
        "before",
        "after",
    )
    left = [key for key in WORDS["en"] if not re.search(rf'[".]{key}\b', text) and not key.startswith(families)]
    assert left == []


@pytest.mark.parametrize("path", [path for path in SOURCES if path.suffix == ".html"], ids=lambda path: path.name)
def test_templates_hold_no_script_and_no_style(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"<style|\bstyle=|\son\w+=|<script(?! type=\"module\" src=)|https?://", text) == []


def test_files_are_small() -> None:
    assert [path.name for path in SOURCES if len(path.read_text(encoding="utf-8").splitlines()) > 330] == []
