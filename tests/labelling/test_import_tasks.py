"""Tasks as they are imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from konomi.data.records import Candidate, Task
from konomi.errors import DataError
from konomi.labelling.answers import collect
from konomi.labelling.assignments import next_task
from konomi.labelling.database import Store
from konomi.labelling.import_tasks import add_tasks, create_store, language_of, model_names, names_a_model, prepare
from konomi.labelling.people import add_person
from konomi.labelling.queue import Settings
from konomi.labelling.records import NewTask
from people_at_work import NOW, store_of, tasks, work


def task(*texts: str, prompt: str = "p", **more: Any) -> NewTask:
    return NewTask(prompt, tuple(Candidate(text) for text in texts), **more)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no tasks: there is nothing to label; konomi sample makes a file of candidates"),
        ([task("a", "b"), task("a")], "task 2: 1 candidate; at least two are needed to compare: draw more, or remove it"),
        ([task(*"abcdefghij")], "task 1: 10 candidates; up to 9 can be ranked at once: split it into several tasks"),
        ([task("a", "b", prompt=" \n")], "task 1: the prompt is blank; remove the row or write a text"),
        ([task("a", "b\ud800")], r"task 1: candidate 2 has half a character \(a surrogate\) at position 1"),
        ([task("a", "b", kind="best")], "task 1: kind 'best'; one of rank, compare, same, chat is needed"),
        ([task("a", "b", lang='ja" onclick="')], """task 1: lang 'ja" onclick="'; a tag such as ja or en-GB is needed"""),
        ([task("a", "b", columns={"x": object()})], "task 1: columns cannot be kept as JSON: .*"),
        ([task("a", "a "), task("b", "b", "b")], "no task is left: all 2 have fewer than two different texts; draw others"),
    ],
)
def test_tasks_that_cannot_be_used_are_refused_and_nothing_is_imported(
    given: list[NewTask], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=f"^{message}$"):
        create_store(tmp_path / "labels.sqlite3", given, Settings())
    assert list(tmp_path.iterdir()) == []
    store = store_of(tmp_path, 2)
    with pytest.raises(DataError, match=f"^{message}$"):
        add_tasks(store, given)
    assert len(collect(store).items) == 2


def test_the_same_text_is_never_there_twice(tmp_path: Path) -> None:
    texts = ["caf\u00e9\r\nx", "b", " cafe\u0301\nx\n", "c", "b"]
    store, imported = create_store(tmp_path / "l.sqlite3", [task(*texts), task("same", "same ")], Settings(repeats=0))
    assert imported.added == 1
    assert imported.notes == (
        "task 1: candidate 3 is the same text as candidate 1; it was left out",
        "task 1: candidate 5 is the same text as candidate 2; it was left out",
        "task 2: candidate 2 is the same text as candidate 1; it was left out",
        "task 2: all candidates are the same text; the task was left out",
    )
    (shown,) = work(store, add_person(store, "a")[0])
    assert {text.text for text in shown.texts} == {"caf\u00e9\r\nx", "b", "c"}


def test_tasks_that_are_there_already_are_not_added_again(tmp_path: Path) -> None:
    store, imported = create_store(tmp_path / "l.sqlite3", [*tasks(3), *tasks(2)], Settings())
    assert (imported.added, imported.known) == (3, 2)
    person = add_person(store, "a")[0]
    work(store, person, limit=2)
    imported = add_tasks(store, tasks(5))
    assert (imported.added, imported.known) == (2, 3)
    assert len(collect(store).judgements) == 2
    assert {shown.prompt for shown in work(store, person)} <= {f"prompt {n}" for n in range(5)}
    # another order is the same task, another kind is not
    again = NewTask("prompt 0", tasks(1)[0].candidates[::-1])
    assert add_tasks(store, [again]).added == 0
    assert add_tasks(store, [NewTask(again.prompt, again.candidates, kind="compare")]).added == 1


def test_a_task_of_a_file_comes_out_as_it_went_in(tmp_path: Path) -> None:
    of_file = Task(
        "今日は", (Candidate("晴れ", {"model": "m", "seed": 3}), Candidate("", {"temperature": 0.5})), {"topic": ["w"]}
    )
    store, _ = create_store(tmp_path / "l.sqlite3", [NewTask.of(of_file)], Settings())
    (item,) = collect(store).items.values()
    assert Task(item.prompt, item.candidates, item.columns) == of_file


def test_up_to_nine_candidates_and_as_few_as_the_settings_say(tmp_path: Path) -> None:
    store = create_store(tmp_path / "l.sqlite3", [task(*"abcdefghi")], Settings())[0]
    shown = next_task(store, add_person(store, "a")[0], NOW)
    assert shown is not None
    assert [text.key for text in shown.texts] == [*"abcdefghi"]
    with pytest.raises(DataError, match="up to 4 can be ranked"):
        prepare([task(*"abcde")], 4)


def test_languages(tmp_path: Path) -> None:
    guessed = [language_of(text) for text in ("晴れ", "ﾊﾝｶｸ", "カタカナ", "Tokyo", "", "123", "𠮷")]
    assert guessed == ["ja", "ja", "ja", "en", "en", "en", "ja"]
    store, _ = create_store(
        tmp_path / "l.sqlite3",
        [task("晴れ", "sunny", "123", prompt="今日は"), task("晴れ", "sunny", prompt="q", lang="de")],
        Settings(),
    )
    first, second = collect(store).items.values()
    assert (first.lang, first.langs) == ("ja", ("ja", "en", "ja"))  # what has no letters: as the prompt
    assert (second.lang, second.langs) == ("de", ("de", "de"))
    shown = work(store, add_person(store, "a")[0])
    assert {(text.text, text.lang) for each in shown if each.lang == "ja" for text in each.texts} == {
        *(("晴れ", "ja"), ("sunny", "en"), ("123", "ja"))
    }


@pytest.mark.parametrize(
    "text",
    [
        *("As an AI language model, I cannot", "I'm an AI assistant", "I’m a large language model", "私はAI言語モデルです。"),
        *(
            "AIとしてお答えします",
            "これはGPT-4の答え",
            "ＣｈａｔＧＰＴです",
            "G\u200bP\u200bT",
            "ask Claude 3 about it",
            "gemma3 wrote this",
            "I was made by Claude, ask me",
            "Llama-Instruct says no",
            "I am Llama. Hello",
            "Gemini is a model",
            "僕はクロードではなくGrokです",
            "G\ufe0fP\ufe0fT is not seen",
        ),
        *("made by OpenAI", "ぼくはGeminiだよ", "our-lab-7b says hello", "言語モデルとして", "AIアシスタントです"),
    ],
)
def test_texts_that_name_a_model(text: str) -> None:
    assert names_a_model(text, ["our-lab-7b"])


@pytest.mark.parametrize(
    "text",
    [
        *("The weather is fine", "今日は晴れ", "", "He was a model citizen", "Claudette sang", "egpt", "店のアシスタントです"),
        *("a base after all", "our-lab-7bx", "MAIとして", "as a model"),
        *("Claude Monet painted it", "a painting by Claude Monet", "the llama ate", "the Gemini constellation", "I grok it"),
        *("Swallow it. I am here", "空にはGeminiの星"),
    ],
)
def test_texts_that_name_none(text: str) -> None:
    assert not names_a_model(text, ["our-lab-7b"])


def test_names_come_from_the_sources_too() -> None:
    models = ["org/Our-LM_7b", "runs/ppo/model", "m", "before", "embedded:nice-lm", 7, None]
    names = model_names(models)
    assert names == ("org/Our-LM_7b", "Our-LM_7b", "runs/ppo/model", "embedded:nice-lm", "nice-lm")


def test_names_are_remembered_and_may_be_handed_in(tmp_path: Path) -> None:
    first = NewTask("p", (Candidate("fine", {"model": "lab/Nice-LM"}), Candidate("own-lm wrote")))
    store, _ = create_store(tmp_path / "l.sqlite3", [first], Settings(repeats=0), ["me/Own-LM"])
    store.close()
    with Store(tmp_path / "l.sqlite3", Settings()) as store:  # later, with texts from elsewhere
        add_tasks(store, [NewTask("q", (Candidate("by nice-lm", {"model": "other"}), Candidate("own-lm")))])
        assert [item.names_model for item in collect(store).items.values()] == [(False, True), (True, True)]


def test_a_text_that_names_a_model_of_any_task_is_flagged_beforehand(tmp_path: Path) -> None:
    both = [
        NewTask("p", (Candidate("fine", {"model": "lab/Nice-LM"}), Candidate("I am gpt", {"model": "x"}))),
        NewTask("q", (Candidate("the nice-lm way"), Candidate("NICE"))),
    ]
    store, _ = create_store(tmp_path / "l.sqlite3", both, Settings(repeats=0))
    shown = work(store, add_person(store, "a")[0])
    flags = {text.text: text.flags for each in shown for text in each.texts}
    assert flags == {"fine": (), "I am gpt": ("reveals",), "the nice-lm way": ("reveals",), "NICE": ()}
    assert [item.names_model for item in collect(store).items.values()] == [(False, True), (True, False)]
