"""Preferences as chat messages: TRL's forms, rendered plainly or by a chat template."""

from __future__ import annotations

from typing import Any

import pytest

import tiny
from konomi.data.messages import plain_render, preference, template_render
from konomi.data.parse import detect, parse
from konomi.data.records import Pair
from konomi.data.rows import Row, UnusableRow
from konomi.errors import DataError, ModelError


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


GOLDEN = Pair("User: 1+1?\n\nAssistant:", " Two.", " Three.")


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
    assert parse(Row("x:1", row), "pairs") == GOLDEN


def test_several_turns() -> None:
    row = {
        "chosen": [{"role": "system", "content": "Be kind."}, user("a"), said("b"), user("c"), said("d")],
        "rejected": [{"role": "system", "content": "Be kind."}, user("a"), said("b"), user("c"), said("x"), user("y"), said("z")],
    }
    prompt = "System: Be kind.\n\nUser: a\n\nAssistant: b\n\nUser: c\n\nAssistant:"
    assert preference(Row("x:1", row)) == (prompt, " d", " x\n\nUser: y\n\nAssistant: z")
    assert prompt + " d" == plain_render(row["chosen"])


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


# chat templates

TEMPLATE = """{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}\
{{ m.role[0] }} {{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}a {% endif %}"""


def tokenizer(template: str | None = TEMPLATE, bos: bool = True) -> Any:
    made = tiny.tiny_tokenizer(bos=bos)
    made.chat_template = template
    return made


ROW = {"prompt": [user("hi")], "chosen": [said("yes")], "rejected": [said("no")]}


@pytest.mark.parametrize(("adds_bos", "start"), [(True, ""), (False, "<bos>")])
def test_a_chat_template(adds_bos: bool, start: str) -> None:
    render = template_render(tokenizer(bos=adds_bos))
    assert preference(Row("x:1", ROW), render) == (f"{start}u hi<eos>a ", "yes<eos>", "no<eos>")


def test_templates_that_do_not_work() -> None:
    with pytest.raises(ModelError, match="this tokenizer has no chat template"):
        template_render(tokenizer(None))
    row = {**ROW, "prompt": [{"role": "tool", "content": "x"}]}
    with pytest.raises(DataError, match=r"^f:3: the chat template refuses these messages: no tools"):
        preference(Row("f:3", row), template_render(tokenizer()))
    render = template_render(tokenizer("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"))
    with pytest.raises(DataError, match=r"^f:3: the chat template writes the prompt differently when an answer follows \('1hi'"):
        preference(Row("f:3", ROW), render)
