"""Labelled texts: what is read, how sides are made, and with which words bad input is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from konomi.config import RewardData
from konomi.data.examples import read_labelled
from konomi.errors import DataError


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def many(labels: list[Any]) -> list[dict[str, Any]]:
    return [{"text": f"text {i}", "label": labels[i % len(labels)], "source": "x"} for i in range(60)]


def refused(tmp_path: Path, rows: list[Any], **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_labelled(RewardData(file=write(tmp_path / "a.jsonl", rows), **settings))
    return str(caught.value).replace(f"{tmp_path}/", "")


@pytest.mark.parametrize(
    ("given", "settings", "names"),
    [
        ([0, 1, 2], {}, ("0", "1", "2")),
        (["2", "0", "1"], {}, ("0", "1", "2")),
        (["good", "bad"], {}, ("bad", "good")),
        ([1, 0], {"labels": ("neg", "pos")}, ("neg", "pos")),
        (["pos", "neg"], {"labels": ("neg", "pos")}, ("neg", "pos")),
    ],
)
def test_labels_are_names_or_numbers(tmp_path: Path, given: list[Any], settings: dict[str, Any], names: tuple[str, ...]) -> None:
    rows = many(given)
    train, held_out, labels = read_labelled(RewardData(file=write(tmp_path / "a.jsonl", rows), **settings))
    assert labels == names and len(train) + len(held_out) == 60 and 0 < len(held_out) < 30
    expected = {row["text"]: row["label"] for row in rows}
    for each in train + held_out:
        assert str(expected[each.text]) in (labels[each.label], str(each.label))


def test_a_csv_with_columns_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("review,stars\n" + "".join(f"r{i},{i % 2}\n" for i in range(40)), encoding="utf-8")
    train, held_out, labels = read_labelled(RewardData(file=str(path), text="review", label="stars", held_out=0.5))
    assert labels == ("0", "1") and len(train) + len(held_out) == 40


def test_a_file_of_its_own_to_evaluate_on_and_no_text_on_both_sides(tmp_path: Path) -> None:
    train_file = write(tmp_path / "a.jsonl", many(["a", "b"]))
    other = write(tmp_path / "b.jsonl", [{"text": "text 3 ", "label": "b"}, {"text": "new", "label": "a"}])
    train, held_out, _ = read_labelled(RewardData(file=train_file, evaluation=other))
    assert [each.text for each in held_out] == ["text 3 ", "new"] and len(train) == 59
    assert "text 3" not in {each.text for each in train}


def test_labels_that_differ_in_case_or_width_alone_are_told(tmp_path: Path) -> None:
    said: list[str] = []
    warned: list[str] = []
    path = write(tmp_path / "a.jsonl", many(["positive", "Positive", "positive ", "ｐositive", "negative"]))
    labels = read_labelled(RewardData(file=path), said.append, warned.append)[2]
    assert labels == ("Positive", "negative", "positive", "ｐositive")
    assert warned == [
        f"{path}: the labels 'Positive' and 'positive' and 'ｐositive' are classes of their own; if they should be one, write "
        "them alike"
    ]
    assert said == [f"{path}: read as labelled texts; columns not used: 'source'"]
    warned.clear()
    read_labelled(RewardData(file=write(tmp_path / "a.jsonl", many(["good", "bad "]))), said.append, warned.append)
    assert not warned


def test_whole_numbers_that_a_table_holds_as_floats(tmp_path: Path) -> None:
    for given in ([0.0, 1.0], ["0.0", "1.0"], [0, 1.0]):
        assert read_labelled(RewardData(file=write(tmp_path / "a.jsonl", many(given))))[2] == ("0", "1")


def test_the_limit_is_kept(tmp_path: Path) -> None:
    data = RewardData(file=write(tmp_path / "a.jsonl", many(["a", "b"])), limit=20, held_out=0.5)
    train, held_out, _ = read_labelled(data)
    assert len(train) + len(held_out) == 20


def test_bad_input_is_refused(tmp_path: Path) -> None:
    good = many(["neg", "pos"])
    assert refused(tmp_path, [*good, {"text": "x", "labl": "pos"}]) == (
        "a.jsonl:61: no column 'label' (did you mean 'labl'?); it has: text, labl. Set data.text and data.label"
    )
    assert refused(tmp_path, [*good, {"text": "x", "label": "poz"}], labels=("neg", "pos")) == (
        "a.jsonl:61: label 'poz' is not one of neg, pos (did you mean 'pos'?); see data.labels"
    )
    assert refused(tmp_path, [*many([0, 1]), {"text": "x", "label": 2}], labels=("neg", "pos")) == (
        "a.jsonl:61: label 2 is outside of 0 to 1 (neg, pos); see data.labels"
    )
    assert (
        refused(tmp_path, [*many([0, 1]), {"text": "x", "label": -1}]) == "a.jsonl:61: 'label' is -1; labels are numbered from 0"
    )
    assert refused(tmp_path, [*good, {"text": "x", "label": 0.5}]) == (
        "a.jsonl:61: 'label' is 0.5; a name or a whole number is needed"
    )
    assert "3 labels (1, 2, 9 ...); a label is a name, or a number from 0 without gaps" in refused(tmp_path, many([1, 2, 9]))
    assert refused(tmp_path, many(["same"])) == "a.jsonl: only the label same is there; a classifier needs two at least"
    assert refused(tmp_path, [{"text": "x", "label": "a"}, {"text": "x", "label": "b"}]).startswith(
        "a.jsonl: no text is left to "
    )
    assert "no rows in it" in refused(tmp_path, [])
