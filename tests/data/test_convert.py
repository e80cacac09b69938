"""`konomi convert`: preferences from one form into another."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from command_line import konomi, write_rows
from konomi.data.convert import convert, convert_file, normalised_ranks, pairs_of, scores_of
from konomi.data.formats import read_comparisons, read_scores, read_tasks
from konomi.data.records import Candidate, Pair, Ranking, Score, Task
from konomi.errors import RunError
from refusals import refused

RANKINGS: list[dict[str, Any]] = [
    {"prompt": "p", "responses": ["a", "b", "c", "d"], "ranks": [1, 2, 2, 4], "rater": "r"},
    {"prompt": "q", "responses": ["x", "y"], "ranks": [2, 1], "source": "s"},
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_rows("rankings.jsonl", RANKINGS)
    return tmp_path


def test_rankings_to_pairs_and_the_manifest_beside_them(here: Path) -> None:
    result = konomi("convert", "rankings.jsonl", "pairs.jsonl", "--to", "pairs", code=0)
    assert result.stdout == "pairs: 6 records, 2 prompts, 6 responses, 6 comparisons, 0 ties\nleft out: 1 x tie\npairs.jsonl\n"
    assert "rankings.jsonl: read as rankings" in result.stderr
    pairs = ["ab", "ac", "ad", "bd", "cd"]
    assert read_comparisons("pairs.jsonl") == [*(Pair("p", *each, rater="r") for each in pairs), Pair("q", "y", "x", source="s")]
    counts = {"records": 2, "prompts": 2, "responses": 6, "comparisons": 6, "ties": 1}

    def described(format: str, **changes: int) -> dict[str, Any]:
        sha256 = hashlib.sha256(Path(f"{format}.jsonl").read_bytes()).hexdigest()
        return {"name": f"{format}.jsonl", "sha256": sha256, "version": 1, "format": format, "counts": counts | changes}

    assert json.loads(Path("pairs.jsonl.manifest.json").read_text(encoding="utf-8")) == {
        "version": 1, "files": {"pairs": described("pairs", records=6, ties=0)}, "sources": [described("rankings")],
        "dropped": {"tie": 1},
    }  # fmt: skip
    assert sorted(path.name for path in here.iterdir()) == ["pairs.jsonl", "pairs.jsonl.manifest.json", "rankings.jsonl"]


def test_hh_to_pairs_and_rows_that_say_nothing(here: Path) -> None:
    dialogue = "\n\nHuman: Hi\n\nAssistant:"
    answers = (" Hello!", " Go."), (" Same.", " Same.")
    write_rows("hh.jsonl", ({"chosen": dialogue + chosen, "rejected": dialogue + rejected} for chosen, rejected in answers))
    refused = konomi("convert", "hh.jsonl", "pairs.jsonl", "--to", "pairs", code=2)
    assert "hh.jsonl:2: chosen and rejected are equal" in refused.stderr
    assert not Path("pairs.jsonl").exists()
    options = ("--to", "pairs", "--from", "hh", "--drop-bad", "--json")
    told = json.loads(konomi("convert", "hh.jsonl", "pairs.jsonl", *options, code=0).stdout)
    assert told == json.loads(Path("pairs.jsonl.manifest.json").read_text(encoding="utf-8"))
    assert (told["dropped"], told["sources"][0]["format"]) == ({"chosen and rejected are equal": 1}, "hh")
    assert read_comparisons("pairs.jsonl") == [Pair(dialogue, " Hello!", " Go.")]


def test_there_and_back(here: Path) -> None:
    for source, to in [("rankings", "scores"), ("scores", "rankings"), ("rankings", "candidates"), ("rankings", "pairs")]:
        if source == "scores":
            Path("rankings.jsonl").unlink()
        konomi("convert", f"{source}.jsonl", f"{to}.jsonl", "--to", to, code=0)
    scores = [("a", 1.0), ("b", 0.0), ("c", 0.0), ("d", -1.0), ("x", -1.0), ("y", 1.0)]
    assert [(each.response, each.score) for each in read_scores("scores.jsonl")] == scores
    assert read_comparisons("rankings.jsonl") == [
        Ranking("p", ("a", "b", "c", "d"), (1, 2, 2, 4), "r"), Ranking("q", ("x", "y"), (2, 1), source="s"),
    ]  # fmt: skip
    of_s = tuple(Candidate(text, {"source": "s"}) for text in "xy")
    assert read_tasks("candidates.jsonl") == [Task("p", tuple(map(Candidate, "abcd"))), Task("q", of_s)]
    konomi("convert", "pairs.jsonl", "again.jsonl", "--to", "candidates", code=0)
    assert [sorted(c.text for c in task.candidates) for task in read_tasks("again.jsonl")] == [list("abcd"), ["x", "y"]]


def test_thumbs_become_scores_and_pairs(here: Path) -> None:
    """Up is better than down, whoever gave them; of several thumbs for one response the mean counts."""
    Path("thumbs.csv").write_text(
        "prompt,response,thumbs,rater\np,a,up,r\np,b,down,s\np,c,up,t\np,c,down,u\nq,x,true,r\n", "utf-8"
    )
    told = konomi("convert", "thumbs.csv", "scores.jsonl", "--to", "scores", code=0)
    assert "thumbs.csv: read as thumbs; columns not used: 'rater'" in told.stderr
    scores = [("a", 1.0), ("b", -1.0), ("c", 1.0), ("c", -1.0), ("x", 1.0)]
    assert [(each.response, each.score) for each in read_scores("scores.jsonl")] == scores
    assert read_scores("thumbs.csv") == read_scores("scores.jsonl")  # konomi reward reads either
    konomi("convert", "thumbs.csv", "pairs.jsonl", "--to", "pairs", code=0)
    assert read_comparisons("pairs.jsonl") == [Pair("p", *each) for each in ("ab", "ac", "cb")]
    refused(lambda: read_comparisons("thumbs.csv"), "thumbs, not comparisons; konomi convert --to rankings")
    Path("kto.csv").write_text("prompt,completion,label\np,a,True\np,b,False\n", "utf-8")
    konomi("convert", "kto.csv", "kto.jsonl", "--to", "pairs", code=0)
    assert read_comparisons("kto.jsonl") == [Pair("p", "a", "b")]


REFUSED = [
    ("rankings.jsonl out.csv --to pairs", "out.csv: a name that ends in .jsonl is needed"),
    ("rankings.jsonl no/out.jsonl --to pairs", "no/out.jsonl: there is no directory"),
    ("rankings.jsonl out.jsonl --to pair", "'pair': not a format to convert to; one of pairs, rankings"),
    ("rankings.jsonl out.jsonl --to pairs --from x", "'x': not a format to convert from; one of auto, pairs, hh"),
    ("rankings.jsonl out.jsonl --to pairs --from scores", "rankings.jsonl:1: no column 'response'"),
    ("rankings.jsonl out.jsonl --to pairs --split test", "split: for data sets of the hub"),
    ("rankings.jsonl mine.jsonl --to pairs", "mine.jsonl: already exists"),
    ("rankings.jsonl made.jsonl --to pairs", "made.jsonl.manifest.json: already exists"),
    ("none.jsonl out.jsonl --to pairs", "none.jsonl: no such file"),
    ("ties.jsonl out.jsonl --to pairs", "ties.jsonl: nothing is left to write as pairs: 1 x tie"),
    ("tasks.jsonl out.jsonl --to pairs", "candidates that nobody has ranked yet"),
    ("soft.jsonl out.jsonl --to rankings", "pair 2: label 0.7 and margin 0: ranks cannot hold them"),
    ("margin.jsonl out.jsonl --to scores", "pair 1: label 1 and margin 2: ranks cannot hold them"),
]


def test_what_cannot_be_converted_leaves_all_as_it_was(here: Path) -> None:
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    write_rows("ties.jsonl", [{**RANKINGS[1], "ranks": [1, 1]}])
    write_rows("tasks.jsonl", [{"prompt": "p", "candidates": [{"text": "a"}, {"text": "b"}]}])
    write_rows("soft.jsonl", [pair, {**pair, "label": 0.7}])
    write_rows("margin.jsonl", [{**pair, "margin": 2}])
    for name in ("mine.jsonl", "made.jsonl.manifest.json"):
        Path(name).write_text("mine", encoding="utf-8")
    before = {path: path.read_bytes() for path in here.iterdir()}
    for arguments, part in REFUSED:
        assert part in konomi("convert", *arguments.split(), code=2).stderr
        assert {path: path.read_bytes() for path in here.iterdir()} == before, arguments


def test_without_its_manifest_the_file_goes_too(here: Path) -> None:
    long = Path("x" * 235 + ".jsonl")  # a name that the manifest's ending makes too long
    with pytest.raises(RunError, match=r"manifest.json: cannot be written"):
        convert_file("rankings.jsonl", long, "pairs")
    assert [path.name for path in here.iterdir()] == ["rankings.jsonl"]


# -- the conversions ---------------------------------------------------------------------------------------------------


def test_pairs_to_rankings() -> None:
    pairs = [Pair("p", "a", "b", label) for label in (1.0, 0.5, 0.0)]
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
    tasks = convert([Score("p", "a", 1), Score("q", "a", 1), Score("q", "b", 1)], "candidates", dropped)
    assert tasks == [Task("q", (Candidate("a"), Candidate("b")))]
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
