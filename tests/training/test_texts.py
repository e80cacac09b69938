"""Texts as rows of tokens: which of them count, where they end, several in a row, batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from konomi.data.examples import Example
from konomi.data.messages import template_render
from konomi.data.tokens import Tokens
from konomi.errors import DataError
from konomi.training.texts import IGNORED, Collator, Row, count_learned, encode, pack, turns
from tiny import BOS_ID, EOS_ID, tiny_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'][0] }} {{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}a {% endif %}"
)
"""u hello<eos>a world<eos>"""


def chat_tokenizer(template: str = TEMPLATE) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def ids(text: str) -> list[int]:
    return [28 if c == " " else ord(c) - ord("a") + 2 for c in text]


def one(example: Example, *, everything: bool = False, max_length: int = 99, **tokenizer: Any) -> Row:
    (row,), _ = encode([example], Tokens(tiny_tokenizer(**tokenizer)), everything=everything, max_length=max_length)
    return row


def talk(*contents: str) -> Example:
    roles = ["user", "assistant"] * len(contents)
    messages = tuple({"role": role, "content": text} for role, text in zip(roles, contents, strict=False))
    return Example("t:1", messages=messages)


def talked(example: Example, everything: bool = False, template: str = TEMPLATE, max_length: int = 99) -> Row:
    tokenizer = chat_tokenizer(template)
    render = template_render(tokenizer)
    (row,), _ = encode([example], Tokens(tokenizer), everything=everything, max_length=max_length, render=render)
    return row


# -- what counts -------------------------------------------------------------------------------------------------------


def test_a_plain_text_begins_as_a_query_and_ends_with_the_end_of_text() -> None:
    row = one(Example("", "abc"))
    assert row.ids == [BOS_ID, *ids("abc"), EOS_ID]
    assert row.labels == [IGNORED, *ids("abc"), EOS_ID]
    assert row.positions == [0, 1, 2, 3, 4]
    without = one(Example("", "abc"), bos=False)
    assert (without.ids, without.labels) == ([*ids("abc"), EOS_ID], [IGNORED, *ids("bc"), EOS_ID])


def test_of_a_completion_the_completion_and_the_end_count() -> None:
    row = one(Example("", "ab", "cd"))
    assert row.ids == [BOS_ID, *ids("abcd"), EOS_ID]
    assert row.labels == [IGNORED] * 3 + [*ids("cd"), EOS_ID]
    assert one(Example("", "ab", "cd"), everything=True).labels == [IGNORED, *ids("abcd"), EOS_ID]
    assert row.learned == 3 and count_learned([row, row]) == 6


def test_a_text_that_ends_already_is_not_ended_twice() -> None:
    assert one(Example("", "ab<eos>")).ids == [BOS_ID, *ids("ab"), EOS_ID]
    assert one(Example("", "a<eos>bc")).ids == [BOS_ID, *ids("a"), EOS_ID, *ids("bc"), EOS_ID]


def test_without_an_end_of_text_there_is_none() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    (row,), _ = encode([Example("", "ab")], Tokens(tokenizer), everything=True, max_length=9)
    assert row.ids == [BOS_ID, *ids("ab")]


def test_of_a_conversation_what_the_assistant_says_counts() -> None:
    row = talked(talk("ab", "cd", "ef", "gh"))
    assert row.ids == [
        BOS_ID, *ids("u ab"), EOS_ID, *ids("a cd"), EOS_ID, *ids("u ef"), EOS_ID, *ids("a gh"), EOS_ID,
    ]  # fmt: skip
    said = [i if i != IGNORED else None for i in row.labels]
    assert said == [None] * 8 + [*ids("cd"), EOS_ID] + [None] * 7 + [*ids("gh"), EOS_ID]
    assert talked(talk("ab", "cd"), everything=True).labels == [IGNORED, *ids("u ab"), EOS_ID, *ids("a cd"), EOS_ID]


def test_a_conversation_that_ends_with_a_question() -> None:
    row = talked(talk("ab", "cd", "ef"))
    assert row.ids[-2:] == ids("a ")
    assert [i for i in row.labels if i != IGNORED] == [*ids("cd"), EOS_ID]
    assert talked(talk("ab", "cd", "ef"), everything=True).ids == row.ids


def test_a_template_without_an_end_gets_one() -> None:
    template = TEMPLATE.replace("{{ eos_token }}", " ")
    assert talked(talk("ab", "cd"), template=template).labels[-4:] == [*ids("cd "), EOS_ID]
    with_break = TEMPLATE.replace("{{ eos_token }}", "{{ eos_token }} ")
    assert talked(talk("ab", "cd"), template=with_break).labels[-4:] == [*ids("cd"), EOS_ID, *ids(" ")]


def test_the_parts_of_a_conversation_are_the_whole() -> None:
    example = talk("ab", "cd", "ef")
    render = template_render(chat_tokenizer())
    parts = turns(example, render)
    assert "".join(text for text, _ in parts) == render(list(example.messages))  # type: ignore[arg-type]
    assert [said for _, said in parts] == [False, True, False]


# -- what is cut, and refused ------------------------------------------------------------------------------------------


def test_a_long_text_is_cut_and_then_has_no_end() -> None:
    rows, cut = encode([Example("", "abcdef"), Example("", "a")], Tokens(tiny_tokenizer()), everything=True, max_length=4)
    assert rows[0].ids == [BOS_ID, *ids("abc")]
    assert (cut.texts, cut.longest) == (1, 8)
    assert one(Example("", "ab", "cdef"), max_length=5).labels == [IGNORED] * 3 + ids("cd")


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(DataError, match=r"f:3: the prompt alone has 5 tokens.*sft.max_length = 5"):
        one(Example("f:3", "abcd", "ef"), max_length=5)
    assert one(Example("f:3", "abcd", "ef"), max_length=6).learned == 1
    assert one(Example("f:3", "abcd", "ef"), max_length=5, everything=True).learned == 4
    with pytest.raises(DataError, match=r"t:1: before the assistant's first answer there are 8 tokens.*sft.max_length = 8"):
        talked(talk("ab", "cd"), max_length=8)


def test_a_text_of_one_token_is_refused() -> None:
    tokenizer = tiny_tokenizer(bos=False)
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="f:1: 1 tokens in this model's vocabulary: there is nothing to learn"):
        encode([Example("f:1", "a")], Tokens(tokenizer), everything=True, max_length=9)


def test_a_template_that_rewrites_what_was_said_is_refused() -> None:
    only_last = TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'] if loop.last or m['role'] == 'user' else 'x' }}")
    with pytest.raises(DataError, match=r"t:1: the chat template writes a turn differently when others follow"):
        talked(talk("ab", "cd", "ef", "gh"), template=only_last)
    assert talked(talk("ab", "cd", "ef", "gh"), template=only_last, everything=True).learned > 10
    assert talked(talk("ab", "cd"), template=only_last).learned == 3


def test_a_template_that_refuses() -> None:
    strict = "{{ raise_exception('no users') }}"
    with pytest.raises(DataError, match=r"t:1: the chat template refuses these messages: no users"):
        talked(talk("ab", "cd"), template=strict)


# -- tokens over the seam ----------------------------------------------------------------------------------------------


def merging_tokenizer() -> Any:
    """Characters, and one token for "bc"; a space of SentencePiece in front of every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"▁": 0, "a": 1, "b": 2, "c": 3, "bc": 4, "<eos>": 5}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("b", "c")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def test_a_completion_goes_on_from_the_tokens_of_its_prompt() -> None:
    tokens = Tokens(merging_tokenizer())
    assert tokens.encode("abc") == [0, 1, 4]
    assert tokens.parts(["a", "bc"]) == [[0, 1], [4]]
    # together "bc" would be one token, which no prompt "ab" ends with; and no space comes between
    assert tokens.parts(["ab", "c"]) == [[0, 1, 2], [3]]
    assert tokens.parts(["ab", " c"]) == [[0, 1, 2], [0, 3]]
    assert tokens.decode([0, 1, 2, 3]) == "abc"


# -- several in a row --------------------------------------------------------------------------------------------------


def rows_of(*lengths: int) -> list[Row]:
    return [Row([n] * n, [IGNORED] + [n] * (n - 1), list(range(n))) for n in lengths]


def test_packing_keeps_each_text_whole_and_once() -> None:
    rows = rows_of(3, 7, 2, 5, 4, 9, 1, 6, 3)
    packed = pack(rows, 10)
    assert all(len(row.ids) <= 10 for row in packed)
    assert len(packed) == 4  # 40 tokens
    texts = []
    for row in packed:
        starts = [n for n, position in enumerate(row.positions) if position == 0]
        for start, end in zip(starts, [*starts[1:], len(row.ids)], strict=True):
            texts.append(Row(row.ids[start:end], row.labels[start:end], row.positions[start:end]))
    assert sorted(texts, key=lambda row: len(row.ids)) == sorted(rows, key=lambda row: len(row.ids))


def test_a_row_that_is_full_alone_stays_alone() -> None:
    assert [len(row.ids) for row in pack(rows_of(10, 10, 1), 10)] == [10, 10, 1]


def test_batches_are_padded_on_the_right_and_padding_does_not_count() -> None:
    batch = Collator(EOS_ID, packing=True)(rows_of(3, 2))
    assert batch["input_ids"].tolist() == [[3, 3, 3], [2, 2, EOS_ID]]
    assert batch["labels"].tolist() == [[IGNORED, 3, 3], [IGNORED, 2, IGNORED]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 1, 0]]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    assert set(Collator(EOS_ID, packing=False)(rows_of(3))) == {"input_ids", "labels"}
