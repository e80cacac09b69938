"""The labelling verbs in a Japanese terminal: each thing that can be wrong is said in Japanese, with the English details."""

from __future__ import annotations

import ast
import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from konomi.cli import app
from konomi.cli.japanese import SENTENCES
from konomi.labelling.people import add_person
from konomi.labelling.project import open_project
from label_site import candidates_file, make_project
from people_at_work import work

SOURCES = Path(__file__).resolve().parents[1] / "src" / "konomi"
ENGLISH, JAPANESE = {"LC_ALL": "en_US.UTF-8"}, {"LC_ALL": "", "LC_MESSAGES": "", "LANG": "ja_JP.UTF-8"}


def test_every_sentence_belongs_to_a_message_that_there_is() -> None:
    text = "".join(path.read_text("utf-8") for path in SOURCES.rglob("*.py") if path.name != "japanese.py")
    text = re.sub(r'"\s+f?"', "", text)  # texts that go on in the next line
    assert [part for part, _ in SENTENCES if part not in text] == []
    parts = [part for part, _ in SENTENCES]
    assert len(set(parts)) == len(parts)
    for _, sentence in SENTENCES:
        assert re.search("[ぁ-ん]", sentence) and sentence.endswith("。") and not re.search("[ｦ-ﾟ]", sentence)


ROWS = {
    "one.jsonl": '[{"text": "a"}]',
    "ten.jsonl": json.dumps([{"text": f"t{i}"} for i in range(10)]),
    "twice.jsonl": '[{"text": "a"}, {"text": "a"}]',
}
"""Files of one task -> its candidates."""
CASES = {
    "K = 1": ("候補が 2 つに満たない", "label Q --candidates one.jsonl"),
    "K = 10": ("より候補が多い", "label Q --candidates ten.jsonl"),
    "a candidate twice": ("同じ候補が 2 つある", "label Q --candidates twice.jsonl"),
    "empty": ("課題がありません", "label Q --candidates empty.jsonl"),
    "not UTF-8": ("UTF-8 で保存", "label Q --candidates latin.jsonl"),
    "not JSON": ("JSON として", "label Q --candidates broken.jsonl"),
    "other columns": ("列", "label Q --candidates other.jsonl"),
    "no file": ("見つかりません", "label Q --candidates nothing.jsonl"),
    "no project": ("プロジェクトがまだありません", "label Q"),
    "no project to export": ("プロジェクトがありません", "export Q --out out"),
    "no store": ("プロジェクトがありません", "export P --out out"),
    "a file": ("別の名前に", "label c.jsonl --candidates c.jsonl"),
    "corrupt": ("壊れています", "label P"),
    "corrupt export": ("壊れています", "export P --out out"),
    "corrupt forget": ("壊れています", "forget P a --yes"),
    "another program's": ("回答を保存したファイルではありません", "export P --out out"),
    "nobody": ("その人は見つかりません", "forget P nobody --yes"),
    "no answers": ("まだ誰も回答していない", "export P --out out"),
    "export over": ("上書きはしません", "export P --out ."),
    "setting": ("不明な項目", "label P"),
    "newer": ("konomi を更新", "label P"),
    "network": ("--allow-network", "label P --host 0.0.0.0"),
    "host": ("アドレスは見つかりません", "label P --host no.such.host.invalid"),
    "no run": ("そのディレクトリはありません", "compare nothing --people Q"),
}
"""What is wrong -> a part of its sentence, and a command."""


def furnish(where: Path, case: str) -> None:
    """A project P, files of candidates, and the damage of a case."""
    project = make_project(where / "P", 2)
    candidates_file(where / "c.jsonl", 2)
    for name, candidates in ROWS.items():
        (where / name).write_text(f'{{"version": 1, "prompt": "p", "candidates": {candidates}}}\n', "utf-8")
    for name, content in (
        ("empty", b""),
        ("latin", b'{"prompt": "\xe9"}\n'),
        ("broken", b"{\n"),
        ("other", b'{"version": 1, "a": 1}\n'),
    ):
        (where / f"{name}.jsonl").write_bytes(content)
    settings = project.path / "project.json"
    if case == "no store":
        project.labels.unlink()
    if case.startswith("corrupt"):
        project.labels.write_bytes(b"SQLite format 3\0" + b"\x55" * 5000)
    if case == "another program's":
        project.labels.write_bytes(b"")
    if case == "setting":
        settings.write_text(settings.read_text("utf-8").replace('"overlap"', '"overlapp"'), "utf-8")
    if case == "newer":
        settings.write_text(settings.read_text("utf-8").replace('"version": 1', '"version": 9'), "utf-8")
    if case == "export over":
        with project.store() as store:
            work(store, add_person(store, "a")[0])


def unknown(*_: Any, **__: Any) -> None:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def test_what_is_wrong_is_said_in_the_readers_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(case: str, command: str, locale: dict[str, str]) -> str:
        result = CliRunner().invoke(app, command.split(), env=locale)
        assert result.exit_code == 2, (case, result.output, result.exception)
        assert "Traceback" not in result.output, case
        return result.stderr

    for case, (sentence, command) in CASES.items():
        where = tmp_path / re.sub(r"\W", "", case)
        where.mkdir()
        furnish(where, case)
        monkeypatch.chdir(where)
        before = sorted(path.name for path in where.iterdir())
        with monkeypatch.context() as patch:
            if case == "host":
                patch.setattr(socket, "getaddrinfo", unknown)
            english, (first, rest) = said(case, command, ENGLISH), said(case, command, JAPANESE).split("\n", 1)
        assert not re.search("[ぁ-ん]", english), case
        assert sentence in first, (case, first)
        assert rest in english, case  # the same message, with all its details
        assert sorted(path.name for path in where.iterdir()) == before, case


def test_a_person_who_is_there_is_found(tmp_path: Path) -> None:
    project = make_project(tmp_path / "P", 2)
    with open_project(project.path).store() as store:
        add_person(store, "葵")
    assert CliRunner().invoke(app, ["forget", str(project.path), "葵", "--yes"], env=JAPANESE).exit_code == 0


# -- style ---------------------------------------------------------------------------------------------------------------

BANNED = {
    "の道具": "ツール", "断ります": "エラーにします", "取り置": "評価用（ホールドアウト）の", "当たり具合": "較正",
    "この版": "このバージョン", "同じ版": "同じバージョン", "新しい版": "新しいバージョン", "計算機": "マシン",
    "ほかの機械": "ほかのマシン", "この機械": "このマシン", "二つ": "2 つ", "三つ": "3 つ", "二人": "2 人",
    "当てずっぽう": "偶然", "審査役": "ジャッジ", "審判": "ジャッジ", "要求": "リクエスト",
    "お題": "書き出し",
    "まだないもの": "未対応の機能", "のもの。": "のものです。",
}  # fmt: skip
"""What no native reader would write in software -> what is written instead."""
NO_BAR = re.compile("ブラウザ(?!ー)")
CLOSE = re.compile("[0-9][つ人]")
FLAG = re.compile("(?<![矢目])印(?![刷象])")
POLITE = re.compile("(です|ます|ました|ません|でした|ましょう|ください|でしょうか|ですか|ますか|せんか)」*[。？]$")


def impolite(text: str) -> list[str]:
    """The sentences that do not end in です or ます. What is in brackets may be a noun."""
    plain = re.sub("（[^（）]*）", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text))
    return [each for each in re.findall(r"[^。？|]*[。？]」*", plain) if not POLITE.search(each)]


def prose(text: str) -> str:
    """Markdown without its code."""
    return re.sub(r"`[^`]*`", "`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def japanese_texts() -> dict[str, str]:
    """Place -> Japanese text that people read: the README, the catalogues, and the strings of the package."""
    root = SOURCES.parents[1]
    found = {f"README.ja.md: {line[:20]}": line for line in prose((root / "README.ja.md").read_text("utf-8")).splitlines()}
    for path in SOURCES.rglob("*.ja.json"):
        words = json.loads(path.read_text("utf-8"))
        found |= {f"{path.name}: {key}": text for key, text in words.items()}
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "。" in node.value and ">>>" not in node.value:
                found |= {f"{path.name}:{node.lineno}, {i}": line for i, line in enumerate(node.value.splitlines())}
    return {place: text for place, text in found.items() if re.search("[ぁ-んァ-ヶ一-龠]", text)}


def test_japanese_is_polite_and_not_translated() -> None:
    texts = japanese_texts()
    assert len(texts) > 400
    wrong = []
    for place, text in texts.items():
        wrong += [f"{place}: {phrase}, write {better}" for phrase, better in BANNED.items() if phrase in text]
        wrong += [f"{place}: ブラウザ, write ブラウザー"] if NO_BAR.search(text) else []
        wrong += [f"{place}: no space before つ or 人"] if CLOSE.search(text) else []
        wrong += [f"{place}: 印, write フラグ"] if FLAG.search(text) else []
        wrong += [f"{place}: not です・ます: {each}" for each in impolite(text)]
        wrong += [f"{place}: a bracket of half width" for _ in re.finditer(r"\([^()]*[ぁ-んァ-ヶ一-龠][^()]*\)", text)]
    assert wrong == []


def test_the_style_test_would_notice() -> None:
    for text in ("学習に使っていない。", "確かめること。", "比較は 3 件。", "続きを書く（英語です）。", "読みます。書く。"):
        assert len(impolite(text)) == 1, text
    for text in ("使いません。", "まとめています（英語）。", "[こちら](a.md)を選んでください。", "名前", "読みますか？"):
        assert impolite(text) == [], text
    assert FLAG.search("文に印をつける") and not FLAG.search("印刷と矢印")
