"""Published data sets of comparisons and ratings: how each is recognised and converted to our columns. Standard library only.

Ties stay ties: equal ranks, or a label of 0.5. "Both are bad" is a tie too. Thumbs are scores: 1 up, -1 down.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from konomi.data.rows import Row, UnusableRow, checked_text
from konomi.errors import DataError

Values = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """A data set that is recognised by its ``columns``; ``rows`` converts a row to rows of our ``format``."""

    format: str
    columns: tuple[str, ...]
    rows: Callable[[Row], Iterator[Values]]
    optional: tuple[str, ...] = ()


def _numbered(prompt: str, one: str, other: str, column: str, leads: Mapping[float, int] | None = None) -> Layout:
    """A pair with a number: below 0 the first is better, above 0 the second, 1 to 3 by how much; or 0 and 1 only, and ``leads``
    says which stands for the first (1) and the second (-1)."""

    def rows(row: Row) -> Iterator[Values]:
        number = row.number(column, as_text=True)
        if leads is not None and number not in leads:
            raise DataError(f"{row.where}: {column!r} is {number:g}; 0 or 1 is needed")
        lead = -number if leads is None else leads[number]
        strength = {"strength": abs(number)} if leads is None and abs(number) in (1, 2, 3) else {}
        yield _pair(row.values[prompt], row.values[one], row.values[other], lead) | strength

    return Layout("pairs", (prompt, one, other, column), rows)


def _webgpt(row: Row) -> Iterator[Values]:
    lead = row.number("score_0", as_text=True) - row.number("score_1", as_text=True)
    yield _pair(row.inner("question").text("full_text"), row.values["answer_0"], row.values["answer_1"], lead)


def _nectar(row: Row) -> Iterator[Values]:
    answers = row.objects("answers", "answer", "rank")
    yield _ranking(row.values["prompt"], [each["answer"] for each in answers], [each["rank"] for each in answers])


def _summaries(row: Row) -> Iterator[Values]:
    about, texts, choice = row.inner("info"), row.objects("summaries", "text"), row.number("choice", as_text=True)
    if len(texts) != 2 or choice not in (0, 1):
        raise DataError(f"{row.where}: {len(texts)} summaries and the choice {choice:g}; two, and 0 or 1, are needed")
    info = about.values
    if info.get("post"):  # the form of Stiennon et al. (2020)
        head = f"SUBREDDIT: r/{info.get('subreddit')}\n\nTITLE: {info.get('title')}\n\nPOST: {info['post']}"
    else:
        head = about.text("article")
    pair = _pair(f"{head}\n\nTL;DR:", texts[0]["text"], texts[1]["text"], 1 if choice == 0 else -1)
    yield pair | {"rater": row.values.get("worker")}


def _argilla(row: Row) -> Iterator[Values]:
    fields = row.inner("fields")
    submitted = [each for each in row.objects("responses", "values") if each.get("status", "submitted") == "submitted"]
    ranked = False
    for answer in submitted:
        for question in Row(row.where, answer).inner("values").values.values():
            given = question.get("value") if isinstance(question, dict) else None
            if not isinstance(given, list) or not all(isinstance(e, dict) and {"rank", "value"} <= e.keys() for e in given):
                continue  # a question of another kind
            ranks = {checked_text(row.where, "what is ranked", each["value"], blank=True): each["rank"] for each in given}
            prompts = [name for name in fields.values if name not in ranks]
            usual = (name for name in ("prompt", "instruction", "question") if name in prompts)
            prompt = fields.value(next(usual, prompts[0] if prompts else "prompt"))
            texts = [fields.text(each, blank=True) for each in ranks]
            yield _ranking(prompt, texts, list(ranks.values()), answer.get("user_id"))
            ranked = True
    if not ranked:
        raise UnusableRow(row.where, "no submitted ranking", "remove the row, or let somebody rank it")


def _label_studio(row: Row) -> Iterator[Values]:
    items = {str(each["id"]): each["body"] for each in row.objects("items", "id", "body")}
    orders = list(row.inner("ranker").values.values())
    if len(orders) != 1 or not isinstance(orders[0], list):
        raise DataError(f"{row.where}: 'ranker' has {len(orders)} lists; one, from the best to the worst, is an order")
    order = [str(each) for each in orders[0]]
    if unknown := [each for each in order if each not in items]:
        raise DataError(f"{row.where}: 'ranker' names {unknown[0]!r}, which is not in 'items'")
    ranks = list(range(1, len(order) + 1))
    yield _ranking(row.values["prompt"], [items[each] for each in order], ranks, row.values.get("annotator"))


def _arena(row: Row) -> Iterator[Values]:
    leads = {"model_a": 1, "model_b": -1, "tie": 0, "tie (bothbad)": 0, "both_bad": 0}
    winner = row.values["winner"]
    if not isinstance(winner, str) or winner not in leads:
        raise DataError(f"{row.where}: 'winner' is {winner!r}; known: {', '.join(leads)}")
    yield _pair(None, row.values["conversation_a"], row.values["conversation_b"], leads[winner])


def _arena_turns(row: Row) -> Iterator[Values]:
    asked, *answers = (_turns(row, name) for name in ("prompt", "response_a", "response_b"))
    talks = []
    for texts in answers:
        both = zip(asked, texts, strict=False)
        talks.append([m for q, a in both for m in ({"role": "user", "content": q}, {"role": "assistant", "content": a})])
    lead = row.number("winner_model_a", as_text=True) - row.number("winner_model_b", as_text=True)
    yield _pair(None, talks[0], talks[1], lead)


def _swift(row: Row) -> Iterator[Values]:
    messages = row.objects("messages", "role", "content")
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise DataError(f"{row.where}: 'messages' does not end with the assistant's answer to something")
    yield _pair(messages[:-1], messages[-1]["content"], row.text("rejected_response", blank=True), 1)


_THUMBS = {"up": 1.0, "true": 1.0, "1": 1.0, "\N{THUMBS UP SIGN}": 1.0}
_THUMBS |= {"down": -1.0, "false": -1.0, "-1": -1.0, "\N{THUMBS DOWN SIGN}": -1.0}


def _thumbs(response: str, column: str) -> Layout:
    """A response with a thumb. Who gave it is left aside: unlike scores, thumbs of different people are on one scale."""

    def rows(row: Row) -> Iterator[Values]:
        given, text = row.values[column], row.values[response]
        if given is None or given == "":
            raise UnusableRow(row.where, f"no thumb in {column!r}", "remove the row")
        word = f"{given:g}" if isinstance(given, float) else str(given).strip().lower()  # a table with a gap holds 1 as 1.0
        if word not in _THUMBS or isinstance(given, (list, dict)):
            raise DataError(f"{row.where}: {column!r} is {str(given)[:40]!r}; up, down, true, false, 1 or -1 is needed")
        if isinstance(text, list):  # the form of TRL: one message
            messages = row.objects(response, "role", "content")
            if len(messages) != 1 or messages[0]["role"] != "assistant":
                raise DataError(f"{row.where}: {response!r} has {len(messages)} messages; one of the assistant is needed")
            text = messages[0]["content"]
        yield {"prompt": row.values["prompt"], "response": text, "score": _THUMBS[word]}

    return Layout("scores", ("prompt", response, column), rows)


LAYOUTS = {
    "thumbs": _thumbs("response", "thumbs"),
    "KTO": _thumbs("completion", "label"),
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
}
"""By name: data sets, and the tools that write such files."""
RATINGS = tuple(name for name, layout in LAYOUTS.items() if layout.format == "scores")
"""Those that rate each response by itself."""


def _pair(prompt: Any, first: Any, second: Any, lead: float) -> Values:
    """The better one is chosen; without a lead it is a draw."""
    chosen, rejected = (second, first) if lead < 0 else (first, second)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "label": 1.0 if lead else 0.5}


def _ranking(prompt: Any, responses: list[Any], ranks: list[Any], rater: Any = None) -> Values:
    return {"prompt": prompt, "responses": responses, "ranks": ranks, "rater": None if rater is None else str(rater)}


def _turns(row: Row, column: str) -> list[str]:
    """The texts of the turns: a list, or one written as JSON."""
    value = row.values[column]
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, list) or not all(isinstance(each, str | None) for each in value):
        raise DataError(f"{row.where}: {column!r} is no list of texts, as JSON")
    return [each or "" for each in value]
