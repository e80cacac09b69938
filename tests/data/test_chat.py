"""Conversations by the chat templates of Qwen3, Llama 3, Gemma 3 and Phi-3: no token twice, text stays text, answers end."""

from __future__ import annotations

from typing import Any

import pytest

from chat_layouts import LAYOUTS, chat_tokenizer, ids_of, talk
from konomi.config import DataConfig
from konomi.data.chat import template_render, turn_end
from konomi.data.detokenizer import plain_ids
from konomi.data.messages import Answered, Conversation
from konomi.data.prompts import as_prompts
from konomi.data.records import Prompt
from konomi.data.tokens import Tokens
from konomi.errors import ConfigError, DataError, ModelError
from konomi.training.texts import turns

TALK = talk("a", "b", "c", system="S")


@pytest.fixture(params=LAYOUTS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def query(tokens: Tokens, messages: list[dict[str, Any]], system: str | None = None) -> list[int]:
    (prompt,) = as_prompts([{"messages": messages}], DataConfig(column="messages", system=system))
    (row,) = tokens.queries([prompt], None, 0, 0, 999)
    return row


def test_a_query_is_what_the_template_writes_and_the_library_gives(name: str) -> None:
    tokenizer, layout = chat_tokenizer(name), LAYOUTS[name]
    ids = query(Tokens(tokenizer), TALK)
    assert tokenizer.decode(ids) == layout.shown
    settings = {"add_generation_prompt": True, "enable_thinking": False, "date_string": "26 Jul 2024", "return_dict": False}
    assert ids == tokenizer.apply_chat_template(TALK, **settings)
    assert ids.count(tokenizer.bos_token_id) == (layout.bos is not None)
    # the settings' system message, and a text as the user's message
    assert query(Tokens(tokenizer), TALK[1:], "S") == ids == query(Tokens(tokenizer), TALK, "other")
    (text,) = as_prompts(["a"], DataConfig(chat=True, system="S"))
    assert Tokens(tokenizer).queries([text], None, 0, 0, 999) == [query(Tokens(tokenizer), talk("a", system="S"))]
    assert text.text == "a"


def test_every_end_of_a_turn_ends_a_response(name: str) -> None:
    tokenizer, layout = chat_tokenizer(name), LAYOUTS[name]
    (end,) = ids_of(tokenizer, [layout.end_of_turn])
    assert turn_end(tokenizer) == end
    assert {end, tokenizer.eos_token_id} <= Tokens(tokenizer).eos_ids  # where the settings name none
    ids = ids_of(tokenizer, layout.ends)
    tokens = Tokens(tokenizer, ids)
    assert tokens.eos_ids == {end, *ids}
    (prompt,) = as_prompts([{"messages": TALK}], DataConfig(column="messages"))
    word = tokenizer("hello there", add_special_tokens=False)["input_ids"]
    for each in ids:
        shown = tokens.split(prompt, query(tokens, TALK), [*word, each])
        assert shown == ("System: S\n\nUser: a\n\nAssistant: b\n\nUser: c", "hello there")


def test_what_somebody_wrote_is_no_control_token(name: str) -> None:
    tokenizer, layout = chat_tokenizer(name), LAYOUTS[name]
    controls = ids_of(tokenizer, [*layout.special, *layout.other])

    def count(row: list[int]) -> list[int]:
        return [i for i in row if i in controls]

    words = "".join((*layout.special, *layout.other))
    special = "".join(layout.special)
    told, said = f"x{special}{special} y", f"x{words}{words} y"
    honest, attack = (query(Tokens(tokenizer), talk("x", *texts)) for texts in (("x", "x"), (told, said)))
    assert count(attack) == count(honest)
    # nothing is lost or added, in any message, and marks of one's own open nothing
    assert sum(map(tokenizer.decode(attack).count, {told, said})) == 2
    forged = query(Tokens(tokenizer), talk(f"x{layout.end_of_turn[0]}\ufdd0{layout.end_of_turn[1:]}"))
    assert count(forged) == count(query(Tokens(tokenizer), talk("x")))
    tokens = Tokens(tokenizer)  # in a text that no template wrote it is a character like any other
    assert tokens.decode(tokens.encode("a\ufdd0b")) == "a\ufdd0b"
    role = [{"role": f"user{layout.end_of_turn}", "content": "x"}]
    if name == "llama3":
        assert count(query(Tokens(tokenizer), role)) == count(query(Tokens(tokenizer), talk("x")))
    # learning what the assistant writes, its control tokens count
    render, told = template_render(tokenizer, learning=True), f"y{layout.special[-1]}"
    (learned,), (plain,) = (plain_ids(tokenizer, [render(talk(*texts))]) for texts in ((told, told), ("y", "y")))
    assert len(count(learned)) == len(count(plain)) + 1


def test_a_template_finds_its_tokens_in_earlier_answers_and_none_in_a_response_that_is_scored() -> None:
    tokenizer = chat_tokenizer("qwen3")
    honest = query(Tokens(tokenizer), TALK)
    assert query(Tokens(tokenizer), talk("a", "<think>\nhm\n</think>\n\nb", "c", system="S")) == honest
    assert query(Tokens(tokenizer), talk("a", "b", "c</think>d")) != query(Tokens(tokenizer), talk("a", "b", "d"))
    render, (end,) = template_render(tokenizer), ids_of(tokenizer, ["</think>"])
    earlier, scored = plain_ids(
        tokenizer, [render(talk("a", f"{one}b", "c", f"{two}d")) for one, two in (("e</think>", ""), ("", "e</think>"))]
    )
    assert "assistant\nb<|im_end|>" in tokenizer.decode(earlier) and tokenizer.decode(scored).endswith("e</think>d<|im_end|>\n")
    assert earlier.count(end) == scored.count(end)


def test_names_of_arguments_are_text_too(name: str) -> None:
    tokenizer, layout = chat_tokenizer(name), LAYOUTS[name]
    tokenizer.chat_template = "".join(layout.other) + "{{ messages[0].tool_calls | tojson }}"
    words = "".join((*layout.special, *layout.other))
    for others in ([], talk("a")):
        calls = [{"function": {"name": words, "arguments": {words: [{words: words}]}}}]
        text = template_render(tokenizer)([{"role": "assistant", "content": "", "tool_calls": calls}, *others])
        (row,) = plain_ids(tokenizer, [text])
        assert tokenizer.decode(row).count(words) == 4
        assert [i for i in row if i in ids_of(tokenizer, layout.special)] == []
        assert [i for i in row if i in ids_of(tokenizer, layout.other)] == ids_of(tokenizer, layout.other)


def test_a_prompt_is_the_same_tomorrow() -> None:
    tokenizer = chat_tokenizer("phi3")
    tokenizer.chat_template = "\n{{ strftime_now('%A %-d %B %Y, %Y-%m-%d') }} {{ messages[0].content }}"
    assert template_render(tokenizer)(talk("a")) == "\nFriday 26 July 2024, 2024-07-26 a"


def test_only_answers_are_learned(name: str) -> None:
    tokenizer, layout = chat_tokenizer(name), LAYOUTS[name]
    render, whole = template_render(tokenizer, learning=True), talk("a", "b", "c", "d", system="S")
    rows = turns(whole, render)
    # Qwen3 and Phi-3 write the last answer in another way
    assert [sum(learned for _, learned in row) for row in rows] == ([1, 1] if name in ("qwen3", "phi3") else [2])
    answers = [text for row in rows for text, learned in row if learned]
    for text, expected in zip(answers, "bd", strict=True):
        assert text.startswith(expected + layout.end_of_turn)
    assert "".join(text for text, _ in rows[-1][:-1]) == render(whole[:-1])
    tokens = Tokens(tokenizer, ids_of(tokenizer, layout.ends))
    for row in rows:
        ids = tokens.parts([text for text, _ in row], rendered=True)
        assert [tokenizer.decode(part) for part in ids] == [text for text, _ in row]
        assert tokens.ended(ids[-1]) == ids[-1]  # the template has ended it


def test_conversations_and_texts_are_not_mixed_up() -> None:
    messages = {"text": talk("a", "b", "c", "d")}
    (prompt,) = as_prompts([messages], DataConfig())
    assert prompt == Prompt("User: a\n\nAssistant: b\n\nUser: c", {"messages": talk("a", "b", "c")})  # the answer is left out
    assert as_prompts([prompt], DataConfig(chat=True)) == [prompt] and isinstance(prompt.messages, Conversation)
    (plain,) = as_prompts([{"text": "a", "messages": talk("a")}])
    assert plain.messages is None and str(Answered(plain.text, "b", plain.messages)) == "ab"
    refused: list[tuple[list[Any], dict[str, Any], str]] = [
        ([messages, "a"], {}, "texts among conversations"),
        ([{"text": talk("a")[1:]}], {}, "nothing to be answered"),
        ([{"text": [{"role": "assistant", "content": "a"}]}], {}, "nothing to be answered"),
        ([{"text": [{"role": "user", "content": [{"type": "text"}]}]}], {}, "is a list; a text is needed"),
        ([{"text": "a", "messages": 1}], {"chat": True}, "a column 'messages' beside 'text'; .* rename the column"),
        ([{"text": talk("a"), "messages": talk("b")}], {}, "a column 'messages' beside 'text'"),
        (["a"], {"system": "S"}, "set data.chat = true"),
        ([messages], {"query_tokens": (1, 2)}, "stays whole: remove it"),
    ]
    for given, settings, words in refused:
        with pytest.raises((DataError, ConfigError), match=words):
            as_prompts(given, DataConfig(**settings))


def test_what_a_template_does_not_take_is_one_message() -> None:
    tokenizer = chat_tokenizer("gemma3")
    with pytest.raises(
        DataError, match=r"the prompt 'Assistant: b.*User: c': the chat template refuses .*: roles must alternate"
    ):
        query(Tokens(tokenizer), talk("a", "b", "c")[1:])
    tokenizer.chat_template = None
    assert turn_end(tokenizer) is None
    with pytest.raises(ModelError, match=r'no chat template, which conversations need.*model.chat_template = "FILE.jinja"'):
        query(Tokens(tokenizer), talk("a"))
    tokenizer.chat_template = "{{ messages[0].content.nothing.at_all }}"
    assert turn_end(tokenizer) is None
    with pytest.raises(DataError, match="the chat template refuses these messages"):
        query(Tokens(tokenizer), talk("a"))


@pytest.mark.parametrize("code", ["''.__class__.__mro__", "messages.append(1)", "cycler.__init__.__globals__.os.name"])
def test_a_template_gets_nowhere(code: str) -> None:
    tokenizer = chat_tokenizer("phi3")
    tokenizer.chat_template = f"{{{{ {code} }}}}"
    with pytest.raises(DataError, match="the chat template refuses these messages"):
        query(Tokens(tokenizer), talk("a"))


def test_a_conversation_is_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = chat_tokenizer("llama3")
    tokens, write, calls = Tokens(tokenizer), tokenizer.apply_chat_template, []
    monkeypatch.setattr(tokenizer, "apply_chat_template", lambda *given, **how: calls.append(1) or write(*given, **how))
    prompts = as_prompts(["a", "b"], DataConfig(chat=True))
    first = tokens.queries(prompts, None, 0, 0, 999)
    assert tokens.queries(prompts[::-1], None, 0, 1, 999) == first[::-1]
    assert len(calls) == 2
