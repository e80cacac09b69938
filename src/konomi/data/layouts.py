"""Published data sets of comparisons: their columns, and their rows as rows of ours. Standard library only.

Ties stay ties: equal ranks, or a label of 0.5. "Both are bad" is a tie too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from konomi.data.rows import UnusableRow, checked_text, kind, need_column, text_of
from konomi.errors import DataError

Values = dict[str, Any]
Rows = Callable[[str, Values], Iterator[Values]]


@dataclass(frozen=True)
class Layout:
    """How a data set is recognised, by ``columns``, and its rows made rows of ours in ``format``."""

    format: str
    columns: tuple[str, ...]
    rows: Rows
    optional: tuple[str, ...] = ()


def _numbered(prompt: str, one: str, other: str, column: str, leads: Mapping[float, int] | None = None) -> Layout:
    """A pair with a number: below 0 the first is better, above 0 the second; or 0 and 1 only, and ``leads`` says which stands for
    the first (1) and the second (-1)."""

    def rows(where: str, row: Values) -> Iterator[Values]:
        number = _number(where, row, column)
        if leads is not None and number not in leads:
            raise DataError(f"{where}: {column!r} is {number:g}; 0 or 1 is needed")
        yield _pair(row[prompt], row[one], row[other], -number if leads is None else leads[number])

    return Layout("pairs", (prompt, one, other, column), rows)


def _webgpt(where: str, row: Values) -> Iterator[Values]:
    prompt = text_of(where, _object(where, row, "question"), "full_text")
    lead = _number(where, row, "score_0") - _number(where, row, "score_1")
    yield _pair(prompt, row["answer_0"], row["answer_1"], lead)


def _nectar(where: str, row: Values) -> Iterator[Values]:
    answers = _objects(where, row, "answers", "answer", "rank")
    yield {
        "prompt": row["prompt"],
        "responses": [each["answer"] for each in answers],
        "ranks": [each["rank"] for each in answers],
    }


def _summaries(where: str, row: Values) -> Iterator[Values]:
    about, texts = _object(where, row, "info"), _objects(where, row, "summaries", "text")
    choice = _number(where, row, "choice")
    if len(texts) != 2 or choice not in (0, 1):
        raise DataError(f"{where}: {len(texts)} summaries and the choice {choice:g}; two, and 0 or 1, are needed")
    if about.get("post"):  # the form of Stiennon et al. (2020)
        head = f"SUBREDDIT: r/{about.get('subreddit')}\n\nTITLE: {about.get('title')}\n\nPOST: {about['post']}"
    else:
        head = text_of(where, about, "article")
    pair = _pair(f"{head}\n\nTL;DR:", texts[0]["text"], texts[1]["text"], 1 if choice == 0 else -1)
    yield pair | {"rater": row.get("worker")}


def _argilla(where: str, row: Values) -> Iterator[Values]:
    fields = _object(where, row, "fields")
    answers = _objects(where, row, "responses", "values")
    found = 0
    for answer in answers:
        if answer.get("status", "submitted") != "submitted":
            continue
        for question in _object(where, answer, "values").values():
            given = question.get("value") if isinstance(question, dict) else None
            if not isinstance(given, list) or not all(isinstance(e, dict) and {"rank", "value"} <= e.keys() for e in given):
                continue  # a question of another kind
            ranks = {checked_text(where, "what is ranked", each["value"], blank=True): each["rank"] for each in given}
            prompts = [name for name in fields if name not in ranks]
            name = next(
                (name for name in ("prompt", "instruction", "question") if name in prompts), prompts[0] if prompts else ""
            )
            need_column(where, list(fields), name or "prompt")
            texts = [text_of(where, fields, each, blank=True) for each in ranks]
            rater = answer.get("user_id")
            yield {"prompt": fields[name], "responses": texts, "ranks": list(ranks.values()), "rater": rater and str(rater)}
            found += 1
    if not found:
        raise UnusableRow(where, "no submitted ranking", "remove the row, or let somebody rank it")


def _label_studio(where: str, row: Values) -> Iterator[Values]:
    items = {str(each["id"]): each["body"] for each in _objects(where, row, "items", "id", "body")}
    orders = list(_object(where, row, "ranker").values())
    if len(orders) != 1 or not isinstance(orders[0], list):
        raise DataError(f"{where}: 'ranker' has {len(orders)} lists; one, from the best to the worst, is an order")
    order = [str(each) for each in orders[0]]
    if unknown := [each for each in order if each not in items]:
        raise DataError(f"{where}: 'ranker' names {unknown[0]!r}, which is not in 'items'")
    rater = row.get("annotator")
    yield {
        "prompt": row["prompt"],
        "responses": [items[each] for each in order],
        "ranks": list(range(1, len(order) + 1)),
        "rater": None if rater is None else str(rater),
    }


def _arena(where: str, row: Values) -> Iterator[Values]:
    leads = {"model_a": 1, "model_b": -1, "tie": 0, "tie (bothbad)": 0, "both_bad": 0}
    winner = row["winner"]
    if not isinstance(winner, str) or winner not in leads:
        raise DataError(f"{where}: 'winner' is {winner!r}; known: {', '.join(leads)}")
    yield _pair(None, row["conversation_a"], row["conversation_b"], leads[winner])


def _arena_turns(where: str, row: Values) -> Iterator[Values]:
    asked, *answers = (_turns(where, row, name) for name in ("prompt", "response_a", "response_b"))
    talks = []
    for said in answers:
        both = zip(asked, said, strict=False)
        talks.append([m for q, a in both for m in ({"role": "user", "content": q}, {"role": "assistant", "content": a})])
    wins = [_number(where, row, f"winner_{name}") for name in ("model_a", "model_b")]
    yield _pair(None, talks[0], talks[1], wins[0] - wins[1])


def _swift(where: str, row: Values) -> Iterator[Values]:
    messages = _objects(where, row, "messages", "role", "content")
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise DataError(f"{where}: 'messages' does not end with the assistant's answer to something")
    rejected = checked_text(where, "'rejected_response'", row["rejected_response"], blank=True)
    yield _pair(messages[:-1], messages[-1]["content"], rejected, 1)


LAYOUTS = {
    "HelpSteer2": _numbered("prompt", "response_1", "response_2", "preference_strength"),
    "HelpSteer3": _numbered("context", "response1", "response2", "overall_preference"),
    "SHP": _numbered("history", "human_ref_A", "human_ref_B", "labels", {1: 1, 0: -1}),
    "WebGPT": Layout("pairs", ("question", "answer_0", "score_0", "answer_1", "score_1"), _webgpt),
    "PKU-SafeRLHF": _numbered("prompt", "response_0", "response_1", "better_response_id", {0: 1, 1: -1}),
    "Nectar": Layout("rankings", ("prompt", "answers"), _nectar),
    "summarize-from-feedback": Layout("pairs", ("info", "summaries", "choice"), _summaries, ("worker",)),
    "Argilla": Layout("rankings", ("fields", "responses"), _argilla),
    "Label Studio": Layout("rankings", ("prompt", "ranker", "items"), _label_studio, ("annotator",)),
    "Chatbot Arena": Layout("pairs", ("conversation_a", "conversation_b", "winner"), _arena),
    "Chatbot Arena (turns)": Layout(
        "pairs", ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b"), _arena_turns
    ),
    "ms-swift": Layout("pairs", ("messages", "rejected_response"), _swift),
}  # fmt: skip
"""By name: data sets, and the tools that write such files."""


def _pair(prompt: Any, first: Any, second: Any, lead: float) -> Values:
    """The better one is chosen; without a lead it is a draw."""
    chosen, rejected = (second, first) if lead < 0 else (first, second)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "label": 1.0 if lead else 0.5}


def _number(where: str, row: Values, column: str) -> float:
    value = row[column]
    try:
        number = float("nan" if isinstance(value, bool | None) else value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if number != number:
        raise DataError(f"{where}: {column!r} is {kind(value)}; a number is needed")
    return number


def _object(where: str, row: Values, column: str) -> Values:
    need_column(where, list(row), column)
    value = row[column]
    if not isinstance(value, dict):
        raise DataError(f"{where}: {column!r} is {kind(value)}; an object is needed")
    return value


def _objects(where: str, row: Values, column: str, *names: str) -> Sequence[Values]:
    value = row[column]
    if not isinstance(value, list) or not all(isinstance(each, dict) and set(names) <= each.keys() for each in value):
        raise DataError(f"{where}: {column!r} is {kind(value)}; a list of objects with {' and '.join(names)} is needed")
    return value


def _turns(where: str, row: Values, column: str) -> list[str]:
    """The texts of the turns: a list, or one written as JSON."""
    value = row[column]
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, list) or not all(isinstance(each, str | None) for each in value):
        raise DataError(f"{where}: {column!r} is no list of texts, as JSON")
    return [each or "" for each in value]
