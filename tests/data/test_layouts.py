"""Data sets that others publish: each is known by its columns and read as what its raters said; what is not known is named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from konomi.data.formats import read_records
from konomi.data.layouts import LAYOUTS
from konomi.data.records import Pair, Ranking, Score
from konomi.errors import DataError
from refusals import jsonl, refused

SHARED = {"role": "user", "content": "Q?"}


def talk(answer: str) -> list[dict[str, str]]:
    return [SHARED, {"role": "assistant", "content": answer}]


def argilla(status: str = "submitted", ranks: tuple[int, int] = (2, 1)) -> dict[str, Any]:
    given = [{"rank": rank, "value": f"r-{n}"} for n, rank in enumerate(ranks)]
    values = {"note": {"value": "clear"}, "order": {"value": given}}
    return {"user_id": "u", "values": values, "status": status}


FIELDS = {"prompt": "Q?", "r-0": "a", "r-1": "b"}
ITEMS = [{"id": 1, "title": "x", "body": "a"}, {"id": 2, "title": "y", "body": "b"}]
INFO = {"post": "P", "title": "T", "subreddit": "S"}
HEAD = "SUBREDDIT: r/S\n\nTITLE: T\n\nPOST: P\n\nTL;DR:"
TURNS = {"prompt": '["Q?"]', "response_a": '["a"]', "response_b": '["b"]'}
STEINNON = {"info": INFO, "summaries": [{"text": " a"}, {"text": " b"}], "worker": "w"}
MUCH, SLIGHTLY = replace(Pair("Q?", "a", "b"), strength=3), replace(Pair("Q?", "b", "a"), strength=1)
A, B, TIE = Pair("Q?", "a", "b"), Pair("Q?", "b", "a"), Pair("Q?", "a", "b", 0.5)
ANSWERS = [{"answer": "a", "rank": 1.0}, {"answer": "b", "rank": 3.0}, {"answer": "c", "rank": 1.0}]
RANKED = {"prompt": "Q?", "ranker": {"rank": ["2", "1"]}, "items": ITEMS, "annotator": 7}


def numbered(prompt: str, one: str, other: str, column: str, *results: tuple[float, Pair], **more: Any) -> list[Any]:
    """Rows with a number, and what each number means."""
    texts = {prompt: [SHARED] if prompt == "context" else "Q?", one: "a", other: "b"}
    return [(texts | {column: number} | more, [pair]) for number, pair in results]


UP = {"role": "assistant", "content": "a"}
ROWS: dict[str, list[tuple[dict[str, Any], list[Any]]]] = {
    "thumbs": [
        ({"prompt": "Q?", "response": "a", "thumbs": given}, [Score("Q?", "a", score)])
        for score, words in ((1.0, ["up", "Up ", True, 1, 1.0, "true", "👍"]), (-1.0, ["down", False, -1, "-1", "👎"]))
        for given in words
    ],
    "KTO": [
        ({"prompt": prompt, "completion": text, "label": label}, [Score("Q?", "a", score)])
        for prompt, text in (("Q?", "a"), ([SHARED], [UP]))
        for label, score in ((True, 1.0), (False, -1.0))
    ],
    "HelpSteer2": numbered("prompt", "response_1", "response_2", "preference_strength", (-3, MUCH), (1, SLIGHTLY), (0, TIE)),
    "HelpSteer3": numbered("context", "response1", "response2", "overall_preference", (-3, MUCH), (1, SLIGHTLY), (4, B)),
    "SHP": numbered("history", "human_ref_A", "human_ref_B", "labels", (1, A), (0, B), score_A=3, score_B=1),
    "WebGPT": [
        ({"question": {"full_text": "Q?"}, "answer_0": "a", "score_0": n, "answer_1": "b", "score_1": -n}, [r])
        for n, r in ((0.5, A), (-0.5, B), (0.0, TIE))
    ],
    "PKU-SafeRLHF": numbered("prompt", "response_0", "response_1", "better_response_id", (0, A), (1, B), safer_response_id=1),
    "Nectar": [({"prompt": "Q?", "answers": ANSWERS}, [Ranking("Q?", ("a", "b", "c"), (1, 3, 1))])],
    "summarize-from-feedback": [
        (STEINNON | {"choice": 0}, [Pair(HEAD, " a", " b", rater="w")]),
        (STEINNON | {"choice": 1}, [Pair(HEAD, " b", " a", rater="w")]),
        (STEINNON | {"choice": 1, "info": {"post": None, "article": "N"}}, [Pair("N\n\nTL;DR:", " b", " a", rater="w")]),
    ],
    "Argilla": [
        ({"fields": FIELDS, "responses": [argilla()]}, [Ranking("Q?", ("a", "b"), (2, 1), "u")]),
        (
            {"fields": FIELDS, "responses": [argilla(), argilla("discarded"), argilla(ranks=(1, 1))]},
            [Ranking("Q?", ("a", "b"), ranks, "u") for ranks in ((2, 1), (1, 1))],
        ),
    ],
    "Label Studio": [(RANKED, [Ranking("Q?", ("b", "a"), (1, 2), "7")])],
    "Chatbot Arena": [
        ({"conversation_a": talk("a"), "conversation_b": talk("b"), "winner": n, "model_a": "x"}, [r])
        for n, r in (("model_a", A), ("model_b", B), ("tie", TIE), ("tie (bothbad)", TIE))
    ],
    "Chatbot Arena (turns)": [
        (TURNS | {"winner_model_a": a, "winner_model_b": b, "winner_tie": 1 - a - b}, [r])
        for a, b, r in ((1, 0, A), (0, 1, B), (0, 0, TIE))
    ],
    "ms-swift": [({"messages": talk("a"), "rejected_response": "b"}, [A])],
}


def test_all_are_known_and_read(tmp_path: Path) -> None:
    assert ROWS.keys() == LAYOUTS.keys()
    for name, cases in ROWS.items():
        for row, expected in cases:
            said: list[str] = []
            path = jsonl(tmp_path / "x.jsonl", row)
            assert read_records(path, say=said.append) == (expected, name)
            assert said[0].startswith(f"{path}: read as {name}")
            assert not any(f"'{column}'" in said[0] for column in (*LAYOUTS[name].columns, "worker", "annotator"))
            assert read_records(path, name)[0] == expected
        lacking = {key: value for key, value in cases[0][0].items() if key != LAYOUTS[name].columns[-1]}
        path = jsonl(tmp_path / "x.jsonl", cases[0][0], lacking)
        refused(lambda path=path: read_records(path), "x.jsonl:2: no column")


def test_arena_as_a_csv_file(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(
        'id,prompt,response_a,response_b,winner_model_a,winner_model_b,winner_tie\n'
        '1,"[""Q?"", ""And?""]","[""a"", null]","[""b"", ""c""]",0,1,0\n', encoding="utf-8",
    )  # fmt: skip
    (pair,) = read_records(path)[0]
    assert isinstance(pair, Pair) and pair.prompt == "Q?" and pair.messages == [SHARED]
    assert (pair.chosen, pair.rejected) == ("b\n\nUser: And?\n\nAssistant: c", "a\n\nUser: And?\n\nAssistant: ")


def test_what_is_not_known_is_said_to_be_unknown_with_what_is(tmp_path: Path) -> None:
    """A column that is called alike makes no format."""
    for row in (
        {"prompt": "p", "response": "a", "helpfulness": 4, "correctness": 4, "coherence": 4},
        {"post_id": "p", "score_A": 12, "score_B": 3, "labels": 1},
        {"question": "q", "answer_0": "a", "score_0": 1},
        {"prompt": "p", "chosen": "a"},
        {"responses": ["a", "b"], "prompt": "p"},
    ):
        path = jsonl(tmp_path / "x.jsonl", row)
        known = ["are those of no known format (candidates: prompt, candidates; rankings: prompt, responses, ranks", *LAYOUTS]
        refused(lambda path=path: read_records(path), f"x.jsonl:1: the columns {', '.join(row)}", *known)


def test_bad_rows(tmp_path: Path) -> None:
    for name, change, part in (
        ("thumbs", {"thumbs": 0}, "'thumbs' is '0'; up, down, true, false, 1 or -1 is needed"),
        ("thumbs", {"thumbs": None}, "no thumb in 'thumbs'; remove the row"),
        ("KTO", {"completion": [UP, UP]}, "'completion' has 2 messages; one of the assistant is needed"),
        ("HelpSteer2", {"preference_strength": "strong"}, "'preference_strength' is 'strong'; a number is needed"),
        ("SHP", {"labels": 2}, "'labels' is 2; 0 or 1 is needed"),
        ("PKU-SafeRLHF", {"better_response_id": -1}, "'better_response_id' is -1; 0 or 1 is needed"),
        ("WebGPT", {"question": "Q?"}, "'question' is a text; an object is needed"),
        ("WebGPT", {"score_0": None}, "'score_0' is null; a number is needed"),
        ("Nectar", {"answers": ["a"]}, "'answers' is a list; a list of objects with answer and rank is needed"),
        ("Nectar", {"answers": [{"answer": "a", "rank": 1}]}, "fewer than two responses"),
        ("summarize-from-feedback", {"choice": 2}, "2 summaries and the choice 2"),
        ("Argilla", {"responses": []}, "no submitted ranking"),
        ("Label Studio", {"ranker": {"good": ["1"], "bad": ["2"]}}, "'ranker' has 2 lists"),
        ("Label Studio", {"ranker": {"rank": ["1", "9"]}}, "'ranker' names '9', which is not in 'items'"),
        ("Chatbot Arena", {"winner": "x"}, "'winner' is 'x'; known: model_a, model_b, tie"),
        ("Chatbot Arena (turns)", {"prompt": "Q?"}, "'prompt' is no list of texts, as JSON"),
        ("ms-swift", {"messages": [SHARED]}, "'messages' does not end with the assistant's answer"),
    ):
        path = jsonl(tmp_path / "x.jsonl", ROWS[name][0][0] | change)
        refused(lambda path=path: read_records(path), "x.jsonl:1: ", part)


def test_the_documents_list_them_all() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "quickstart.md").read_text(encoding="utf-8")
    rows = [f"| {name} | {', '.join(f'`{c}`' for c in each.columns)} | {each.format} |" for name, each in LAYOUTS.items()]
    assert "\n".join(rows) + "\n\n" in text


ODD: list[Any] = [
    [], {}, [[]], {"a": []}, None, True, 0, 1.5, 10**400, "", "x", "\ud800", ["a"], [1, 2], [{"value": ["a"], "rank": 1}],
]  # fmt: skip


def bent_everywhere(whole: Any) -> Iterator[Any]:
    """A JSON value with one value in it, however deep, replaced by each odd one."""
    yield from ODD
    for key in whole if isinstance(whole, dict) else range(len(whole)) if isinstance(whole, list) else ():
        for each in bent_everywhere(whole[key]):
            copy = whole.copy()
            copy[key] = each
            yield copy


def test_odd_values_end_in_one_message(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    for layout, cases in ROWS.items():
        for row in bent_everywhere(cases[0][0]):
            file.write_text(json.dumps(row) + "\n", encoding="utf-8")
            for format in ("auto", layout):
                with suppress(DataError):
                    read_records(file, format)
