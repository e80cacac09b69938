"""Rows as texts to learn from: the three kinds, labelled texts; how they are told apart, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from konomi.config import RewardData, SFTData
from konomi.data.examples import Example, load_examples, read_labelled, split_examples
from konomi.data.records import Prompt
from konomi.errors import ConfigError, DataError
from refusals import jsonl
from refusals import refused as refused_call

TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def write(path: Path, *rows: Any) -> str:
    return str(jsonl(path, *rows))


def load(path: str | Path, **settings: Any) -> tuple[str, list[Example]]:
    return load_examples(SFTData(texts=str(path), **settings))


def refused(path: str | Path, *words: str, error: type[Exception] = DataError, **settings: Any) -> None:
    refused_call(lambda: load(path, **settings), *words, error=error)


# -- what is read ------------------------------------------------------------------------------------------------------


def test_the_three_kinds(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", {"text": "a b", "topic": 1}, {"text": "c"})
    assert load(path) == ("text", [Example(f"{path}:1", "a b"), Example(f"{path}:2", "c")])
    (tmp_path / "t.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    kind, examples = load(tmp_path / "t.txt", text_column="any")
    assert (kind, [e.text for e in examples]) == ("text", ["one", "two"])
    assert load("embedded:openings-en")[0] == "text"
    path = write(tmp_path / "t.jsonl", {"prompt": "p ", "completion": "c", "id": 3})
    assert load(path) == ("prompt-completion", [Example(f"{path}:1", "p ", "c")])
    (tmp_path / "t.csv").write_text("question,answer\nwhy,so\n", encoding="utf-8")
    kind, examples = load(tmp_path / "t.csv", prompt_column="question", completion_column="answer")
    assert (kind, examples) == ("prompt-completion", [Example(f"{tmp_path}/t.csv:2", "why", "so")])
    talks = [TALK, TALK[:1] * 2 + TALK]
    path = write(tmp_path / "t.jsonl", *({"messages": talk} for talk in talks))
    assert load(path) == ("messages", [Example(f"{path}:{n}", messages=tuple(talk)) for n, talk in enumerate(talks, start=1)])


def test_a_kind_that_is_named_needs_its_own_columns_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", {"text": "whole", "prompt": "p", "completion": "c"})
    refused(path, "t.jsonl:1", "text, prompt, completion", "prompt-completion and text", "set data.kind", error=ConfigError)
    assert load(path, kind="text")[1] == [Example(f"{path}:1", "whole")]
    assert load(path, kind="prompt-completion")[1] == [Example(f"{path}:1", "p", "c")]


def test_columns_that_are_not_read_are_told_and_answers_not_passed_over(tmp_path: Path) -> None:
    asked = {"ID": "1", "text": "なぜ?", "instruction": "", "出力": "だから。"}
    for name in ("output", "出力", "Model Answer", "gold_response", "回答1"):
        row = {"ID": "1", "text": "why?", name: "so"}
        path = write(tmp_path / "t.jsonl", {"text": "a"}, row)
        refused(
            path, f"{path}:2: 'text' alone would be learned, but {name!r} looks like the answer to it. Set data.kind = "
            f'"prompt-completion", data.prompt_column = "text" and data.completion_column = "{name}"; or, to learn \'text\' '
            'alone, data.kind = "text"', error=ConfigError,
        )  # fmt: skip
        assert len(load(path, kind="text")[1]) == 2
    columns = {"kind": "prompt-completion", "prompt_column": "text", "completion_column": "出力"}
    assert load(write(tmp_path / "t.jsonl", asked), **columns)[1] == [Example(f"{tmp_path}/t.jsonl:1", "なぜ?", "だから。")]
    said: list[str] = []
    rows = [{"text": "a", "responses": 3, "title": "b"}, {"text": "c", "output": " "}, {"text": "d", "date": "e"}]
    path = write(tmp_path / "t.jsonl", *rows)
    load_examples(SFTData(texts=path), said.append)
    assert said == [f"{path}: read as text; columns not used: 'responses', 'title', 'output', 'date'"]
    (tmp_path / "t.csv").write_text("text,response_time,answer_id,output_tokens,response\na,fast,a-1,few,1.5\n", encoding="utf-8")
    assert load(tmp_path / "t.csv")[1] == [Example(f"{tmp_path}/t.csv:2", "a")]


def test_completions_that_repeat_their_prompt(tmp_path: Path) -> None:
    said: list[str] = []
    rows = [{"prompt": f"Q{n}:", "completion": f"Q{n}: yes"} for n in range(9)]
    path = write(tmp_path / "t.jsonl", *rows, {"prompt": "Hi", "completion": "Hi"})
    _, examples = load_examples(SFTData(texts=path), said.append)
    assert [each.completion for each in examples] == [" yes"] * 9 + ["Hi"]
    assert said == [f"{path}: in 9 of 10 rows the answers begin with the prompt; it is taken off"]
    _, examples = load_examples(SFTData(texts=path, limit=1))
    assert examples[0].completion == " yes"
    rows += [{"prompt": "Hi", "completion": "Hello"}] * 2
    assert load(write(tmp_path / "t.jsonl", *rows))[1][0].completion == "Q0: yes"


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"txt": "a"}, ["it has the columns txt", "'messages', or 'prompt' and 'completion', or 'text'", "data.text_column"]),
        ({"prompt": "a"}, ["it has the columns prompt", "data.completion_column"]),
        ({"text": 3}, ["'text' is a number"]),
        ({"text": " "}, ["'text' is blank"]),
        ({"prompt": "p", "completion": ""}, ["'completion' is blank"]),
        ({"messages": "hi"}, ["'messages' is a text", '{"role": ..., "content": ...}']),
        ({"messages": []}, ["'messages' is an empty list"]),
        ({"messages": ["hi"]}, ["message 1 of 'messages' is a text"]),
        ({"messages": [{"content": "hi"}]}, ["message 1 of 'messages' is an object with content", '"role": "user"']),
        ({"messages": [TALK[0], {"role": "assistant", "content": None}]}, ["the content of message 2 of 'messages' is null"]),
        ({"messages": TALK[:1]}, ["no message of the assistant"]),
        ({"messages": TALK[::-1]}, ["begins with the assistant"]),
    ],
)
def test_bad_rows(tmp_path: Path, row: dict[str, Any], words: list[str]) -> None:
    refused(write(tmp_path / "t.jsonl", row), "t.jsonl:1: ", *words)


def test_a_later_row_without_the_column_and_no_rows(tmp_path: Path) -> None:
    pair = {"prompt": "p", "completion": "c"}
    for first, row, column in (
        ({"text": "a"}, {"txt": "b"}, "text"), (pair, {"prompt": "p"}, "completion"), (pair, {"completion": "c"}, "prompt"),
        ({"messages": TALK}, {}, "messages"),
    ):  # fmt: skip
        path = write(tmp_path / "t.jsonl", first, row)
        refused(path, f"t.jsonl:2: no column '{column}'", f"data.{column}_column")
        assert len(load(path, limit=1)[1]) == 1  # it reads no further
    for kind in ("auto", "text"):
        refused(write(tmp_path / "t.jsonl"), "t.jsonl: no rows in it; at least two texts are needed", kind=kind)
    refused(tmp_path / "none.jsonl", "no such file")


# -- held out ----------------------------------------------------------------------------------------------------------


def test_rows_with_one_prompt_are_on_one_side() -> None:
    talks = [(*TALK[:1], {"role": "assistant", "content": answer}) for answer in ("x", "y")]
    rows = [Example("", f"prompt {n}", completion) for n in range(100) for completion in ("x", "y")]
    rows += [Example("", messages=talk) for talk in talks]
    train, held_out = split_examples(rows, SFTData(texts="t", held_out=0.3))
    assert len(train) + len(held_out) == len(rows)
    assert not {e.key for e in train} & {e.key for e in held_out}
    assert all(int(e.key, 16) < 0.3 * 2**128 for e in held_out)
    assert {e.key for e in held_out if e.text} <= {Prompt(f"prompt {n}").key for n in range(100)}
    first, second, asked, other = (Example("", messages=talk).key for talk in (*talks, TALK[:1], TALK[1:]))
    assert first == second == asked != other
    with pytest.raises(DataError, match=r"t: of its 1 rows none is held out for the evaluation.*data.held_out = 1e-09"):
        split_examples([Example("", "a")], SFTData(texts="t", held_out=1e-9))
    with pytest.raises(DataError, match=r"t: of its 1 rows all are held out for the evaluation.*data.held_out = 0.999999"):
        split_examples([Example("", "a")], SFTData(texts="t", held_out=0.999999))


# -- labelled texts ----------------------------------------------------------------------------------------------------


def many(labels: list[Any]) -> list[dict[str, Any]]:
    return [{"text": f"text {i}", "label": labels[i % len(labels)], "source": "x"} for i in range(60)]


def labelled(tmp_path: Path, rows: list[Any], **settings: Any) -> Any:
    return read_labelled(RewardData(file=write(tmp_path / "a.jsonl", *rows), **settings))


@pytest.mark.parametrize(
    ("given", "settings", "names"),
    [
        ([0, 1, 2], {}, ("0", "1", "2")),
        (["2", "0", "1"], {}, ("0", "1", "2")),
        (["good", "bad"], {}, ("bad", "good")),
        ([1, 0], {"labels": ("neg", "pos")}, ("neg", "pos")),
        (["pos", "neg"], {"labels": ("neg", "pos")}, ("neg", "pos")),
        *(([*given], {}, ("0", "1")) for given in ((0.0, 1.0), ("0.0", "1.0"), (0, 1.0))),  # of a table with a gap
    ],
)
def test_labels_are_names_or_numbers(tmp_path: Path, given: list[Any], settings: dict[str, Any], names: tuple[str, ...]) -> None:
    rows = many(given)
    assert sum(map(len, labelled(tmp_path, rows, limit=20, **settings)[:2])) == 20
    train, held_out, labels = labelled(tmp_path, rows, **settings)
    renamed = [{"review": row["text"], "stars": row["label"]} for row in rows]
    assert labelled(tmp_path, renamed, text="review", label="stars", **settings) == (train, held_out, labels)
    assert labels == names and len(train) + len(held_out) == 60 and 0 < len(held_out) < 30
    expected = {row["text"]: row["label"] for row in rows}
    for each in train + held_out:
        assert str(expected[each.text]).removesuffix(".0") in (labels[each.label], str(each.label))


def test_a_file_of_its_own_to_evaluate_on_and_no_text_on_both_sides(tmp_path: Path) -> None:
    other = write(tmp_path / "b.jsonl", {"text": "text 3 ", "label": "b"}, {"text": "new", "label": "a"})
    train, held_out, _ = labelled(tmp_path, many(["a", "b"]), evaluation=other)
    assert [each.text for each in held_out] == ["text 3 ", "new"] and len(train) == 59
    assert "text 3" not in {each.text for each in train}


def test_labels_that_differ_in_case_or_width_alone_are_told(tmp_path: Path) -> None:
    said: list[str] = []
    warned: list[str] = []
    path = write(tmp_path / "a.jsonl", *many(["positive", "Positive", "positive ", "ｐositive", "negative"]))
    assert read_labelled(RewardData(file=path), said.append, warned.append)[2] == (
        "Positive",
        "negative",
        "positive",
        "ｐositive",
    )
    assert warned == [
        f"{path}: the labels 'Positive' and 'positive' and 'ｐositive' are classes of their own; if they should be one, write "
        "them alike"
    ]
    assert said == [f"{path}: read as labelled texts; columns not used: 'source'"]
    read_labelled(RewardData(file=write(tmp_path / "a.jsonl", *many(["good", "bad "]))), said.append, warned.append)
    assert len(warned) == 1


def test_bad_labels(tmp_path: Path) -> None:
    named = {"labels": ("neg", "pos")}
    for row, settings, message in (
        ({"labl": "pos"}, {}, "a.jsonl:61: no column 'label' (did you mean 'labl'?); it has: text, labl. Set data"),
        ({"label": "poz"}, named, "a.jsonl:61: label 'poz' is not one of neg, pos (did you"),
        ({"label": 2}, named, "a.jsonl:61: label 2 is outside of 0 to 1 (neg, pos); see"),
        ({"label": -1}, {}, "a.jsonl:61: 'label' is -1; labels are numbered from 0"),
        ({"label": 0.5}, {}, "a.jsonl:61: 'label' is 0.5; a name or a whole number is needed"),
        ({"label": 9}, {}, "3 labels (0, 1, 9 ...); a label is a name, or a number from 0 without gaps"),
    ):
        rows = [*many([0, 1]), {"text": "x", **row}]
        refused_call(lambda rows=rows, settings=settings: labelled(tmp_path, rows, **settings), message)
    two = [{"text": "x", "label": "a"}, {"text": "x", "label": "b"}]
    for rows, message in ((many(["same"]), "only the label same is there"), (two, "no text is left to "), ([], "no rows in it")):
        refused_call(lambda rows=rows: labelled(tmp_path, rows), message)
