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


def bad(case: str, where: Path) -> list[str]:
    """A command that cannot be done, and what it needs."""
    project = make_project(where / "P", 2)
    candidates = candidates_file(where / "c.jsonl", 2)
    if case == "no store":
        project.labels.unlink()
    if case in ("corrupt", "corrupt export", "corrupt forget"):
        project.labels.write_bytes(b"SQLite format 3\0" + b"\x55" * 5000)
    if case == "another program's":
        project.labels.write_bytes(b"")
    if case == "setting":
        settings = project.path / "project.json"
        settings.write_text(settings.read_text("utf-8").replace('"overlap"', '"overlapp"'), "utf-8")
    if case == "newer":
        settings = project.path / "project.json"
        settings.write_text(settings.read_text("utf-8").replace('"version": 1', '"version": 9'), "utf-8")
    if case in ("export over", "freeze"):
        with project.store() as store:
            work(store, add_person(store, "a")[0])
    (where / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}\n')
    (where / "broken.jsonl").write_text("{\n", "utf-8")
    (where / "other.jsonl").write_text('{"version": 1, "a": 1}\n', "utf-8")
    out = str(where / "out")
    return {
        "K = 1": ["label", "Q", "--candidates", one(where, '[{"text": "a"}]')],
        "K = 10": ["label", "Q", "--candidates", one(where, str([{"text": f"t{i}"} for i in range(10)]).replace("'", '"'))],
        "a candidate twice": ["label", "Q", "--candidates", one(where, '[{"text": "a"}, {"text": "a"}]')],
        "empty": ["label", "Q", "--candidates", one(where, None)],
        "not UTF-8": ["label", "Q", "--candidates", str(where / "latin.jsonl")],
        "not JSON": ["label", "Q", "--candidates", str(where / "broken.jsonl")],
        "other columns": ["label", "Q", "--candidates", str(where / "other.jsonl")],
        "no file": ["label", "Q", "--candidates", str(where / "nothing.jsonl")],
        "no project": ["label", "Q"],
        "no project to export": ["export", str(where / "Q"), "--out", out],
        "no store": ["export", str(project.path), "--out", out],
        "a file": ["label", str(candidates), "--candidates", str(candidates)],
        "corrupt": ["label", str(project.path)],
        "corrupt export": ["export", str(project.path), "--out", out],
        "corrupt forget": ["forget", str(project.path), "a", "--yes"],
        "another program's": ["export", str(project.path), "--out", out],
        "nobody": ["forget", str(project.path), "nobody", "--yes"],
        "no answers": ["export", str(project.path), "--out", out],
        "export over": ["export", str(project.path), "--out", str(where)],
        "setting": ["label", str(project.path)],
        "newer": ["label", str(project.path)],
        "network": ["label", str(project.path), "--host", "0.0.0.0"],
        "host": ["label", str(project.path), "--host", "no.such.host.invalid"],
        "no run": ["compare", str(where / "nothing"), "--people", "Q"],
    }.get(case, [])


def one(where: Path, candidates: str | None) -> str:
    path = where / f"{len(candidates or '')}.jsonl"
    path.write_text("" if candidates is None else f'{{"version": 1, "prompt": "p", "candidates": {candidates}}}\n', "utf-8")
    return str(path)


CASES = {
    "K = 1": "候補が 2 つに満たない",
    "K = 10": "より候補が多い",
    "a candidate twice": "同じ候補が 2 つある",
    "empty": "課題がありません",
    "not UTF-8": "UTF-8 で保存",
    "not JSON": "JSON として",
    "other columns": "列",
    "no file": "見つかりません",
    "no project": "プロジェクトがまだありません",
    "no project to export": "プロジェクトがありません",
    "no store": "プロジェクトがありません",
    "a file": "別の名前に",
    "corrupt": "壊れています",
    "corrupt export": "壊れています",
    "corrupt forget": "壊れています",
    "another program's": "回答を保存したファイルではありません",
    "nobody": "その人は見つかりません",
    "no answers": "まだ誰も回答していない",
    "export over": "上書きはしません",
    "setting": "不明な項目",
    "newer": "konomi を更新",
    "network": "--allow-network",
    "host": "アドレスは見つかりません",
    "no run": "そのディレクトリはありません",
}


def unknown(*_: Any, **__: Any) -> None:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_said_in_the_readers_language(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = bad(case, tmp_path)
    if case == "host":
        monkeypatch.setattr(socket, "getaddrinfo", unknown)
    before = sorted(path.name for path in tmp_path.iterdir())

    def said(locale: dict[str, str]) -> Any:
        result = CliRunner().invoke(app, command, env=locale)
        assert result.exit_code == 2, (result.output, result.exception)
        assert "Traceback" not in result.output
        return result.stderr

    english = said(ENGLISH)
    assert not re.search("[ぁ-ん]", english)
    first, rest = said(JAPANESE).split("\n", 1)
    assert CASES[case] in first
    assert rest in english  # the same message, with all its details
    assert sorted(path.name for path in tmp_path.iterdir()) == before


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
