"""Conversations as text, and preferences as chat messages: TRL's forms."""

from __future__ import annotations

from typing import Any

import pytest

from konomi.data.messages import Answered, Conversation, asked, preference, readable
from konomi.data.parse import detect, parse
from konomi.data.records import Pair
from konomi.data.rows import Row, UnusableRow
from konomi.errors import DataError


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


GOLDEN = Pair("1+1?", "Two.", "Three.")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [user("1+1?")], "chosen": [said("Two.")], "rejected": [said("Three.")]},
        {"prompt": [user("1+1?")], "chosen": "Two.", "rejected": "Three."},
        {"prompt": "1+1?", "chosen": [said("Two.")], "rejected": [said("Three.")]},
        {"prompt": " 1+1?", "chosen": [user("1+1?"), said("Two.")], "rejected": [user("1+1?"), said("Three.")]},
        {"prompt": [user("1+1?")], "chosen": [user("1+1?"), said("Two.")], "rejected": [user("1+1?"), said("Three.")]},
        {"chosen": [user("1+1?"), said("Two.")], "rejected": [user("1+1?"), said("Three.")]},
        {"prompt": None, "chosen": [user("1+1?"), said("Two.") | {"name": None}], "rejected": [user("1+1?"), said("Three.")]},
    ],
    ids=["explicit", "text answers", "text prompt", "prompt twice", "messages twice", "implicit", "from a table"],
)
def test_all_forms_are_one_pair(row: dict[str, Any]) -> None:
    assert detect(Row("x:1", row)) == "pairs"
    pair = parse(Row("x:1", row), "pairs")
    assert pair == GOLDEN and isinstance(pair, Pair) and pair.messages == [user("1+1?")]


def test_several_turns() -> None:
    row = {
        "chosen": [{"role": "system", "content": "Be kind."}, user("a"), said("b"), user("c"), said("d")],
        "rejected": [{"role": "system", "content": "Be kind."}, user("a"), said("b"), user("c"), said("x"), user("y"), said("z")],
    }
    messages, chosen, rejected = preference(Row("x:1", row))
    assert messages == row["chosen"][:4]
    assert readable(messages) == "System: Be kind.\n\nUser: a\n\nAssistant: b\n\nUser: c"
    assert (chosen, rejected) == ("d", "x\n\nUser: y\n\nAssistant: z")
    assert str(Answered(readable(messages), chosen, messages)) == readable(row["chosen"])


def test_a_system_message_of_the_settings_goes_before_those_that_have_none() -> None:
    own = [{"role": "system", "content": "Be kind."}, user("a")]
    assert asked(own, "Be brief.") == own
    assert asked([user("a")], "Be brief.") == [{"role": "system", "content": "Be brief."}, user("a")]
    assert asked([user("a")]) == [user("a")]


def test_a_text_is_what_a_user_says_to_a_model_that_reads_conversations() -> None:
    assert Answered("a", "b").conversation == [user("a"), said("b")]
    talk = Conversation([user("a"), said("b"), user("c")])
    assert Answered(readable(talk), "d", talk).conversation == [*talk, said("d")]


@pytest.mark.parametrize(
    ("error", "change", "part"),
    [
        (UnusableRow, {"chosen": [said("x")]}, "chosen and rejected are equal"),
        (UnusableRow, {"prompt": None}, "'prompt' is blank; remove the row, write a prompt, or let chosen and rejected begin"),
        (UnusableRow, {"prompt": [user(" ")]}, "'prompt' is blank"),
        (UnusableRow, {"prompt": []}, "'prompt' is blank"),
        (UnusableRow, {"chosen": []}, "chosen or rejected has no answer after the prompt"),
        (UnusableRow, {"prompt": None, "chosen": [user("a")], "rejected": [user("a"), said("x")]}, "no answer after the prompt"),
        (DataError, {"chosen": 3}, "'chosen' is a number; a list of messages or a text is needed"),
        (DataError, {"prompt": 3}, "'prompt' is a number; a text is needed"),
        (DataError, {"chosen": ["b"]}, 'message 1 of \'chosen\' is a text; {"role": "user", "content": "..."} is needed'),
        (DataError, {"chosen": [said("b"), {"role": "user", "text": "b"}]}, "message 2 of 'chosen' is an object with role, text"),
        (DataError, {"prompt": [{}]}, "message 1 of 'prompt' is an object with nothing"),
        (DataError, {"chosen": [{"role": "assistant", "content": None}]}, "the content of message 1 of 'chosen' is null"),
        (DataError, {"chosen": [{"role": 1, "content": "b"}]}, "the role of message 1 of 'chosen' is a number"),
        (DataError, {"chosen": [said("\ud83d")]}, "the content of message 1 of 'chosen' has half a character"),
        (DataError, {"prompt": "other", "chosen": [user("a"), said("b")], "rejected": [user("a"), said("x")]},
         "'prompt' is none of the messages that 'chosen' and 'rejected' begin with"),
    ],
)  # fmt: skip
def test_bad_messages(error: type[DataError], change: dict[str, Any], part: str) -> None:
    row = Row("f:3", {"prompt": [user("a")], "chosen": [said("b")], "rejected": [said("x")], **change})
    with pytest.raises(error) as caught:
        parse(row, "pairs")
    assert type(caught.value) is error and str(caught.value).startswith("f:3: ") and part in str(caught.value)
