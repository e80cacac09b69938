"""How much of a text a reward model or classifier reads, and what is said of the rest."""

from __future__ import annotations

from typing import Any

import pytest

from konomi.data.messages import Answered, Conversation
from konomi.errors import ConfigError, ModelError
from konomi.models.reader import Reader, check_room
from tiny import tiny_model, tiny_tokenizer


def reader(limit: int, side: str = "right", **settings: Any) -> Reader:
    tokenizer = tiny_tokenizer()
    tokenizer.truncation_side = side
    return Reader(tokenizer, tiny_model("gpt2"), limit, "rm", **settings)


def room(made: Reader, prompts: list[str], response: int) -> list[str]:
    """The warnings."""
    said: list[str] = []
    check_room([made], prompts, response, said.append)
    return said


def test_long_texts_are_cut_on_the_side_that_is_told_and_counted() -> None:
    for side, row, name in (("right", [0, 2, 3], "end"), ("left", [0, 4, 5], "beginning")):
        made, said = reader(3, side), []
        assert made.encode(["ab", "abcd", ""]) == [[0, 2, 3], row, [0]]
        assert (made.side, made.texts, made.cut, made.longest) == (name, 3, 1, 5)
        made.warn(said.append)
        assert said == [
            f"rm: it reads 3 tokens of a text, and of a longer one not the {name}: 1 of 3 texts are cut, the longest has 5 tokens"
        ]
    made = reader(500)
    assert made.max_length == 128  # the places that the model has
    made.encode(["a" * 127])
    made.warn(lambda message: pytest.fail(message))


def test_a_prompt_that_leaves_no_room_is_refused_where_the_end_is_cut_and_one_that_may_is_told() -> None:
    assert room(reader(8), ["abc", "ab"], 4) == []
    (said,) = room(reader(8), ["abc", "abcd", "abcdef"], 4)
    assert "a response of up to 4 tokens, 2 of 3 prompts may be over that (the longest has 7)" in said
    with pytest.raises(
        ConfigError, match=r"rm: it reads 8 tokens.*; 1 of 2 prompts are that long by themselves \(the longest has 8\)"
    ):
        room(reader(8), ["a", "abcdefg"], 1)
    assert len(room(reader(8, "left"), ["abcdefgh"], 1)) == 1
    assert room(reader(8, reads_prompt=False), ["abcdefgh"], 7) == []
    assert "responses of up to 8 tokens may be longer" in room(reader(8, reads_prompt=False), ["abcdefgh"], 8)[0]


def test_the_tokens_of_a_response_are_those_behind_its_prompt() -> None:
    talk = Conversation([{"role": "user", "content": "hi"}])
    made = reader(6, "left")
    texts = [Answered("ab", "cde"), Answered("abcdefgh", "ij"), Answered("ab", ""), "abc"]
    assert made.response_lengths(texts) == [3, 2, 0, 3]
    assert made.response_lengths([]) == []
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<eos>{% endfor %}"
    chat = Reader(tokenizer, tiny_model("gpt2"), 64, "rm", chat=True)
    assert chat.response_lengths([Answered("hi", "you", talk), Answered("hi", "you")]) == [4, 4]  # with the end of the turn


def test_a_token_that_the_model_has_no_embedding_for_is_refused() -> None:
    made = reader(8)
    made.tokenizer.add_tokens(["<new>"])
    for call in (made.encode, made.lengths):
        with pytest.raises(ModelError, match=r"'a<new>' has the token '<new>' \(id 29\)"):
            call(["a", "a<new>"])
    padded = tiny_tokenizer()
    padded.add_special_tokens({"pad_token": "<pad>"})
    assert Reader(padded, tiny_model("gpt2"), 8).pad_id == padded.eos_token_id
