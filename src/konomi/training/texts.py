"""Texts as rows of tokens to learn from: which tokens count, several texts in one row, batches.

A text begins with the tokenizer's leading special tokens, as a query does, and ends in its end of text, so that the model
learns to stop. Which tokens count follows from lengths, never from ids: padding may be the end of text.

Shapes: B rows, L tokens of the longest.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from konomi.data.chat import Render
from konomi.data.examples import Example
from konomi.data.messages import Message
from konomi.data.tokens import Tokens, pad_right
from konomi.errors import DataError

IGNORED = -100
"""The label of a token that does not count, as transformers has it."""


@dataclass(frozen=True)
class Row:
    """One text, or several laid end to end.

    Attributes:
        ids: tokens.
        labels: the token itself where it is learned, else `IGNORED`; the first token of a text never is.
        positions: of each token in its own text, from 0.
    """

    ids: list[int]
    labels: list[int]
    positions: list[int]

    @property
    def learned(self) -> int:
        """How many tokens count."""
        return sum(label != IGNORED for label in self.labels)


@dataclass
class Cut:
    """Texts that were longer than their row."""

    texts: int = 0
    longest: int = 0
    """Tokens of the longest text, cut or not."""


def encode(
    examples: Iterable[Example], tokens: Tokens, *, everything: bool, max_length: int, render: Render | None = None
) -> tuple[list[Row], Cut]:
    """Each example as a row of at most ``max_length`` tokens, and how many were cut to that.

    A conversation gives a row for each answer where the template writes a turn differently when others follow (Qwen3 leaves out
    what the model thought).

    Args:
        examples: what to learn.
        tokens: the tokenizer.
        everything: learn prompts and the turns of others than the assistant too.
        max_length: a longer text loses its end.
        render: the chat template; for conversations only.

    Raises:
        DataError: no token of a text counts; the chat template refuses a conversation.
    """
    rows, cut = [], Cut()
    for example, parts in ((each, parts) for each in examples for parts in _parts(each, everything, render)):
        ids, counts = _flagged(example, parts, tokens)
        front = 1 if example.messages else max(1, len(tokens.leading))
        labels = [i if (c or everything) and n >= front else IGNORED for n, (i, c) in enumerate(zip(ids, counts, strict=True))]
        cut.texts += len(ids) > max_length
        cut.longest = max(cut.longest, len(ids))
        row = Row(ids[:max_length], labels[:max_length], list(range(min(len(ids), max_length))))
        if not row.learned:
            raise DataError(_nothing_left(example, ids, labels, max_length))
        rows.append(row)
    return rows, cut


def _nothing_left(example: Example, ids: Sequence[int], labels: Sequence[int], max_length: int) -> str:
    before = next((n for n, label in enumerate(labels) if label != IGNORED), None)
    if before is None:
        return f"{example.where}: {len(ids)} tokens in this model's vocabulary: there is nothing to learn from it; remove it"
    what = "before the assistant's first answer there are" if example.messages else "the prompt alone has"
    return (
        f"{example.where}: {what} {before} tokens, which leaves nothing of what is to be learned within sft.max_length = "
        f"{max_length}; shorten or remove the row, or raise the limit"
    )


Parts = list[tuple[str, bool]]
"""Texts that together are one, and whether each is learned where not everything is."""


def _parts(example: Example, everything: bool, render: Render | None) -> list[Parts]:
    """The rows of an example, in parts."""
    if not example.messages:
        return [[(example.text, True)] if example.completion is None else [(example.text, False), (example.completion, True)]]
    assert render is not None
    try:
        if everything:
            return [[(render(example.messages), example.messages[-1]["role"] == "assistant")]]
        return turns(example.messages, render)
    except DataError as error:
        raise DataError(f"{example.where}: {error}") from error


def _flagged(example: Example, parts: Parts, tokens: Tokens) -> tuple[list[int], list[bool]]:
    """The ids of an example, and whether each is learned where not everything is."""
    rows = tokens.parts([text for text, _ in parts], rendered=bool(example.messages))
    if parts[-1][1]:
        rows[-1] = tokens.ended(rows[-1])
    counts = [counted for (_, counted), row in zip(parts, rows, strict=True) for _ in row]
    return [i for row in rows for i in row], counts


def turns(messages: Sequence[Message], render: Render) -> list[Parts]:
    """A conversation in parts, which together are its rendering. The assistant's are learned: what the template writes from the
    cue for an answer to the end of the turn, as in later use.

    Where the template writes a turn differently when others follow, each answer with all before it is a row of its own.

    Raises:
        DataError: the template refuses the conversation, or writes a question differently when its answer follows.
    """
    rendered, done, joined = render(messages), "", True
    parts: Parts = []
    alone: list[Parts] = []
    for number in (number for number, message in enumerate(messages) if message["role"] == "assistant"):
        question, answer = render(messages[:number]), render(messages[: number + 1])
        if not answer.startswith(question):
            raise DataError(
                "the chat template writes a question differently when its answer follows, so that what the assistant says cannot "
                "be told from the rest; use another template"
            )
        alone.append([(question, False), (answer[len(question) :], True)])
        joined = joined and question.startswith(done) and rendered.startswith(answer)
        parts += [(question[len(done) :], False), alone[-1][1]]
        done = answer
    rest = rendered[len(done) :]
    return [[*parts, (rest, False)] if rest else parts] if joined else alone


def pack(rows: Sequence[Row], max_length: int) -> list[Row]:
    """Lay rows end to end in rows of at most ``max_length`` tokens: the longest first, each where it fits best."""
    packed: list[list[Row]] = []
    rooms: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for row in sorted(rows, key=lambda row: -len(row.ids)):
        at = bisect.bisect_left(rooms, (len(row.ids), 0))
        if at < len(rooms):
            room, number = rooms.pop(at)
        else:
            room, number = max_length, len(packed)
            packed.append([])
        packed[number].append(row)
        bisect.insort(rooms, (room - len(row.ids), number))
    return [
        Row(*([i for part in each for i in getattr(part, name)] for name in ("ids", "labels", "positions"))) for each in packed
    ]


@dataclass(frozen=True)
class Collator:
    """Rows to a batch.

    Attributes:
        pad_id: any valid id; padding is to the right, where no token of a text sees it.
        packing: rows may hold several texts, so that positions are needed.
    """

    pad_id: int
    packing: bool

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Return input_ids, labels and (packed) position_ids, each [B, L] int64."""
        batch = {
            "input_ids": pad_right([row.ids for row in rows], self.pad_id)[0],
            "labels": pad_right([row.labels for row in rows], IGNORED)[0],
        }
        if self.packing:  # a position that is not one more than the last begins another text: padding is texts of one token
            batch["position_ids"] = pad_right([row.positions for row in rows], 0)[0]
        return batch
