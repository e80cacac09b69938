"""Texts as rows of tokens: which of them count, where they end, several in a row, batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from konomi.data.chat import template_render
from konomi.data.examples import Example
from konomi.data.tokens import Tokens
from konomi.errors import DataError
from konomi.training.texts import IGNORED, Collator, Cut, Row, encode, pack, turns
from tiny import EOS_ID, tiny_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'][0] }} {{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}a {% endif %}"
)
"""u hello<eos>a world<eos>"""
ONLY_LAST = TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'] if loop.last or m['role'] == 'user' else 'x' }}")
"""Writes another text of the assistant where more follows."""


def encoded(
    example: Example, *, everything: bool = False, max_length: int = 99, template: str = TEMPLATE, eos: bool = True,
    bos: bool = True,
) -> tuple[Row, Cut]:  # fmt: skip
    tokenizer = tiny_tokenizer(bos=bos)
    tokenizer.chat_template = template
    tokenizer.eos_token = tokenizer.eos_token if eos else None
    render = template_render(tokenizer) if example.messages else None
    (row,), cut = encode([example], Tokens(tokenizer), everything=everything, max_length=max_length, render=render)
    return row, cut


def shown(ids: list[int]) -> str:
    """Ids as letters, ^ for the beginning, $ for the end of text, - for what does not count."""
    return "".join({IGNORED: "-", 0: "^", 1: "$", 28: " "}.get(i) or chr(i - 2 + ord("a")) for i in ids)


def talk(*contents: str) -> Example:
    roles = ["user", "assistant"] * len(contents)
    messages = tuple({"role": role, "content": text} for role, text in zip(roles, contents, strict=False))
    return Example("t:1", messages=messages)


# -- what counts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("example", "settings", "ids", "labels"),
    [
        (Example("", "abc"), {}, "^abc$", "-abc$"),
        (Example("", "abc"), {"bos": False}, "abc$", "-bc$"),
        (Example("", "ab"), {"eos": False}, "^ab", "-ab"),
        (Example("", "ab", "cd"), {}, "^abcd$", "---cd$"),
        (Example("", "ab", "cd"), {"everything": True}, "^abcd$", "-abcd$"),
        (Example("", "ab<eos>"), {}, "^ab$", "-ab$"),  # it ends already
        (Example("", "a<eos>bc"), {}, "^a$bc$", "-a$bc$"),
        (talk("ab", "cd", "ef", "gh"), {}, "^u ab$a cd$u ef$a gh$", "--------cd$-------gh$"),
        (talk("ab", "cd"), {"everything": True}, "^u ab$a cd$", "-u ab$a cd$"),
        (talk("ab", "cd", "ef"), {}, "^u ab$a cd$u ef$a ", "--------cd$-------"),  # it ends with a question
        (talk("ab", "cd", "ef"), {"everything": True}, "^u ab$a cd$u ef$a ", "-u ab$a cd$u ef$a "),
        (talk("ab", "cd"), {"template": TEMPLATE.replace("{{ eos_token }}", " ")}, "^u ab a cd $", "--------cd $"),
        (talk("ab", "cd"), {"template": TEMPLATE.replace("eos_token }}", "eos_token }} ")}, "^u ab$ a cd$ ", "---------cd$ "),
        (talk("ab", "cd"), {"template": ONLY_LAST}, "^u ab$a cd$", "--------cd$"),
        (Example("", "abcdef"), {"max_length": 4}, "^abc", "-abc"),  # what is cut has no end
        (Example("", "ab", "cdef"), {"max_length": 5}, "^abcd", "---cd"),
        (Example("", "abcd", "ef"), {"max_length": 6}, "^abcde", "-----e"),
        (Example("", "abcd", "ef"), {"max_length": 5, "everything": True}, "^abcd", "-abcd"),
    ],
)  # fmt: skip
def test_what_is_learned_of_a_text(example: Example, settings: dict[str, Any], ids: str, labels: str) -> None:
    row, cut = encoded(example, **settings)
    assert (shown(row.ids), shown(row.labels)) == (ids, labels)
    assert row.positions == list(range(len(ids)))
    assert row.learned == len(labels) - labels.count("-")
    assert cut.texts == ("max_length" in settings) and cut.longest == (8 if cut.texts else len(ids))


@pytest.mark.parametrize(
    ("example", "settings", "message"),
    [
        (Example("f:3", "abcd", "ef"), {"max_length": 5}, r"f:3: the prompt alone has 5 tokens.*sft.max_length = 5"),
        (talk("ab", "cd"), {"max_length": 8}, r"t:1: before the assistant's first answer there are 8 tokens.*sft.max_length = 8"),
        (Example("f:1", "a"), {"bos": False, "eos": False},
         "f:1: 1 tokens in this model's vocabulary: there is nothing to learn"),
        (talk("ab", "cd"), {"template": "{{ messages | length }}{{ messages[0].content }}"},
         "t:1: the chat template writes a question differently when its answer follows"),
        (talk("ab", "cd"), {"template": "{{ raise_exception('no users') }}"},
         "t:1: the chat template refuses these messages: no users"),
    ],
)  # fmt: skip
def test_what_is_refused(example: Example, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        encoded(example, **settings)


def test_the_parts_of_a_conversation_are_its_rendering() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    example, render = talk("ab", "cd", "ef"), template_render(tokenizer)
    (parts,) = turns(example.messages, render)
    assert "".join(text for text, _ in parts) == render(example.messages)
    assert [learned for _, learned in parts] == [False, True, False]
    assert encoded(talk("ab", "cd", "ef", "gh"), template=ONLY_LAST, everything=True)[0].learned > 10


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
    assert all(len(row.ids) <= 10 for row in packed) and len(packed) == 4  # 40 tokens
    texts = []
    for row in packed:
        starts = [n for n, position in enumerate(row.positions) if position == 0]
        for start, end in zip(starts, [*starts[1:], len(row.ids)], strict=True):
            texts.append(Row(row.ids[start:end], row.labels[start:end], row.positions[start:end]))
    assert sorted(texts, key=lambda row: len(row.ids)) == sorted(rows, key=lambda row: len(row.ids))
    assert [len(row.ids) for row in pack(rows_of(10, 10, 1), 10)] == [10, 10, 1]


def test_batches_are_padded_on_the_right_and_padding_does_not_count() -> None:
    batch = Collator(EOS_ID, packing=True)(rows_of(3, 2))
    assert batch["input_ids"].tolist() == [[3, 3, 3], [2, 2, EOS_ID]]
    assert batch["labels"].tolist() == [[IGNORED, 3, 3], [IGNORED, 2, IGNORED]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 1, 0]]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    assert set(Collator(EOS_ID, packing=False)(rows_of(3))) == {"input_ids", "labels"}
