"""Answers: what is saved of what people say, and what is refused."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from konomi.errors import DataError
from konomi.labelling.answers import answer_of, collect, comparisons, own_answers, save
from konomi.labelling.assignments import find_shown, next_task, progress_of
from konomi.labelling.database import Store
from konomi.labelling.people import add_person, forget
from konomi.labelling.records import COMMENT_LIMIT, LabelOptions, OwnAnswer, Person, Saved
from people_at_work import NOW, answer_to, refused, skip, store_of, take, work


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return store_of(tmp_path)


@pytest.fixture
def aki(store: Store) -> Person:
    return add_person(store, "Aki")[0]


def test_an_answer_is_saved_once_and_as_it_was_meant(store: Store, aki: Person) -> None:
    shown = take(store, aki)
    assert [text.key for text in shown.texts] == ["a", "b", "c"]
    answer = answer_to(
        shown, (3, 1, 1), flags={"b": ["unsafe", "broken"], "a": []}, comment="  良い \ud800", confidence=2, seconds=12.5
    )
    assert save(store, aki, answer, NOW + 1) == Saved(answer.id, shown.id, 1)
    assert answer_of(store, aki, shown.id) == answer.model_copy(update={"flags": {"b": ["broken", "unsafe"]}})
    exported = collect(store)
    (judgement,) = exported.judgements
    item = exported.items[judgement.task]
    by_text = {text.text: text.key for text in shown.texts}
    keys = [by_text[candidate.text] for candidate in item.candidates]
    assert judgement.ranks is not None
    assert dict(zip(keys, judgement.ranks, strict=True)) == {"a": 3, "b": 1, "c": 1}
    assert dict(zip(keys, judgement.flags, strict=True)) == {"a": (), "b": ("broken", "unsafe"), "c": ()}
    assert [item.candidates[place].text for place in judgement.order] == [text.text for text in shown.texts]
    rest = (judgement.rater, judgement.kind, judgement.repeat, judgement.at, judgement.revision, judgement.seconds)
    assert rest == (aki.id, "ranked", False, NOW + 1, 1, 12.5)
    assert (judgement.comment, judgement.confidence, judgement.reason) == ("  良い \ufffd", 2, None)


def test_how_much_better_and_a_better_text(tmp_path: Path) -> None:
    asked = LabelOptions(strength=True, edit=True)
    with store_of(tmp_path, k=2) as store:
        aki = add_person(store, "Aki")[0]
        shown = take(store, aki)
        edit = {"b": f" {shown.texts[1].text}, better \ud800"}
        for code, message, given in (
            ("bad_strength", "strength 4: 1 .slightly better., 2 or 3 .much better. is needed, or none", {"strength": 4}),
            ("bad_strength", "strength 1: it is of two .*", {"strength": 1, "ranks": {"a": 1, "b": 1}}),
            ("bad_strength", "strength 1: it is of two .*", {"strength": 1, "kind": "all_bad"}),
            (
                "bad_edits",
                "edits: none may be there when skipped",
                {"edits": edit, "kind": "skipped", "ranks": {}, "reason": "x"},
            ),
            ("bad_edits", "an edit of 'c': one of a, b is needed", {"edits": {"c": "x"}}),
            ("bad_edits", "the edit of a is blank: .*", {"edits": {"a": " \n"}}),
            ("bad_edits", "the edit of b is the text itself: .*", {"edits": {"b": f"\r\n{shown.texts[1].text} "}}),
            ("too_long", "the edits have 10,001 characters; 10,000 .*", {"edits": {"a": "x" * 5000, "b": "y" * 5001}}),
        ):
            with refused(code, message):
                save(store, aki, answer_to(shown, **given), NOW, options=asked)
        answer = answer_to(shown, strength=2, edits=edit)
        for plain in ({"strength": 2}, {"edits": edit}):
            with refused(f"bad_{next(iter(plain))}", ".*this project does not ask for .*"):
                save(store, aki, answer_to(shown, **plain), NOW)
        save(store, aki, answer, NOW, options=asked)
        assert save(store, aki, answer, NOW, options=asked).again
        assert answer_of(store, aki, shown.id) == answer
        (judgement,) = collect(store).judgements
        assert judgement.strength == 2
        by_order = [judgement.edits[number] for number in judgement.order]
        assert by_order == [None, edit["b"].replace("\ud800", "\ufffd")]
        save(store, aki, answer_to(shown, kind="all_bad", ranks={}, edits=edit), NOW, options=asked)
        assert comparisons(store) == 0


def test_ranks_are_of_their_texts_in_whatever_order_these_were_shown(tmp_path: Path) -> None:
    with store_of(tmp_path, 20) as store:
        shown = work(store, add_person(store, "Aki")[0])
        exported = collect(store)
    assert len(exported.judgements) == len(shown) >= 20
    for judgement in exported.judgements:
        texts = [candidate.text for candidate in exported.items[judgement.task].candidates]
        assert judgement.ranks == tuple(1 + sorted(texts).index(text) for text in texts)


def test_ranks_are_stored_as_places_with_gaps(store: Store, aki: Person) -> None:
    shown = work(store, aki, 1)[0]
    save(store, aki, answer_to(shown, (1, 1, 2)), NOW)
    assert answer_of(store, aki, shown.id).ranks == {"a": 1, "b": 1, "c": 3}  # type: ignore[union-attr]


def test_a_request_that_comes_again_is_saved_once(store: Store, aki: Person) -> None:
    shown = take(store, aki)
    answer = answer_to(shown, comment="x")
    first = save(store, aki, answer, NOW)
    assert save(store, aki, answer, NOW + 99) == replace(first, again=True)
    assert save(store, aki, answer.model_copy(update={"id": answer.id.upper()}), NOW) == replace(first, again=True)
    with refused("conflict", f"answer {answer.id} was saved with other content; a new answer needs a new id"):
        save(store, aki, answer.model_copy(update={"comment": "y"}), NOW)
    other = take(store, aki)
    with refused("conflict", f"answer {answer.id} was saved with other content; .*"):
        save(store, aki, answer_to(other, id=answer.id), NOW)
    assert [each.comment for each in collect(store).judgements] == ["x"]
    store.freeze()
    assert save(store, aki, answer, NOW).again  # what is saved is acknowledged for ever


def test_revisions_are_kept_and_the_latest_counts(store: Store, aki: Person) -> None:
    first, second = work(store, aki, 2)
    before = progress_of(store, aki, NOW)
    answer = answer_to(first, (2, 1, 3))
    assert save(store, aki, answer, NOW + 50).revision == 2
    assert save(store, aki, skip(first, reason="changed my mind"), NOW + 60).revision == 3
    assert save(store, aki, answer, NOW + 70) == Saved(answer.id, first.id, 2, again=True)
    latest = {each.revision: each for each in collect(store).judgements}
    assert {revision: each.kind for revision, each in latest.items()} == {1: "ranked", 3: "skipped"}
    assert (latest[3].reason, latest[3].at) == ("changed my mind", NOW + 60)
    with store.read() as db:
        kept = db.execute("SELECT revision, kind FROM answers WHERE shown = ? ORDER BY revision", (first.id,)).fetchall()
    assert kept == [(1, "ranked"), (2, "ranked"), (3, "skipped")]
    assert own_answers(store, aki) == [
        OwnAnswer(second.id, second.prompt, NOW + 1, "ranked", 1),
        OwnAnswer(first.id, first.prompt, NOW, "skipped", 3),
    ]
    assert own_answers(store, aki, 1)[0].shown == second.id
    after = progress_of(store, aki, NOW)
    assert (after.mine, after.team) == (before.mine, before.team - 1)


def test_an_answer_over_another_revision_is_refused(store: Store, aki: Person) -> None:
    shown = next_task(store, aki, NOW)
    assert shown is not None and shown.revision == 0
    one, other = answer_to(shown), answer_to(shown, comment="of another window")
    assert save(store, aki, one, NOW, seen=0).revision == 1
    assert save(store, aki, one, NOW, seen=0).again  # a request that comes again is no conflict
    with refused("conflict_revision", "the latest answer is revision 1, and this one was to replace revision 0: .*"):
        save(store, aki, other, NOW, seen=0)
    assert save(store, aki, other, NOW, seen=1).revision == 2


@pytest.mark.parametrize(
    ("code", "given", "message"),
    [
        ("bad_id", {"id": "7"}, "answer id '7': a UUID is needed"),
        ("unknown_task", {"shown": "nothing\ud800"}, "no task 'nothing\ufffd' was shown to p-.*"),
        ("bad_kind", {"kind": "best"}, "kind 'best': one of ranked, all_bad, skipped is needed"),
        ("bad_ranks", {"ranks": {}}, "ranks for none of a, b, c: each needs one when ranked"),
        ("bad_ranks", {"ranks": {"a": 1, "b": 2}}, "ranks for a, b of a, b, c: each needs one when ranked"),
        ("bad_ranks", {"ranks": {"a": 1, "b": 2, "c": 3, "d": 4}}, "ranks for a, b, c, d of a, b, c: each needs one .*"),
        ("bad_ranks", {"ranks": {"a": 1, "b": 0, "c": 3}}, "rank 0: whole numbers from 1, the best, to 3 are needed"),
        ("bad_ranks", {"ranks": {"a": 1, "b": 4, "c": 3}}, "rank 4: whole .*"),
        ("bad_ranks", {"kind": "all_bad", "ranks": {"a": 1}}, "ranks for a of a, b, c: each needs one, or none .* when all_bad"),
        ("bad_ranks", {"kind": "skipped", "reason": "x"}, "ranks for a, b, c of a, b, c: none may have one when skipped"),
        ("bad_reason", {"kind": "skipped", "ranks": {}, "reason": " "}, "a skipped task needs a reason"),
        (
            "bad_flags",
            {"flags": {"d": ["broken"]}},
            r"flags \['broken'\] of 'd': one of unsafe, broken, reveals for one of a, b, c",
        ),
        ("bad_flags", {"flags": {"ab": ["broken"]}}, ".* of 'ab': .*"),
        ("bad_flags", {"flags": {"": ["broken"]}}, ".* of '': .*"),
        ("bad_flags", {"flags": {"a": ["funny"]}}, r"flags \['funny'\] of 'a': .*"),
        ("bad_confidence", {"confidence": 4}, "confidence 4: 1, 2 or 3 is needed, or none"),
        ("bad_seconds", {"seconds": -1.0}, "seconds -1.0: a number from 0 is needed"),
        ("bad_seconds", {"seconds": float("nan")}, "seconds nan: a number from 0 is needed"),
        ("too_long", {"comment": "あ" * (COMMENT_LIMIT + 1)}, "the comment has 2,001 characters; 2,000 are allowed"),
        ("too_long", {"reason": "x" * 201}, "the reason has 201 characters; 200 are allowed"),
    ],
)
def test_answers_that_are_not_taken(store: Store, aki: Person, code: str, given: dict[str, Any], message: str) -> None:
    shown = take(store, aki)
    with refused(code, message):
        save(store, aki, answer_to(shown, **given), NOW)
    assert collect(store).judgements == ()
    assert next_task(store, aki, NOW) == shown


def test_all_bad_with_and_without_ranks(store: Store, aki: Person) -> None:
    first, second = work(store, aki, 2)
    save(store, aki, answer_to(first, kind="all_bad", reason="all false"), NOW)
    save(store, aki, answer_to(second, kind="all_bad", ranks={}), NOW)
    assert sorted((each.kind, each.ranks is None, each.reason) for each in collect(store).judgements) == [
        ("all_bad", False, "all false"),
        ("all_bad", True, None),
    ]
    assert answer_of(store, aki, second.id).ranks == {}  # type: ignore[union-attr]
    assert progress_of(store, aki, NOW).team == 2
    long = answer_to(second, comment="あ" * COMMENT_LIMIT, reason="x" * 200, seconds=1e9)
    save(store, aki, long, NOW)
    assert answer_of(store, aki, second.id).seconds == 86_400.0  # type: ignore[union-attr]


def test_a_frozen_store_takes_no_answers(store: Store, aki: Person) -> None:
    (done,) = work(store, aki, 1)
    shown = take(store, aki)
    assert not progress_of(store, aki, NOW).frozen
    store.freeze()
    assert store.frozen
    assert progress_of(store, aki, NOW).frozen
    assert next_task(store, aki, NOW) is None
    for each in (shown, done):
        with refused("frozen", "the collection is closed: no more answers are taken"):
            save(store, aki, answer_to(each, (1, 1, 1)), NOW)
    assert find_shown(store, aki, done.id) == replace(done, revision=1)
    store.freeze(False)
    assert next_task(store, aki, NOW) == shown
    assert save(store, aki, answer_to(shown), NOW).revision == 1


def test_one_id_from_two_threads_is_one_answer(store: Store, aki: Person) -> None:
    shown = take(store, aki)
    answer = answer_to(shown)
    saved: list[Saved] = []
    threads = [threading.Thread(target=lambda: saved.append(save(store, aki, answer, NOW))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.again for each in saved) == [False] + [True] * 7
    assert {each.revision for each in saved} == {1}


def test_comparisons_follow_revisions(store: Store, aki: Person) -> None:
    first, second = work(store, aki, 2)
    assert comparisons(store) == 6
    save(store, aki, answer_to(first, (1, 1, 2)), NOW)
    assert comparisons(store) == 5
    save(store, aki, skip(second), NOW)
    assert comparisons(store) == 2


def test_comparisons_are_counted_right_after_somebody_was_forgotten(store: Store, aki: Person) -> None:
    other = add_person(store, "Other")[0]
    work(store, aki, 2), work(store, other, 1)
    assert comparisons(store) == 9
    forget(store, "Other")
    third = add_person(store, "Third")[0]
    shown = take(store, third)
    save(store, third, answer_to(shown, (1, 1, 1)), NOW)  # as many answers as before, under the same numbers
    assert comparisons(store) == 6


@pytest.mark.parametrize("ranks", ["7", "null", '"ab"', '{"a": 1}', '[1, "x", 2]', "[null]"])
def test_ranks_that_are_none_are_damage(store: Store, aki: Person, ranks: str) -> None:
    work(store, aki, 1)
    with store.write() as db:
        db.execute("UPDATE answers SET ranks = ?", (ranks,))
    for _ in range(2):
        with pytest.raises(DataError, match=r"damaged, or not a database \(row 1 of the table answers is not as it was written"):
            comparisons(store)


def test_an_order_that_is_none_is_damage(store: Store, aki: Person) -> None:
    shown = take(store, aki)
    store.connection.execute("UPDATE shown SET places = '01'")
    with pytest.raises(DataError, match=r"damaged, or not a database \(row .* of the table shown is not as it was written"):
        save(store, aki, answer_to(shown), NOW)
