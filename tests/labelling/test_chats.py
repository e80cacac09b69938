"""Conversations of raters with a model: turns, what is chosen, and that nobody else is shown them."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import konomi, lines_of
from konomi.data.formats import read_comparisons
from konomi.data.records import Candidate, Ranking
from konomi.errors import DataError
from konomi.labelling.answers import collect, comparisons, save
from konomi.labelling.assignments import next_task, progress_of
from konomi.labelling.chats import add_turn, last_turn, next_messages, turn
from konomi.labelling.database import Store
from konomi.labelling.people import add_person, forget
from konomi.labelling.project import create_project, open_project, provide
from konomi.labelling.queue import Settings
from konomi.labelling.records import ChatOptions, Person
from people_at_work import NOW, answer_to, refused, tasks

MODEL = "lab/tsubaki-chat"
TWO = [Candidate(text, {"model": MODEL, "stream": n}) for n, text in enumerate(("Hello", "Hi there"))]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    options, settings = ChatOptions(model=MODEL, system="Be kind."), Settings(overlap=1.0, repeats=0.0)
    made, imported = create_project(Path("talks"), None, settings=settings, chat=options, models=[MODEL])
    assert (imported.added, open_project(Path("talks")).chat) == (0, options)
    assert "モデルにメッセージを送り" in made.guidelines() and "Write to the model" in made.guidelines()
    with pytest.raises(DataError, match="talks: its raters talk with a model; candidates need a project of their own"):
        provide(Path("talks"), tasks(1))
    told = konomi("label", "talks", "--chat", "other", code=2).stderr
    assert '--chat: talks is there already; the model is "chat" in its project.json' in told
    return made.store()


def ask(store: Store, person: Person, text: str, after: str | None = None, answers: list[Candidate] = TWO) -> str:
    return add_turn(store, person, next_messages(store, person, after, text, "Be kind."), answers, NOW)


def contents(messages: object) -> list[str]:
    assert isinstance(messages, list)
    return [each["content"] for each in messages]


def test_a_conversation_goes_on_with_what_was_chosen(store: Store) -> None:
    aki, ben = (add_person(store, name)[0] for name in ("Aki", "Ben"))
    assert last_turn(store, aki) is None
    assert (progress_of(store, aki, NOW).team, progress_of(store, aki, NOW).target) == (0, 0)
    first = turn(store, aki, ask(store, aki, "Hey"))
    assert first == last_turn(store, aki)
    assert (contents(first.before), first.after) == (["Be kind.", "Hey"], None)
    assert first.shown.prompt == "System: Be kind.\n\nUser: Hey"
    # it is of that person alone
    assert next_task(store, ben, NOW) is None and last_turn(store, ben) is None
    with refused("unknown_task", "no conversation .* of p-.*"):
        turn(store, ben, first.shown.id)
    with refused("chat_open", "a turn waits for a choice"):
        ask(store, aki, "And?", first.shown.id)
    hello = next(each for each in first.shown.texts if each.text == "Hello")
    ranks = {each.key: 1 if each == hello else 2 for each in first.shown.texts}
    save(store, aki, answer_to(first.shown, ranks=ranks), NOW)
    assert contents(turn(store, aki, first.shown.id).after) == ["Be kind.", "Hey", "Hello"]
    # none is good: it goes on from before that message; a tie goes on with the first that was shown
    second = turn(store, aki, ask(store, aki, "And?", first.shown.id))
    assert contents(second.before) == ["Be kind.", "Hey", "Hello", "And?"]
    save(store, aki, answer_to(second.shown, kind="all_bad", ranks={}), NOW)
    assert contents(turn(store, aki, second.shown.id).after) == ["Be kind.", "Hey", "Hello"]
    third = turn(store, aki, ask(store, aki, "So?", second.shown.id))
    save(store, aki, answer_to(third.shown, (1, 1)), NOW)
    assert contents(turn(store, aki, third.shown.id).after)[-2:] == ["So?", third.shown.texts[0].text]
    again = turn(store, aki, ask(store, aki, "Hey"))  # the same talk anew is another turn
    assert again.shown.id != first.shown.id
    assert (comparisons(store), progress_of(store, aki, NOW).mine) == (1, 3)
    assert next_task(store, ben, NOW) is None
    konomi("export", "talks", "--out", "out", code=0)
    ranked = [each for each in read_comparisons("out/rankings.jsonl") if isinstance(each, Ranking)]
    assert [contents(each.messages) for each in ranked] == [contents(first.before), contents(third.before)]
    assert ranked[0].responses == ("Hello", "Hi there") and ranked[0].ranks == (1, 2) and ranked[0].rater == aki.id
    assert {each["task"] for each in lines_of(Path("out/answers.jsonl"))} == {"chat"}


def test_messages_that_are_not_taken(store: Store) -> None:
    aki = add_person(store, "Aki")[0]
    for text in (" \n", "x" * 4001):
        with refused("bad_message", "a message of .* characters: some are needed, 4,000 are allowed"):
            ask(store, aki, text)
    with refused("unknown_task", "no conversation 'x' .*"):
        ask(store, aki, "Hey", "x")
    with refused("chat_same", "the answers are the same"):
        ask(store, aki, "Hey", answers=[Candidate("a "), Candidate("a")])
    messages = next_messages(store, aki, None, "Hey", None)
    ask(store, aki, "Hey")  # in another window, while the model answered
    with refused("chat_open", "a turn waits for a choice"):
        add_turn(store, aki, messages, TWO, NOW)
    assert len(collect(store).items) == 1
    store.freeze()
    with refused("frozen", "the collection is closed: .*"):
        ask(store, aki, "Hey")
    with refused("frozen", "the collection is closed: .*"):
        add_turn(store, aki, messages, TWO, NOW)


def test_forget_removes_what_a_person_wrote(store: Store) -> None:
    aki, ben = (add_person(store, name)[0] for name in ("Aki", "Ben"))
    for person, text in ((aki, "the secret of Aki"), (ben, "of Ben")):
        save(store, person, answer_to(turn(store, person, ask(store, person, text)).shown), NOW)
    ask(store, aki, "another secret")
    forget(store, "Aki")
    assert [item.prompt for item in collect(store).items.values()] == ["System: Be kind.\n\nUser: of Ben"]
    store.close()
    assert b"secret" not in Path("talks/labels.sqlite3").read_bytes()


def test_a_text_that_names_the_model_is_flagged(store: Store) -> None:
    aki = add_person(store, "Aki")[0]
    shown = turn(store, aki, ask(store, aki, "Who?", answers=[Candidate("I am tsubaki-chat."), Candidate("Me.")])).shown
    assert {each.text: each.flags for each in shown.texts} == {"I am tsubaki-chat.": ("reveals",), "Me.": ()}
