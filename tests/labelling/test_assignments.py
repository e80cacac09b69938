"""Tasks that change hands: given up, skipped, forgotten; and how many are left for whom."""

from __future__ import annotations

from pathlib import Path

from konomi.labelling.answers import changes, save
from konomi.labelling.assignments import busy, complete, coverage, give_up, next_task, progress_of
from konomi.labelling.people import add_person, forget, revoke
from people_at_work import NOW, answer_to, skip, store_of, take, work


def test_a_task_that_was_given_up_comes_back_when_who_took_it_does_not_answer(tmp_path: Path) -> None:
    for number, leaves in enumerate((False, True)):
        (tmp_path / str(number)).mkdir()
        store = store_of(tmp_path / str(number), 1, overlap=1, lease_minutes=10)
        aki, ben = (add_person(store, name)[0] for name in ("Aki", "Ben"))
        shown = next_task(store, aki, NOW)
        of_ben = next_task(store, ben, NOW + 600)
        assert shown is not None and of_ben is not None
        assert next_task(store, aki, NOW + 601) is None  # it is Ben's now
        if leaves:
            forget(store, ben.id)
        else:
            save(store, ben, skip(of_ben), NOW + 602)
        assert progress_of(store, aki, NOW + 603).left == 1
        assert next_task(store, aki, NOW + 603) == shown  # under the id that the page may still hold
        assert save(store, aki, answer_to(shown), NOW + 604).revision == 1
        assert progress_of(store, aki, NOW + 605).left == 0
        assert next_task(store, aki, NOW + 605) is None
        store.close()


def test_what_all_have_skipped_does_not_hold_up_the_end(tmp_path: Path) -> None:
    store = store_of(tmp_path, 3, overlap=2, repeats=0)
    aki, ben = (add_person(store, name)[0] for name in ("Aki", "Ben"))
    for person, skips in ((aki, {"prompt 0"}), (ben, {"prompt 0", "prompt 1"})):
        while (shown := next_task(store, person, NOW)) is not None:
            assert not complete(store)
            save(store, person, skip(shown) if shown.prompt in skips else answer_to(shown), NOW)
    assert complete(store)
    assert coverage(store) == (3, 6)
    eve = add_person(store, "Eve")[0]  # who comes later still gets them, and is waited for
    assert not complete(store)
    assert (progress_of(store, ben, NOW).left, progress_of(store, eve, NOW).left) == (0, 2)
    work(store, eve)
    assert complete(store)
    assert coverage(store) == (5, 6)


def test_who_was_locked_out_is_not_waited_for(tmp_path: Path) -> None:
    store = store_of(tmp_path, 2, overlap=1, repeats=0)
    aki, ben = (add_person(store, name)[0] for name in ("Aki", "Ben"))
    work(store, aki, skips=1.0)
    assert not complete(store)  # Ben may still answer
    revoke(store, ben.id)
    assert complete(store)


def test_who_is_in_the_middle_of_a_task_is_known(tmp_path: Path) -> None:
    store = store_of(tmp_path, 2, repeats=0)
    aki = add_person(store, "Aki")[0]
    assert not busy(store, NOW)
    shown = take(store, aki)
    assert busy(store, NOW + 500) and not busy(store, NOW + 700)
    give_up(store, aki)
    assert not busy(store, NOW)
    before = changes(store)
    save(store, aki, answer_to(shown), NOW)  # it comes all the same
    first = changes(store)
    save(store, aki, answer_to(shown, (2, 1, 3)), NOW)
    second = changes(store)
    forget(store, aki.id)
    third = changes(store)
    ben = add_person(store, "Ben")[0]
    shown = take(store, ben)
    save(store, ben, answer_to(shown), NOW)
    assert len({before, first, second, third, changes(store)}) == 5


def test_what_is_left_is_what_the_person_may_still_get(tmp_path: Path) -> None:
    store = store_of(tmp_path, 10, overlap=1, repeats=0)
    aki, ben = (add_person(store, name)[0] for name in ("Aki", "Ben"))
    skipped = {shown.prompt for shown in work(store, aki, 6, skips=1.0)}
    assert (progress_of(store, aki, NOW).left, progress_of(store, ben, NOW).left) == (4, 10)
    while (shown := next_task(store, ben, NOW + 9999)) is not None:
        save(store, ben, skip(shown) if shown.prompt in skipped else answer_to(shown), NOW + 9999)
    assert progress_of(store, aki, NOW).team == 4  # six answers are wanted still, and Aki has skipped them all
    assert (progress_of(store, aki, NOW).left, progress_of(store, ben, NOW).left) == (0, 0)
