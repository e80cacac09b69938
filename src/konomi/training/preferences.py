"""Comparisons as tokens: a prompt, the responses to it, and what the votes on pairs of them say.

A prompt is encoded as a query is, and a response goes on from it, so that all responses to a prompt share its tokens. A
response ends in the end of text, a token like any other.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from konomi.data.chat import Render
from konomi.data.messages import Message
from konomi.data.records import Group
from konomi.data.tokens import Tokens, pad_right
from konomi.engine.rollout import Rollout
from konomi.errors import DataError
from konomi.text import shortened
from konomi.training.texts import Cut


class Judged(NamedTuple):
    """Two responses and the judgement of them.

    better, worse: places among the responses to the prompt.
    label: share of the votes by which ``better`` is the better one, 0 to 1; a tie is half a vote.
    margin: by how much its score should be higher at least, score units.
    weight: share of the prompt's votes.
    """

    better: int
    worse: int
    label: float
    margin: float
    weight: float


@dataclass(frozen=True)
class Choices:
    """One element of a batch: a prompt, the responses to it, and judgements of pairs of them, whose weights add up to 1."""

    query: list[int]
    responses: list[list[int]]
    judged: tuple[Judged, ...]

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest response."""
        return len(self.query) + max(map(len, self.responses))


def votes(group: Group) -> tuple[Judged, ...]:
    """The judgements of a group, those of the same two responses as one. Ties count where somebody preferred one of the two; a
    vote with a margin stays alone.

    >>> from konomi.data.records import Pair, groups
    >>> three = [Pair("p", "a", "b"), Pair("p", "a", "b"), Pair("p", "b", "a")]
    >>> [(j.better, j.worse, round(j.label, 2), j.weight) for j in votes(groups(three)[0])]
    [(0, 1, 0.67, 1.0)]
    """
    by_pair: dict[tuple[int, int, float], list[float]] = {}
    for c in group.comparisons:
        if c.margin or c.better < c.worse:
            by_pair.setdefault((c.better, c.worse, c.margin), []).append(c.label)
        else:
            by_pair.setdefault((c.worse, c.better, 0.0), []).append(1 - c.label)
    for one, other, _ in group.ties:
        if (pair := (min(one, other), max(one, other), 0.0)) in by_pair:
            by_pair[pair].append(0.5)
    count = sum(map(len, by_pair.values()))
    return tuple(
        Judged(better, worse, statistics.fmean(labels), margin, len(labels) / count)
        for (better, worse, margin), labels in by_pair.items()
    )


def encode(
    groups: Iterable[Group], tokens: Tokens, *, max_length: int, end_of_text: bool, chat: bool = False,
    render: Render | None = None,
) -> tuple[list[Choices], Cut]:  # fmt: skip
    """Each group as tokens, and how many of the responses were cut.

    Args:
        groups: each with a comparison.
        tokens: the tokenizer.
        max_length: tokens of a prompt with a response; a longer response loses its end.
        end_of_text: put it behind each response. A chat template writes it in any case.
        chat: a prompt that is a text is a user's message.
        render: the chat template; for conversations only.

    Raises:
        DataError: a prompt leaves no room for a response; a response has no tokens; the chat template refuses a conversation.
    """
    encoded, cut = [], Cut()
    for group in groups:
        messages = group.messages or ([{"role": "user", "content": group.prompt}] if chat else None)
        try:
            query, responses = _of_text(group, tokens) if messages is None else _of_talk(group, messages, tokens, render)
        except DataError as error:
            raise DataError(f"the prompt {shortened(group.prompt)!r}: {error}") from error
        room = max_length - len(query)
        if room < 1:
            raise DataError(
                f"the prompt {shortened(group.prompt)!r} has {len(query)} tokens, which leaves no room for a response within "
                f"dpo.max_length = {max_length}; shorten or remove it, or raise the limit"
            )
        if end_of_text:
            responses = [tokens.ended(row) for row in responses]
        if not all(responses):
            empty = group.responses[responses.index([])]
            raise DataError(
                f"the prompt {shortened(group.prompt)!r}: the response {shortened(empty)!r} has no tokens in this model's "
                "vocabulary; remove it, or set dpo.end_of_text = true"
            )
        longest = len(query) + max(map(len, responses))
        cut.texts, cut.longest = cut.texts + sum(len(row) > room for row in responses), max(cut.longest, longest)
        encoded.append(Choices(query, [row[:room] for row in responses], votes(group)))
    return encoded, cut


def _of_text(group: Group, tokens: Tokens) -> tuple[list[int], list[list[int]]]:
    """The ids of the prompt, and those of each response."""
    rows = [tokens.parts([group.prompt, response]) for response in group.responses]
    return rows[0][0], [response for _, response in rows]


def _of_talk(
    group: Group, messages: Sequence[Message], tokens: Tokens, render: Render | None
) -> tuple[list[int], list[list[int]]]:
    """The same of a conversation, as the chat template writes it: a response is what follows the cue for an answer."""
    assert render is not None
    question = render(messages)
    rows = []
    for response in group.responses:
        rendered = render([*messages, {"role": "assistant", "content": response}])
        if not rendered.startswith(question):
            raise DataError(
                "the chat template writes a question differently when its answer follows, so that the answer cannot be told from "
                "it; use another template"
            )
        rows.append(tokens.parts([question, rendered[len(question) :]], rendered=True))
    return rows[0][0], [response for _, response in rows]


def rollout_of(choices: Sequence[Choices]) -> Rollout:
    """All responses to all prompts, one after another, as the engine takes them."""
    rows = [(len(each.query), each.query + response) for each in choices for response in each.responses]
    ids_BL, lengths_B = pad_right([row for _, row in rows], 0)
    queries_B = torch.tensor([query for query, _ in rows])
    return Rollout(ids_BL, queries_B, lengths_B - queries_B, torch.zeros(len(rows), dtype=torch.bool))
