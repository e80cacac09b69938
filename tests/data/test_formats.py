"""Files of candidates, rankings, pairs and scores: what is read, what is refused and how that is told."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from konomi.data.formats import (
    counts,
    encode_records,
    manifest,
    read_comparisons,
    read_records,
    read_scores,
    read_tasks,
    write_records,
)
from konomi.data.records import Candidate, Pair, Ranking, Record, Score, Task
from konomi.data.row_files import LINE_LIMIT
from konomi.errors import RunError
from refusals import jsonl, refused

RANKING = {"prompt": "p", "responses": ["a", "b"], "ranks": [1, 2]}
PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
SCORE = {"prompt": "p", "response": "a", "score": 0.5}
TASK = {"prompt": "p", "candidates": [{"text": "a"}, {"text": "b"}]}
GOOD = {"rankings": RANKING, "pairs": PAIR, "scores": SCORE, "candidates": TASK}
RECORDS: list[Record] = [
    Task("p", (Candidate("a", {"model": "m", "seed": 3, "temperature": 0.7}), Candidate("")), {"topic": "weather"}),
    Ranking("今日は", ("a", "b\n", "c"), (1, 2, 2), "r1", "s"),
    Ranking("今日は", ("a", "b"), (2, 1), strength=3),
    Pair("p", "a", "b", 0.8, 0.5, "r1", "s", strength=1),
    Score("p", "a", -1.5, "r1", "s"),
]


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


# what is written is read back

texts = st.text(st.characters(codec="utf-8"), max_size=12)
names = st.none() | texts.filter(bool)
prompts = texts.filter(lambda text: bool(text.strip()))
finite = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def rankings(draw: st.DrawFn) -> Ranking:
    responses = draw(st.lists(texts, min_size=2, max_size=5, unique=True))
    ranks = draw(st.lists(st.integers(1, 5), min_size=len(responses), max_size=len(responses)))
    return Ranking(draw(prompts), tuple(responses), tuple(ranks), draw(names), draw(names))


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    chosen, rejected = draw(st.lists(texts, min_size=2, max_size=2, unique=True))
    label, margin = draw(st.floats(0, 1)), draw(st.floats(0, 100))
    return Pair(draw(prompts), chosen, rejected, label, margin, draw(names), draw(names))


@st.composite
def tasks(draw: st.DrawFn) -> Task:
    found = draw(st.lists(texts, min_size=2, max_size=4, unique=True))
    source = st.dictionaries(texts.filter(lambda name: name != "text"), st.none() | st.integers() | texts | finite, max_size=3)
    return Task(draw(prompts), tuple(Candidate(text, draw(source)) for text in found), draw(source))


scores = st.builds(Score, prompts, texts, finite, names, names)


@given(st.one_of(st.lists(kind, min_size=1, max_size=4) for kind in (rankings(), pairs(), scores)) | tasks().map(lambda t: [t]))
def test_records_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, records: list[Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.jsonl"
    write_records(path, records)
    assert read_records(path)[0] == records


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_each_kind_has_its_reader(tmp_path: Path, record: Record) -> None:
    path = tmp_path / "x.jsonl"
    write_records(path, [record])
    assert json.loads(path.read_text(encoding="utf-8"))["version"] == 1
    read = {Task: read_tasks, Ranking: read_comparisons, Pair: read_comparisons, Score: read_scores}[type(record)]
    assert read(path) == [record]
    if isinstance(record, Task):  # the source of a candidate stands beside its text
        candidates = [{"model": "m", "seed": 3, "temperature": 0.7, "text": "a"}, {"text": ""}]
        own = {"version": 1, "prompt": "p", "candidates": candidates, "columns": {"topic": "weather"}}
        assert json.loads(path.read_text(encoding="utf-8")) == own


def test_files_of_others_need_no_version_and_may_have_more(tmp_path: Path) -> None:
    said: list[str] = []
    path = jsonl(tmp_path / "x.jsonl", {**PAIR, "id": 7, "lable": 0.3}, {**PAIR, "prompt": "q"})
    assert read_comparisons(path, say=said.append) == [Pair("p", "a", "b"), Pair("q", "a", "b")]
    read_records(jsonl(path, {**RANKING, "label": 0.3, "rater": "a"}), say=said.append)  # another format would read the label
    used = ("pairs; columns not used: 'id', 'lable'", "rankings; columns not used: 'label'")
    assert said == [f"{path}: read as {each}" for each in used]


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('prompt,chosen,rejected,label,rater,version\np,"a,\n1",b,0.8,,1\nq,,b,,r,\n', encoding="utf-8")
    assert read_comparisons(path) == [Pair("p", "a,\n1", "b", 0.8), Pair("q", "", "b", rater="r")]
    path.write_text("prompt,response,score\np,a,-1e-1\n", encoding="utf-8")
    assert read_scores(path) == [Score("p", "a", -0.1)]


def test_csv_in_a_copy_of_a_hub_data_set(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("prompt,response,score\np,a,1.5\n", encoding="utf-8")
    assert read_records(tmp_path) == ([Score("p", "a", 1.5)], "scores")


def test_bad_csv(tmp_path: Path) -> None:
    for body, part in (
        ("prompt,response,score\np,a,x\n", "'score' is 'x'; a number is needed"),
        ("prompt,response,score\np,a,\n", "'score' is ''; a number is needed"),
        ("prompt,response,score\np,a,nan\n", "'score' is nan; a finite number"),
        ("prompt,responses,ranks\np,a,1\n", "'responses' is a text; a list is needed (which a CSV file cannot hold)"),
        ("prompt,chosen,rejected\np,\"[{'role': 'user'}]\",b\n", "'chosen' is messages written as a text; a list is needed"),
    ):
        (tmp_path / "x.csv").write_text(body, encoding="utf-8")
        refused(lambda: read_records(tmp_path / "x.csv"), f"x.csv:2: {part}")


@pytest.mark.parametrize("record", [RANKING, PAIR, SCORE, TASK], ids=GOOD)
def test_parquet(tmp_path: Path, record: dict[str, Any]) -> None:
    path = parquet(tmp_path / "x.parquet", [record])
    assert read_records(path) == read_records(jsonl(tmp_path / "x.jsonl", record))
    broken = parquet(tmp_path / "broken.parquet", [record, {**record, "prompt": None}])
    refused(lambda: read_records(broken), f"{broken}: row 2: 'prompt' is null")
    if "ranks" in record:  # as a table with a gap holds them
        assert read_records(parquet(path, [{**record, "ranks": [1.0, 2.0]}])) == read_records(tmp_path / "x.jsonl")


def test_parquet_that_is_not_utf8(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    wrong = pyarrow.array([b"\x8d\xa1"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"prompt": wrong}), tmp_path / "x.parquet")
    refused(lambda: read_records(tmp_path / "x.parquet"), "x.parquet: not a Parquet file that can be read", "utf-8")


# Anthropic's helpful-harmless pairs

HH = {
    "chosen": "\n\nHuman: What is 1+1?\n\nAssistant: Two.\n\nHuman: And 2+2?\n\nAssistant: Four.",
    "rejected": "\n\nHuman: What is 1+1?\n\nAssistant: Two.\n\nHuman: And 2+2?\n\nAssistant: Forty-four, I think.",
}


def test_hh(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "hh.jsonl", HH)
    said: list[str] = []
    assert read_comparisons(path, say=said.append) == read_comparisons(path, "hh")
    prompt = "\n\nHuman: What is 1+1?\n\nAssistant: Two.\n\nHuman: And 2+2?\n\nAssistant:"
    assert read_comparisons(path) == [Pair(prompt, " Four.", " Forty-four, I think.")]  # both begin with " Fo"
    assert said == [f"{path}: read as hh"]
    for row, part in (
        ({**HH, "rejected": "no dialogue"}, "'rejected' is no dialogue: there is no '\\n\\nAssistant:' in it"),
        ({**HH, "rejected": " "}, "'rejected' is blank"),
        ({**HH, "rejected": HH["rejected"].replace("2+2", "2+3")}, "different before the last 'Assistant:'"),
        ({**HH, "rejected": HH["chosen"]}, "chosen and rejected are equal"),
    ):
        refused(lambda row=row: read_comparisons(jsonl(path, HH, row)), f"{path}:2: ", part)


# what is refused


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({**PAIR, "version": 2}, "version 2; this konomi reads version 1: update konomi"),
        ({**PAIR, "version": 10**400}, "this konomi reads version 1"),
        ({**PAIR, "version": 0}, "'version' is 0; 1 is the only one"),
        ({**PAIR, "version": "1"}, "'version' is a text; 1 is the only one"),
        (
            {"prompt": "p", "chosen": "a", "rejectd": "b"},
            "no column 'rejected' (did you mean 'rejectd'?); it has: prompt, chosen",
        ),
        ({"chosen": "a", "rejected": "b", "promt": "c"}, "no column 'prompt' (did you mean 'promt'?)"),
        ({"chosen": "a", "rejected": "b"}, "only messages, and dialogues with 'Assistant:', hold their prompt"),
        ({"prompt": "p", "choosen": "a", "reject": "b"}, "no column 'chosen' (did you mean 'choosen'?)"),
        ({"prompt": "p", "responces": ["a"], "ranks": [1]}, "no column 'responses' (did you mean 'responces'?)"),
        ({"prompt": "p", "response": "a", "skore": 1}, "no column 'score' (did you mean 'skore'?)"),
        ({"prompt": "p", "candidate": []}, "no column 'candidates' (did you mean 'candidate'?)"),
        ({"x": 1, "y": 2}, "the columns x, y are those of no known format (candidates: prompt, candidates; "),
        ({}, "the columns none are those of no known format"),
        ({**PAIR, "label": 1.2}, "'label' is 1.2; it is the probability that chosen is the better one: 0 to 1"),
        ({**PAIR, "label": True}, "'label' is true or false; a number is needed"),
        ({**PAIR, "label": "1"}, "'label' is a text; a number is needed"),
        ({**PAIR, "label": float("nan")}, "'label' is nan; a finite number is needed"),
        ({**PAIR, "margin": -1}, "'margin' is -1; it is 0 or more"),
        ({**PAIR, "strength": 4}, "'strength' is 4; 1 (slightly better), 2 or 3 (much better) is needed"),
        ({**PAIR, "strength": 1, "label": 0.5}, "'strength' says how much better one of two responses is; neither is"),
        ({**RANKING, "strength": 1, "ranks": [1, 1]}, "'strength' says how much better one of two responses is"),
        ({**RANKING, "strength": "much"}, "'strength' is a text; a number is needed"),
        ({**PAIR, "prompt": " \n"}, "'prompt' is blank; remove the row"),
        ({**PAIR, "chosen": "b"}, "chosen and rejected are equal; remove the row"),
        ({**PAIR, "chosen": None}, "'chosen' is null; a text is needed"),
        ({**PAIR, "rejected": "\ud800"}, "'rejected' has half a character (a surrogate) at position 0"),
        ({**PAIR, "rater": 3}, "'rater' is a number; a text is needed"),
        ({**RANKING, "ranks": [1]}, "1 ranks for 2 responses; one each is needed"),
        ({**RANKING, "ranks": [0, 1]}, "0 in 'ranks'; ranks are whole numbers from 1, the best"),
        ({**RANKING, "ranks": [1, 1.5]}, "1.5 in 'ranks'"),
        ({**RANKING, "ranks": [1, "2"]}, "a text in 'ranks'"),
        ({**RANKING, "ranks": [True, 2]}, "True in 'ranks'"),
        ({**RANKING, "ranks": 1}, "'ranks' is a number; a list is needed"),
        ({**RANKING, "responses": ["a"], "ranks": [1]}, "fewer than two responses; nothing can be compared"),
        ({**RANKING, "responses": ["a", "a"]}, "two responses are the same text; keep one of 1 and 2"),
        ({**RANKING, "responses": ["a", "\udfff"]}, "response 2 has half a character"),
        ({**TASK, "candidates": [{"text": "a"}]}, "fewer than two candidates; nothing can be compared"),
        ({**TASK, "candidates": [{"text": "a"}, {"text": "b"}, {"text": "a", "seed": 1}]}, "keep one of 1 and 3"),
        ({**TASK, "candidates": ["a", "b"]}, 'candidate 1 is not an object with a "text"'),
        ({**TASK, "candidates": [{"text": "a"}, {"txt": "b"}]}, 'candidate 2 is not an object with a "text"'),
        ({**TASK, "candidates": [{"text": "a"}, {"text": None}]}, "the text of candidate 2 is null"),
        ({**TASK, "columns": [1]}, "'columns' is a list; an object is needed"),
        ({**TASK, "columns": {"x": json.loads("[" * 600 + "]" * 600)}}, "nested more than 100 levels deep"),
        ({**SCORE, "score": float("nan")}, "'score' is nan; a finite number is needed"),
        ({**SCORE, "score": 10**400}, "'score' is inf; a finite number is needed"),
        ({**SCORE, "score": None}, "'score' is null; a number is needed"),
        ({**SCORE, "prompt": "　"}, "'prompt' is blank"),
    ],
)
def test_a_bad_row_is_told_with_file_and_line(tmp_path: Path, row: dict[str, Any], part: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("\n" + json.dumps(row) + "\n", encoding="utf-8")
    refused(lambda: read_records(path), f"{path}:2: ", part)


@pytest.mark.parametrize(
    "rows",
    [
        [{**RANKING, "ranks": [1, 1]}, {**RANKING, "ranks": [3, 3]}],
        [{**PAIR, "label": 0.5}, {**PAIR, "label": 0.5, "prompt": "q"}],
    ],
)
def test_all_ties(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = jsonl(tmp_path / "x.jsonl", *rows)
    refused(lambda: read_comparisons(path), f"{path}: all 2 rows are ties: there is nothing to learn from")
    one_more = {name: [1, 2] if name == "ranks" else 0.4 if name == "label" else value for name, value in rows[0].items()}
    assert len(read_comparisons(jsonl(path, *rows, one_more))) == 3
    assert counts(read_records(path)[0])["ties"] == 2


def test_a_huge_line_is_not_held_in_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "x.jsonl"
    with path.open("wb") as file:
        file.truncate(100_000_000)  # one line of zeros, and no room on the disk
    tracemalloc.start()
    refused(lambda: read_comparisons(path), f"{path}:1: a line of 100,000,000 bytes")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * LINE_LIMIT


def test_a_line_at_the_limit_is_read(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", {**PAIR, "chosen": ""})
    path = jsonl(path, {**PAIR, "chosen": "a" * (LINE_LIMIT - path.stat().st_size)}, PAIR)
    assert len(read_comparisons(path)) == 2
    with path.open("r+", encoding="utf-8") as file:
        file.write(" ")  # in the place of the brace, so that the line is not longer
    refused(lambda: read_comparisons(path), f"{path}:1: not JSON")
    longer = jsonl(path, {**PAIR, "chosen": "a" * LINE_LIMIT})
    refused(lambda: read_comparisons(longer), f"{path}:1: a line of ")


def test_files_that_are_refused_as_a_whole(tmp_path: Path) -> None:
    path, same = tmp_path / "x.jsonl", {"prompt": " p", "candidates": TASK["candidates"][::-1]}
    other = {"prompt": "p", "candidates": [{"text": "a"}, {"text": "c"}]}
    for read, rows, part in (
        (read_comparisons, [], f"{path}: no rows in it; at least one is needed"),
        (read_tasks, [TASK, other, same], f"{path}:3: the same prompt and candidates as in {path}:1; remove one of them"),
        (read_comparisons, [SCORE], f"{path}: scores, not comparisons; konomi convert --to rankings"),
        (read_tasks, [SCORE], f"{path}:1: no column 'candidates'"),
        (read_scores, [PAIR], f"{path}:1: no column 'response'"),
        (read_comparisons, [TASK], "candidates, not comparisons; they have to be ranked first"),
    ):
        refused(lambda read=read, rows=rows: read(jsonl(path, *rows)), part)  # type: ignore[operator]
    assert len(read_tasks(jsonl(path, TASK, other))) == 2
    refused(lambda: read_comparisons(path, "pair"), "'pair' is no format (did you mean 'pairs'?); known: auto, candidates")
    refused(lambda: read_comparisons(parquet(tmp_path / "x.parquet", [])), "x.parquet: no rows in it")
    for name, part in (("x.csv", "no rows in it"), ("x.txt", "x.txt: a text file has no columns")):
        (tmp_path / name).write_text("prompt,chosen,rejected\n", encoding="utf-8")
        refused(lambda name=name: read_comparisons(tmp_path / name), part)


def test_answers_that_repeat_their_prompt(tmp_path: Path) -> None:
    """The prompt is taken off where nearly all rows begin with it, and never off an answer that it would leave empty."""
    chance = [("Hi", "Hi there", "No"), ("Hi", "Hi", "Hi you")]
    whole = [(f"Q{n}", f"Q{n} yes", f"Q{n} no") for n in range(18)]

    def rows_of(texts: list[tuple[str, str, str]]) -> dict[str, list[dict[str, Any]]]:
        return {
            "pairs": [{"prompt": p, "chosen": a, "rejected": b} for p, a, b in texts],
            "rankings": [{"prompt": p, "responses": [a, b], "ranks": [1, 2]} for p, a, b in texts],
            "candidates": [{"prompt": p, "candidates": [{"text": a, "n": 1}, {"text": b}]} for p, a, b in texts],
            "scores": [{"prompt": p, "response": a, "score": 1} for p, a, _ in texts],
        }

    for format, raw in rows_of(whole + chance).items():
        said: list[str] = []
        path = jsonl(tmp_path / "x.jsonl", *raw)
        records, took = read_records(path, say=said.append)
        taken = 19 if format == "scores" else 18  # a lone score of "Hi there" cannot be told from the others
        expected = [(p, a.removeprefix(p), b.removeprefix(p)) for p, a, b in whole] + chance
        expected[18] = ("Hi", " there", "No") if format == "scores" else expected[18]
        path = jsonl(tmp_path / "y.jsonl", *(({"version": 1} | row) for row in rows_of(expected)[format]))
        assert (records, took) == read_records(path), format
        assert said[-1] == f"{tmp_path}/x.jsonl: in {taken} of 20 rows the answers begin with the prompt; it is taken off"
        # what konomi wrote is as it should be
        own = jsonl(tmp_path / "own.jsonl", *({"version": 1} | row for row in raw))
        assert read_records(own)[0] != records
    said = []
    few = jsonl(tmp_path / "few.jsonl", *rows_of(whole[:5] + chance)["pairs"])
    assert read_comparisons(few, say=said.append)[0] == Pair("Q0", "Q0 yes", "Q0 no")
    assert said[-1].startswith(f"{few}: 5 of 7 rows have answers that begin with their prompt; too few for a rule")


def test_rows_that_say_nothing_are_counted_and_can_be_left_out(tmp_path: Path) -> None:
    blank, equal = {**PAIR, "prompt": " "}, {**PAIR, "chosen": "b"}
    dropped: Counter[str] = Counter()
    path = jsonl(tmp_path / "x.jsonl", PAIR, blank, equal, blank)
    first = f"{path}:2: 'prompt' is blank; remove the row or write a text. "
    ways = f"`konomi convert --drop-bad` writes a file without such rows, of which {path} has 3"
    refused(lambda: read_comparisons(path), first + ways)
    assert read_comparisons(path, dropped=dropped) == [Pair("p", "a", "b")]
    assert dropped == {"'prompt' is blank": 2, "chosen and rejected are equal": 1}
    refused(
        lambda: read_comparisons(jsonl(path, blank), dropped=Counter()), "no rows in it", "1 were left out: 'prompt' is blank"
    )
    for counted in (Counter[str](), None):
        refused(lambda to=counted: read_comparisons(jsonl(path, blank, {**PAIR, "label": 2}), dropped=to), ":2: 'label' is 2")


# writing


@pytest.mark.parametrize(
    ("records", "part"),
    [
        ([], "no records to write"),
        (RECORDS[:2], "record 2: one of rankings among candidates; a file holds one kind"),
        ([Score("p", "a", float("nan"))], "record 1: 'score' is nan"),
        ([Ranking("p", ("a", "b"), (1,))], "record 1: 1 ranks for 2 responses"),
        ([Pair("p", "a", "\ud800")], "record 1: 'rejected' has half a character"),
        ([Task("p", (Candidate("a"),))], "record 1: fewer than two candidates"),
        ([Task("p", (Candidate("a"), Candidate("b")), {"when": object()})], "record 1: JSON cannot hold it"),
        ([Pair("p", "a" * LINE_LIMIT, "b")], "record 1: 1,000,1"),
    ],
)
def test_what_would_not_be_read_is_not_written(tmp_path: Path, records: list[Record], part: str) -> None:
    refused(lambda: write_records(tmp_path / "x.jsonl", records), f"{tmp_path / 'x.jsonl'}: {part}")
    assert list(tmp_path.iterdir()) == []
    refused(lambda: write_records(tmp_path / "none" / "x.jsonl", RECORDS[:1]), "x.jsonl: cannot be written", error=RunError)


def test_manifest(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rankings.jsonl", {**RANKING, "responses": ["a", "b", "c"], "ranks": [1, 2, 2]}, RANKING)
    said = manifest({"rankings": path})
    (entry,) = said["files"].values()
    assert len(entry.pop("sha256")) == 64
    figures = {"records": 2, "prompts": 1, "responses": 3, "comparisons": 3, "ties": 1}
    assert entry == {"name": "rankings.jsonl", "version": 1, "format": "rankings", "counts": figures}
    before = said["files"]["rankings"]
    jsonl(path, RANKING)
    assert manifest({"rankings": path})["files"]["rankings"] != before
    assert manifest({"r": jsonl(path, {**RANKING, "ranks": [1, 1]})})["files"]["r"]["counts"]["ties"] == 1


@given(rankings())
def test_a_ranking_without_ties_has_all_pairs(ranking: Ranking) -> None:
    assert counts(RECORDS[:1]) == {"records": 1, "prompts": 1, "responses": 2}
    one_prompt = [Score("p", "a", 1), Score("p ", "a", 2), Score("q", "a", 3)]
    assert counts(one_prompt) == {"records": 3, "prompts": 2, "responses": 2}
    found = counts([ranking])
    k = len(ranking.responses)
    assert found["comparisons"] + found["ties"] == k * (k - 1) // 2
    assert encode_records([ranking], "x").count(b"\n") == 1
