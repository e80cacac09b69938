"""Prompts from files, embedded lists and the hub: what is read, what is refused, what is held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from konomi.config import DataConfig
from konomi.data.prompts import distinct_prompts, load_prompts, split_held_out
from konomi.data.records import Prompt
from konomi.data.sources import embedded_file, hub_problem
from konomi.errors import ConfigError, DataError
from refusals import refused as refused_call


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def load(path: Path, **settings: Any) -> list[Prompt]:
    return load_prompts(DataConfig(prompts=str(path), **settings))


def texts(path: Path, **settings: Any) -> list[str]:
    return [prompt.text for prompt in load(path, **settings)]


def refused(path: Path | str, *parts: str, error: type[Exception] = DataError, **settings: Any) -> str:
    return refused_call(lambda: load_prompts(DataConfig(prompts=str(path), **settings)), *parts, error=error)


# what is read


@pytest.mark.parametrize(
    ("name", "body", "expected"),
    [
        ("p.jsonl", '{"text": "今日は", "topic": 1}\n\n{"text": " b ", "other": [2]}\n', [
            Prompt("今日は", {"topic": 1, "other": None}), Prompt(" b ", {"topic": None, "other": [2]}),
        ]),
        ("p.jsonl", '{"text": "a\u2028b\x85c"}\r\n{"text": "d"}', [Prompt("a\u2028b\x85c"), Prompt("d")]),  # ends of lines
        ("p.jsonl", '\ufeff{"text": "a"}', [Prompt("a")]),
        ("P.TXT", "\ufeffone\r\n\n  \ntwo, too\n", [Prompt("one"), Prompt("two, too")]),
        ("p.csv", '\ufefftext,label\r\n"a, ""b""\r\nc",0\r\n\r\nd,1\r\n', [
            Prompt('a, "b"\r\nc', {"label": "0"}), Prompt("d", {"label": "1"}),
        ]),
        ("p.csv", "text\n" + "x" * 400_000 + "\n", [Prompt("x" * 400_000)]),
        ("p.csv", 'sep=|\ntext|"a;b;c"\nx|1\n', [Prompt("x", {"a;b;c": "1"})]),
        ("p.csv", "PAR1,text\n1,a\n", [Prompt("a", {"PAR1": "1"})]),
        ("p.tsv", "text\nhello, world\n", [Prompt("hello, world")]),
        ("p.tsv", "text\n=a;b,c;d\n", [Prompt("=a;b,c;d")]),
        ("p.tsv", "prompt, en\ttext\na\tb\n", [Prompt("b", {"prompt, en": "a"})]),
        ("p.tsv", 'text\tn\n"Hello" he said\t1\n"5\t"6\n', [Prompt('"Hello" he said', {"n": "1"}), Prompt('"5', {"n": '"6'})]),
        ("p.tsv", 'n\ttext\n1\t"a ""b""\nc\r\n\td"\n2\t"e\n3\tf', [
            Prompt('a "b"\nc\r\n\td', {"n": "1"}), Prompt('"e', {"n": "2"}), Prompt("f", {"n": "3"}),
        ]),
        ("p.tsv", 'sep=;\ntext;n\n"a" b;"c;d"\n', [Prompt('"a" b', {"n": "c;d"})]),
        *(("p.txt", text, [Prompt(text)]) for text in ("BZhang went home", "BZh91AY&SY is how it begins", "PAR1 を" + "あ" * 30)),
        ("p.jsonl", '{"text": "a", "n": 1}\n{"text": "b", "n": 2}\n{"text": " a", "n": 3}\n', [  # of equal texts the first
            Prompt("a", {"n": 1}), Prompt("b", {"n": 2}),
        ]),
    ],
)  # fmt: skip
def test_what_is_read(tmp_path: Path, name: str, body: str, expected: list[Prompt]) -> None:
    path = write(tmp_path / name, body)
    assert load(path) == expected
    assert name != "P.TXT" or load(path, column="any") == expected


def test_csv_as_spreadsheets_write_it(tmp_path: Path) -> None:
    expected = [Prompt("a, b", {"label": "0"}), Prompt("c\nd", {"label": ""})]
    for separator in ",;\t":
        line = separator.join
        rows = [["text", "label"], ['"a, b"', "0"], ['"c\nd"', ""]]
        body = "".join(line(row) + "\r\n" for row in rows)
        wider = "".join(line([*row, "", ""]) + "\r\n" for row in rows)
        for text in (body, wider, body + 2 * (line(["", ""]) + "\r\n"), body + line(["", "", ""]), f"sep={separator}\r\n{body}"):
            for name in ("p.csv", "p.tsv") if separator == "\t" or text.startswith("sep=") else ("p.csv",):
                assert load(write(tmp_path / name, text)) == expected, text
                assert load(write(tmp_path / name, b"\xef\xbb\xbf" + text.encode())) == expected, text


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "p.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "label": [0, 1]}), path)
    assert load(path) == [Prompt("a", {"label": 0}), Prompt("b", {"label": 1})]
    refused(path, f"{path}: no column 'txt' (did you mean 'text'?)", "it has: text, label", column="txt")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None]}), path)
    refused(path, f"{path}: row 2: 'text' is null")
    for body in ("text\na\n", ""):
        refused(write(path, body), "not a Parquet file")


def test_equal_texts_with_other_columns(tmp_path: Path) -> None:
    rows = [("a", 1, "x"), ("b", 2, "x"), (" a", 3, "x"), ("a", 3, "y"), ("a", 1, "x")]
    body = "".join(json.dumps({"text": text, "n": n, "id": i}) + "\n" for text, n, i in rows)
    config = DataConfig(prompts=str(write(tmp_path / "p.jsonl", body)))
    for reads, kept, left in (
        ((), [0, 1], "3 of 5 prompts repeat the text of an earlier one and are left out; they differ in 'n', 'id', which"),
        (("n",), [0, 1, 2], "2 of 5 prompts repeat the text of an earlier one and are left out; they differ in 'id', which"),
        (("n", "id"), [0, 1, 2, 3], "1 of 5 prompts repeat the text of an earlier one and are left out"),
        (None, [0, 1, 2, 3], "1 of 5 prompts repeat the text of an earlier one and are left out"),
    ):
        said: list[str] = []
        found = load_prompts(config, reads, said.append)
        assert [(p.text, p.columns["n"], p.columns["id"]) for p in found] == [rows[i] for i in kept]
        assert [line.startswith(f"{config.prompts}: {left}") for line in said] == [True]
        # all on one side of a split, and each with streams of its own
        assert len({p.key for p in found}) == 2 and len({p.stream for p in found}) == len(found)
        train, held_out = split_held_out([*found, Prompt("c"), Prompt("d")], 0.5)
        assert not {p.key for p in train} & {p.key for p in held_out}
        assert found[0].stream == Prompt("a").key
        assert distinct_prompts(load_prompts(config, None), reads, said.append) == found


def test_values_are_as_json_holds_them(tmp_path: Path) -> None:
    import datetime
    from decimal import Decimal

    import pyarrow
    import pyarrow.parquet

    day = datetime.date(2026, 1, 2)
    columns = {
        "text": ["a", "b"], "day": [day, None], "image": [None, b"\x89PNG"], "name": [b"x", b"y"],
        "all": [{"days": [day], "price": Decimal("1.50")}, None], "at": [datetime.datetime(2026, 1, 2, 3), None],
    }  # fmt: skip
    path = tmp_path / "p.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    said: list[str] = []
    first, second = load_prompts(DataConfig(prompts=str(path)), say=said.append)
    assert first.columns == {"day": "2026-01-02", "all": {"days": ["2026-01-02"], "price": 1.5}, "at": "2026-01-02T03:00:00"}
    assert second.columns == {"day": None, "all": None, "at": None}
    assert said == [f"{path}: columns left out, because JSON cannot hold their values: 'name', 'image'"]
    refused(path, f"{path}: row 1: 'name' is binary data; a text is needed", column="name")


def test_limit_reads_no_further(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", '{"text": "a"}\n{"text": "a"}\nnot JSON\n')
    assert texts(path, limit=2) == ["a"]


@pytest.mark.parametrize(
    ("files", "settings"),
    [
        (["japanese/train/0000.jsonl", "japanese/train/0001.jsonl"], {"subset": "japanese", "revision": "refs/convert/parquet"}),
        (["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"], {}),
        (["default/train/0000.jsonl", "default/train/0001.jsonl"], {}),
        (["test.jsonl"], {"split": "test"}),
    ],
)
def test_a_copy_of_a_hub_data_set_is_read_with_the_settings_of_the_hub(
    tmp_path: Path, files: list[str], settings: dict[str, str]
) -> None:
    (tmp_path / "README.md").write_text("# a card", encoding="utf-8")
    for number, name in enumerate([*files, "japanese/other/0.jsonl", "train-old.jsonl", "test-2.jsonl"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, json.dumps({"text": f"text {number}"}))
    assert texts(tmp_path, **settings) == [f"text {number}" for number in range(len(files))]
    refused(tmp_path, "no part 'none'", "data.split", **settings | {"split": "none"})


def test_embedded_lists() -> None:
    for name in ("openings-ja", "openings-en"):
        prompts = load_prompts(DataConfig(prompts=f"embedded:{name}"))
        assert len(prompts) >= 20
        assert len(embedded_file(name).read_text(encoding="utf-8").splitlines()) == len(prompts)
    assert embedded_file("embedded:openings-ja") == embedded_file("openings-ja")


# what is refused


def test_what_is_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "none.jsonl", "none.jsonl: no such file", "seen from")
    refused("none.csv", "none.csv: no such file")
    refused("a/b/c", "a/b/c: no such file")
    refused(tmp_path, "a directory", ".jsonl")
    refused("embedded:openings-jp", "did you mean 'openings-ja'?", "embedded:openings-en")
    for name in ("p.json", "p"):
        refused(write(tmp_path / name, "a"), "file ending", ".jsonl, .csv, .tsv, .parquet or .txt")
    for name, body in (("p.jsonl", ""), ("p.txt", " \n\n"), ("p.csv", ""), ("p.csv", "text\n")):
        refused(write(tmp_path / name, body), "no rows")


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    import bz2
    import gzip

    for name, body, part in (
        ("p.jsonl", gzip.compress(b'{"text": "a"}'), "gzip data: unpack it first (gunzip)"),
        ("p.csv", b"PK\x03\x04\x14\0", 'an Excel workbook or another zip archive: unpack it, or save the sheet as "CSV UTF-8"'),
        ("p.xlsx", b"PK\x03\x04\x14\0", "an Excel workbook"),
        ("p.xls", b"\xd0\xcf\x11\xe0\xa1", "an old Excel workbook"),
        ("p.csv", b"PAR1\x15\x04", "a Parquet file: give it the ending .parquet"),
        ("p.csv", "text\na\n".encode("utf-16"), "UTF-16 text (Excel"),
        ("p.txt", "a\n".encode("utf-16-le"), "UTF-16LE text. Save it as UTF-8: iconv -f UTF-16LE "),
    ):
        refused(write(tmp_path / name, body), f"{tmp_path / name}: {part}")
    refused(write(tmp_path / "p.txt", bz2.compress(b"a" * 99)), "bzip2 data: unpack it first (bunzip2)")
    refused(write(tmp_path / "p.txt", bz2.compress(b"")), "bzip2 data")


@pytest.mark.parametrize("name", ["p.jsonl", "p.csv", "p.txt"])
def test_not_utf8(tmp_path: Path, name: str) -> None:
    good = b'{"text": "a"}\n' if name == "p.jsonl" else b"text\n"
    path = write(tmp_path / name, good + "今日".encode("cp932"))
    refused(path, f"{path}:2: not UTF-8", f"byte {len(good)}", "iconv -f CP932")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that even root cannot read")
def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "p.txt").symlink_to("/proc/self/mem")
    refused(tmp_path / "p.txt", "p.txt: cannot be read: ")


@pytest.mark.parametrize(
    ("name", "body", "line", "part"),
    [
        *(("p.jsonl", '{"text": "a"}\n\n' + body + "\n", 3, part) for body, part in (
            ("{'text': 'b'}", "not JSON: Expecting property name"),
            ('{"text": "b"', "not JSON"),
            ('["b"]', 'a list; each line has to be an object such as {"text": "..."}'),
            ('"b"', "a text; each line"),
            ("3", "a number; each line"),
            ("null", "null; each line"),
            ("[" * 100_000, "JSON that cannot be read"),
            ('{"text": "b", "n": ' + "1" * 5000 + "}", "JSON that cannot be read"),
            ('{"txt": "b"}', "no column 'text' (did you mean 'txt'?); it has: txt. Set data.column"),
            ("{}", "no column 'text'; it has: none"),
            ('{"text": true}', "'text' is true or false"),
            ('{"text": {}}', "'text' is an object"),
            ('{"text": " \\n\\u3000"}', "'text' is blank"),
            ('{"text": "ab\\ud800"}', "half a character (a surrogate) at position 2"),
        )),
        ("p.csv", "a,b\n1,2\n", 1, "no column 'text'; it has: a, b. Set data.column; the first line of a CSV file"),
        ("p.csv", "text,b,b\n", 1, "two columns are named 'b'"),
        ("p.csv", 'text,b\n"x\ny",1\nz\n', 4, "1 fields, but the header names 2"),
        ("p.csv", "text,b\nx,1,2\n", 2, "3 fields, but the header names 2"),
        ("p.csv", "text,b,,\nx,1,,2\n", 2, "4 fields, but the header names 2"),
        ("p.csv", "\nsep=;\ntext;b\nx;1;2\n", 4, "3 fields, but the header names 2; a field with a semicolon"),
        ("p.csv", 'text\n"a" b\n', 2, "not CSV"),
        ("p.csv", 'text\n"a\n', 2, "not CSV"),
        ("p.csv", 'text,b\n"x\ny",1\n ,2\n', 4, "'text' is blank"),
        ("p.tsv", 'text\n"a" b\nc\td\n', 3, "2 fields, but the header names 1; a field with a tab"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_bad_row_is_told_with_file_and_line(tmp_path: Path, name: str, body: str, line: int, part: str) -> None:
    path = write(tmp_path / name, body)
    refused(path, f"{path}:{line}: ", part)


@pytest.mark.parametrize("setting", [{"subset": "ja"}, {"split": "test"}, {"revision": "main"}])
def test_settings_for_the_hub_are_refused_with_a_file(tmp_path: Path, setting: dict[str, str]) -> None:
    refused(write(tmp_path / "p.txt", "a"), f"data.{next(iter(setting))}", error=ConfigError, **setting)


def test_the_hub_is_not_reachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # no one listens there
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert "127.0.0.1:9" in (hub_problem() or "")
    refused("someone/some-reviews", "someone/some-reviews", "cannot be fetched", "127.0.0.1:9", "embedded:openings-ja")
    assert constants.HF_HUB_OFFLINE is False
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub_problem() == "HF_HUB_OFFLINE is set"


# held out


def some(count: int) -> list[Prompt]:
    return [Prompt(f"text {number}") for number in range(count)]


def test_a_text_stays_on_its_side() -> None:
    _, held_out = split_held_out(some(200), 0.2)
    _, of_more = split_held_out([Prompt("another"), *reversed(some(400))], 0.2)
    assert {p.key for p in held_out} == {p.key for p in of_more} & {p.key for p in some(200)}
    _, of_larger_share = split_held_out(some(200), 0.5)
    assert {p.key for p in held_out} < {p.key for p in of_larger_share}
    refused_call(lambda: split_held_out(some(3), 1.0), "data.held_out = 1.0: all of the 3 texts are held out")
