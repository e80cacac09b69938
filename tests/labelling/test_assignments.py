"""Tasks that change hands: given up, skipped, forgotten; and how many are left for whom."""

from __future__ import annotations

from pathlib import Path

from people_at_work import NOW, answer_to, skip, store_of, work


def test_a_task_that_was_given_up_comes_back_when_who_took_it_does_not_answer(tmp_path: Path) -> None:
    for number, leaves in enumerate((False, True)):
        (tmp_path / str(number)).mkdir()
        store = store_of(tmp_path / str(number), 1, overlap=1, lease_minutes=10)
        aki, ben = (store.add_person(name)[0] for name in ("Aki", "Ben"))
        shown = store.next_task(aki, NOW)
        of_ben = store.next_task(ben, NOW + 600)
        assert shown is not None and of_ben is not None
        assert store.next_task(aki, NOW + 601) is None  # it is Ben's now
        if leaves:
            store.forget(ben.id)
        else:
            store.answer(ben, skip(of_ben), NOW + 602)
        assert store.progress(aki, NOW + 603).left == 1
        assert store.next_task(aki, NOW + 603) == shown  # under the id that the page may still hold
        assert store.answer(aki, answer_to(shown), NOW + 604).revision == 1
        assert store.progress(aki, NOW + 605).left == 0
        assert store.next_task(aki, NOW + 605) is None
        store.close()


def test_what_all_have_skipped_does_not_hold_up_the_end(tmp_path: Path) -> None:
    store = store_of(tmp_path, 3, overlap=2, repeats=0)
    aki, ben = (store.add_person(name)[0] for name in ("Aki", "Ben"))
    for person, skips in ((aki, {"prompt 0"}), (ben, {"prompt 0", "prompt 1"})):
        while (shown := store.next_task(person, NOW)) is not None:
            assert not store.complete()
            store.answer(person, skip(shown) if shown.prompt in skips else answer_to(shown), NOW)
    assert store.complete()
    assert store.coverage() == (3, 6)
    eve = store.add_person("Eve")[0]  # who comes later still gets them, and is waited for
    assert not store.complete()
    assert (store.progress(ben, NOW).left, store.progress(eve, NOW).left) == (0, 2)
    work(store, eve)
    assert store.complete()
    assert store.coverage() == (5, 6)


def test_who_was_locked_out_is_not_waited_for(tmp_path: Path) -> None:
    store = store_of(tmp_path, 2, overlap=1, repeats=0)
    aki, ben = (store.add_person(name)[0] for name in ("Aki", "Ben"))
    work(store, aki, skips=1.0)
    assert not store.complete()  # Ben may still answer
    store.revoke(ben.id)
    assert store.complete()


def test_who_is_in_the_middle_of_a_task_is_known(tmp_path: Path) -> None:
    store = store_of(tmp_path, 2, repeats=0)
    aki = store.add_person("Aki")[0]
    assert not store.busy(NOW)
    shown = store.next_task(aki, NOW)
    assert shown is not None
    assert store.busy(NOW + 500) and not store.busy(NOW + 700)
    store.give_up(aki)
    assert not store.busy(NOW)
    before = store.changes()
    store.answer(aki, answer_to(shown), NOW)  # it comes all the same
    first = store.changes()
    store.answer(aki, answer_to(shown, (2, 1, 3)), NOW)
    second = store.changes()
    store.forget(aki.id)
    third = store.changes()
    ben = store.add_person("Ben")[0]
    shown = store.next_task(ben, NOW)
    assert shown is not None
    store.answer(ben, answer_to(shown), NOW)
    assert len({before, first, second, third, store.changes()}) == 5


def test_what_is_left_is_what_the_person_may_still_get(tmp_path: Path) -> None:
    store = store_of(tmp_path, 10, overlap=1, repeats=0)
    aki, ben = (store.add_person(name)[0] for name in ("Aki", "Ben"))
    skipped = {shown.prompt for shown in work(store, aki, 6, skips=1.0)}
    assert (store.progress(aki, NOW).left, store.progress(ben, NOW).left) == (4, 10)
    while (shown := store.next_task(ben, NOW + 9999)) is not None:
        store.answer(ben, skip(shown) if shown.prompt in skipped else answer_to(shown), NOW + 9999)
    assert store.progress(aki, NOW).team == 4  # six answers are wanted still, and Aki has skipped them all
    assert (store.progress(aki, NOW).left, store.progress(ben, NOW).left) == (0, 0)
