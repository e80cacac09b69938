"""konomi convert: files of preferences from one form into another."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from konomi.cli import app
from konomi.data.convert import convert, convert_file, normalised_ranks, pairs_of, scores_of
from konomi.data.formats import read_comparisons, read_scores, read_tasks
from konomi.data.records import Candidate, Pair, Ranking, Score, Task
from konomi.errors import RunError

RANKINGS = [
    {"prompt": "p", "responses": ["a", "b", "c", "d"], "ranks": [1, 2, 2, 4], "rater": "r"},
    {"prompt": "q", "responses": ["x", "y"], "ranks": [2, 1], "source": "s"},
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    put("rankings.jsonl", *RANKINGS)
    return tmp_path


def put(name: str, *lines: Any) -> None:
    Path(name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def konomi(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["convert", *arguments])
    assert result.exit_code == code, result.output + result.stderr
    return result


def test_rankings_to_pairs(here: Path) -> None:
    result = konomi("rankings.jsonl", "pairs.jsonl", "--to", "pairs")
    assert result.stdout == ("pairs: 6 records, 2 prompts, 6 responses, 6 comparisons, 0 ties\nleft out: 1 x tie\npairs.jsonl\n")
    assert "rankings.jsonl: read as rankings" in result.stderr
    assert read_comparisons("pairs.jsonl") == [
        Pair("p", "a", "b", rater="r"),
        Pair("p", "a", "c", rater="r"),
        Pair("p", "a", "d", rater="r"),
        Pair("p", "b", "d", rater="r"),
        Pair("p", "c", "d", rater="r"),
        Pair("q", "y", "x", source="s"),
    ]


def test_the_manifest_beside_it(here: Path) -> None:
    shown = json.loads(konomi("rankings.jsonl", "pairs.jsonl", "--to", "pairs", "--json").stdout)
    assert shown == json.loads(Path("pairs.jsonl.manifest.json").read_text(encoding="utf-8"))
    sums = {name: hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in ("rankings.jsonl", "pairs.jsonl")}
    assert shown == {
        "version": 1,
        "files": {
            "pairs": {
                "name": "pairs.jsonl",
                "sha256": sums["pairs.jsonl"],
                "version": 1,
                "format": "pairs",
                "counts": {"records": 6, "prompts": 2, "responses": 6, "comparisons": 6, "ties": 0},
            }
        },
        "sources": [
            {
                "name": "rankings.jsonl",
                "sha256": sums["rankings.jsonl"],
                "version": 1,
                "format": "rankings",
                "counts": {"records": 2, "prompts": 2, "responses": 6, "comparisons": 6, "ties": 1},
            }
        ],
        "dropped": {"tie": 1},
    }
    assert sorted(path.name for path in here.iterdir()) == ["pairs.jsonl", "pairs.jsonl.manifest.json", "rankings.jsonl"]


def test_rankings_to_scores(here: Path) -> None:
    konomi("rankings.jsonl", "scores.jsonl", "--to", "scores")
    assert [(s.response, s.score) for s in read_scores("scores.jsonl")] == [
        ("a", 1.0), ("b", 0.0), ("c", 0.0), ("d", -1.0), ("x", -1.0), ("y", 1.0),
    ]  # fmt: skip


def test_hh_to_pairs_and_rows_that_say_nothing(here: Path) -> None:
    dialogue = "\n\nHuman: Hi\n\nAssistant:"
    good, equal = (
        {"chosen": f"{dialogue} Hello!", "rejected": f"{dialogue} Go."},
        {"chosen": f"{dialogue} Same.", "rejected": f"{dialogue} Same."},
    )
    put("hh.jsonl", good, equal)
    refused = konomi("hh.jsonl", "pairs.jsonl", "--to", "pairs", code=2)
    assert "hh.jsonl:2: chosen and rejected are equal" in refused.stderr
    assert not Path("pairs.jsonl").exists()
    said = json.loads(konomi("hh.jsonl", "pairs.jsonl", "--to", "pairs", "--from", "hh", "--drop-bad", "--json").stdout)
    assert said["dropped"] == {"chosen and rejected are equal": 1}
    assert said["sources"][0]["format"] == "hh"
    assert read_comparisons("pairs.jsonl") == [Pair(dialogue, " Hello!", " Go.")]


def test_there_and_back(here: Path) -> None:
    for source, to in [("rankings", "scores"), ("scores", "rankings"), ("rankings", "candidates"), ("rankings", "pairs")]:
        if source == "scores":
            Path("rankings.jsonl").unlink()
        konomi(f"{source}.jsonl", f"{to}.jsonl", "--to", to)
    assert read_comparisons("rankings.jsonl") == [
        Ranking("p", ("a", "b", "c", "d"), (1, 2, 2, 4), "r"),
        Ranking("q", ("x", "y"), (2, 1), source="s"),
    ]
    assert read_tasks("candidates.jsonl") == [
        Task("p", tuple(map(Candidate, "abcd"))),
        Task("q", (Candidate("x", {"source": "s"}), Candidate("y", {"source": "s"}))),
    ]
    konomi("pairs.jsonl", "again.jsonl", "--to", "candidates")
    assert [sorted(c.text for c in task.candidates) for task in read_tasks("again.jsonl")] == [list("abcd"), ["x", "y"]]


@pytest.mark.parametrize("existing", ["out.jsonl", "out.jsonl.manifest.json"])
def test_nothing_is_overwritten(here: Path, existing: str) -> None:
    Path(existing).write_text("mine", encoding="utf-8")
    result = konomi("rankings.jsonl", "out.jsonl", "--to", "pairs", code=2)
    assert f"{existing}: already exists" in result.stderr
    assert Path(existing).read_text(encoding="utf-8") == "mine"
    assert len(list(here.iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["rankings.jsonl", "out.csv", "--to", "pairs"], "out.csv: a name that ends in .jsonl is needed"),
        (["rankings.jsonl", "no/out.jsonl", "--to", "pairs"], "no/out.jsonl: there is no directory"),
        (["rankings.jsonl", "out.jsonl", "--to", "pair"], "'pair': not a format to convert to; one of pairs, rankings"),
        (
            ["rankings.jsonl", "out.jsonl", "--to", "pairs", "--from", "x"],
            "'x': not a format to convert from; one of auto, pairs, hh",
        ),
        (["rankings.jsonl", "out.jsonl", "--to", "pairs", "--from", "scores"], "rankings.jsonl:1: no column 'response'"),
        (["rankings.jsonl", "out.jsonl", "--to", "pairs", "--split", "test"], "split: for data sets of the hub"),
        (["none.jsonl", "out.jsonl", "--to", "pairs"], "none.jsonl: no such file"),
        (["ties.jsonl", "out.jsonl", "--to", "pairs"], "ties.jsonl: nothing is left to write as pairs: 1 x tie"),
        (["tasks.jsonl", "out.jsonl", "--to", "pairs"], "candidates that nobody has ranked yet"),
        (["soft.jsonl", "out.jsonl", "--to", "rankings"], "pair 2: label 0.7 and margin 0: ranks cannot hold them"),
        (["margin.jsonl", "out.jsonl", "--to", "scores"], "pair 1: label 1 and margin 2: ranks cannot hold them"),
    ],
)
def test_what_cannot_be_converted_leaves_nothing(here: Path, arguments: list[str], part: str) -> None:
    put("ties.jsonl", {**RANKINGS[1], "ranks": [1, 1]})
    put("tasks.jsonl", {"prompt": "p", "candidates": [{"text": "a"}, {"text": "b"}]})
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    put("soft.jsonl", pair, {**pair, "label": 0.7})
    put("margin.jsonl", {**pair, "margin": 2})
    before = sorted(here.iterdir())
    assert part in konomi(*arguments, code=2).stderr
    assert sorted(here.iterdir()) == before


def test_without_its_manifest_the_file_goes_too(here: Path) -> None:
    long = Path("x" * 235 + ".jsonl")  # a name that the manifest's ending makes too long
    with pytest.raises(RunError, match=r"manifest.json: cannot be written"):
        convert_file("rankings.jsonl", long, "pairs")
    assert [path.name for path in here.iterdir()] == ["rankings.jsonl"]


# the conversions


def test_pairs_to_rankings() -> None:
    pairs = [Pair("p", "a", "b", 1.0), Pair("p", "a", "b", 0.5), Pair("p", "a", "b", 0.0)]
    found = convert(pairs, "rankings", Counter())
    assert [ranking.ranks for ranking in found if isinstance(ranking, Ranking)] == [(1, 2), (1, 1), (2, 1)]


def test_scores_of_one_rater_are_one_ranking() -> None:
    scores = [
        Score("p", "a", 1, "r"), Score("p", "b", 3, "r"), Score(" p", "a", 2, "r"), Score("p", "c", 1.5, "r"),
        Score("p", "a", 9, "t"), Score("q", "a", 9, "r"), Score("q", "b", 2, "t"),
    ]  # fmt: skip
    dropped: Counter[str] = Counter()
    assert convert(scores, "rankings", dropped) == [Ranking("p", ("a", "b", "c"), (2, 1, 2), "r")]
    assert dropped == {"one response to the prompt": 3}


def test_a_prompt_with_one_response_is_no_task() -> None:
    dropped: Counter[str] = Counter()
    assert convert([Score("p", "a", 1), Score("q", "a", 1), Score("q", "b", 1)], "candidates", dropped) == [
        Task("q", (Candidate("a"), Candidate("b")))
    ]
    assert dropped == {"one response to the prompt": 1}


@given(st.lists(st.integers(1, 6), min_size=2, max_size=7))
def test_normalised_ranks(ranks: list[int]) -> None:
    scores = normalised_ranks(ranks)
    assert sum(scores) == pytest.approx(0)
    assert min(scores) >= -1 and max(scores) <= 1
    for a, rank_a in zip(scores, ranks, strict=True):
        for b, rank_b in zip(scores, ranks, strict=True):
            assert (a > b) == (rank_a < rank_b)
    assert normalised_ranks([10 * rank for rank in ranks]) == scores
    if len(set(ranks)) == len(ranks):
        assert sorted(scores) == pytest.approx([2 * i / (len(ranks) - 1) - 1 for i in range(len(ranks))])


@given(st.integers(2, 7), st.data())
def test_all_pairs_of_a_ranking(k: int, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(1, k + 1)))
    ranking = Ranking("p", tuple("abcdefg"[:k]), tuple(order))
    dropped: Counter[str] = Counter()
    found = pairs_of(ranking, dropped)
    assert len(found) == k * (k - 1) // 2 and not +dropped
    score = {each.response: each.score for each in scores_of(ranking)}
    assert all(score[pair.chosen] > score[pair.rejected] for pair in found)
