"""What people are shown: nothing that is hidden, tasks that change hands, and how many are left for whom."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from konomi.labelling.answers import answer_of, changes, collect, own_answers, save
from konomi.labelling.assignments import busy, complete, coverage, find_shown, give_up, next_task, progress_of
from konomi.labelling.import_tasks import add_tasks
from konomi.labelling.people import add_person, forget, person_of, revoke
from konomi.labelling.records import Answer
from people_at_work import NOW, answer_to, refused, skip, store_of, take, tasks, work


def test_no_source_and_nothing_of_others_reaches_a_person(tmp_path: Path) -> None:
    store = store_of(tmp_path, 12)
    aki, ben = (add_person(store, name)[0] for name in ("Aki", "Ben"))
    others = [next_task(store, ben, NOW)]
    for n in range(12):
        shown = others[-1]
        assert shown is not None
        save(store, ben, answer_to(shown, comment="words of Ben", flags={"a": ["unsafe"]}, reason="Ben's reason"), NOW + n)
        others.append(next_task(store, ben, NOW + n))
    mine = work(store, aki)
    given: list[Any] = [*mine, *own_answers(store, aki), progress_of(store, aki, NOW)]
    given += [save(store, aki, answer_to(mine[0]), NOW), answer_of(store, aki, mine[0].id), person_of(store, "x")]
    text = json.dumps([each.model_dump() if isinstance(each, Answer) else asdict(each) for each in given if each is not None])
    assert "prompt 3" in text
    for hidden in ("secret-model", "lab/", "seed", "hidden column", "words of Ben", "Ben", "unsafe", ben.id):
        assert hidden not in text
    assert len(mine) > 12  # some of these are repeats, which nothing tells
    assert "repeat" not in text
    for shown in others:
        assert shown is not None
        assert find_shown(store, aki, shown.id) is None
        assert answer_of(store, aki, shown.id) is None
        with refused("unknown_task", f"no task '{re.escape(shown.id)}' was shown to {aki.id}"):
            save(store, aki, answer_to(shown), NOW)


def test_ids_are_random_and_the_order_is_kept(tmp_path: Path) -> None:
    store = store_of(tmp_path, 40, k=4)
    aki, ben = (add_person(store, name)[0] for name in ("Aki", "Ben"))
    shown = [*work(store, aki), *work(store, ben)]
    assert all(re.fullmatch(r"[\w-]{20}", each.id) for each in shown)
    assert len({each.id for each in shown}) == len(shown)
    for each in shown[:5]:
        assert find_shown(store, aki, each.id) == replace(each, revision=1)
    orders: dict[str, set[tuple[str, ...]]] = {}
    for each in shown:
        orders.setdefault(each.prompt, set()).add(tuple(text.text for text in each.texts))
    counts = {
        "different": sum(len(each) > 1 for each in orders.values()),
        "same": sum(len(each) == 1 for each in orders.values()),
    }
    assert counts["different"] > 30


def test_a_repeat_is_the_same_task_in_another_order(tmp_path: Path) -> None:
    store = store_of(tmp_path, 60, k=2, overlap=2)
    aki = add_person(store, "Aki")[0]
    shown = work(store, aki)
    again = [each for each in collect(store).judgements if each.repeat]
    assert len(again) == len(shown) - 60
    assert 4 <= len(again) <= 9
    first = {each.task: each for each in collect(store).judgements if not each.repeat}
    for each in again:
        assert each.order == first[each.task].order[::-1]
        assert each.ranks == first[each.task].ranks
    assert progress_of(store, aki, NOW).team == 60


def test_a_task_is_kept_until_its_lease_ends(tmp_path: Path) -> None:
    store = store_of(tmp_path, 1, overlap=1, lease_minutes=10)
    aki, ben, eve = (add_person(store, name)[0] for name in ("Aki", "Ben", "Eve"))
    shown = take(store, aki)
    assert next_task(store, ben, NOW + 599) is None
    assert next_task(store, aki, NOW + 599) == shown  # who asks again keeps it for another ten minutes
    assert next_task(store, ben, NOW + 1190) is None
    of_ben = take(store, ben, NOW + 1200)
    assert of_ben.prompt == shown.prompt
    assert next_task(store, aki, NOW + 1201) is None  # it is another's now
    assert save(store, aki, answer_to(shown), NOW + 1202).revision == 1  # but an answer is not thrown away
    assert save(store, ben, answer_to(of_ben), NOW + 1203).revision == 1
    assert next_task(store, eve, NOW + 9999) is None
    assert progress_of(store, ben, NOW).team == progress_of(store, ben, NOW).target == 1


def test_a_clock_that_is_set_back_or_forward_holds_up_nobody(tmp_path: Path) -> None:
    """By hours; an answer to what was handed out before counts all the same."""
    for hours in (-5, 5):
        for name in (str(hours), f"{hours} again"):
            (tmp_path / name).mkdir()
        store = store_of(tmp_path / str(hours), 1, overlap=1, lease_minutes=10)
        aki, ben = (add_person(store, name)[0] for name in ("Aki", "Ben"))
        shown, then = take(store, aki), NOW + 3600 * hours
        of_ben = take(store, ben, then)
        assert of_ben.prompt == shown.prompt
        assert next_task(store, add_person(store, "Eve")[0], then + 1) is None  # the new lease is one
        assert save(store, aki, answer_to(shown), then + 2).revision == 1
        assert progress_of(store, aki, then + 3).team == 1
        again = store_of(tmp_path / f"{hours} again", 1, overlap=1, lease_minutes=10)
        eve, ivy = (add_person(again, name)[0] for name in ("Eve", "Ivy"))
        kept = take(again, eve)
        assert next_task(again, eve, then) == kept and next_task(again, ivy, then + 1) is None  # renewed by who has it


def test_a_lease_that_ended_is_taken_up_again_while_there_is_room(tmp_path: Path) -> None:
    store = store_of(tmp_path, 3, overlap=2, lease_minutes=10)
    aki = add_person(store, "Aki")[0]
    shown = next_task(store, aki, NOW)
    assert next_task(store, aki, NOW + 100_000) == shown


def test_a_skipped_task_stays_open_for_others(tmp_path: Path) -> None:
    store = store_of(tmp_path, 1, overlap=1)
    aki, ben = (add_person(store, name)[0] for name in ("Aki", "Ben"))
    shown = take(store, aki)
    assert next_task(store, ben, NOW) is None
    save(store, aki, skip(shown), NOW)
    assert next_task(store, aki, NOW) is None
    assert next_task(store, ben, NOW) is not None
    save(store, aki, answer_to(shown), NOW)  # and what was skipped may still be answered
    assert progress_of(store, aki, NOW).team == 1


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


def test_progress(tmp_path: Path) -> None:
    store = store_of(tmp_path, 10, overlap=1.5, repeats=0.2)
    aki, ben = (add_person(store, name)[0] for name in ("Aki", "Ben"))
    start = progress_of(store, aki, NOW)
    assert 10 < start.target < 20
    assert (start.mine, start.left, start.team, start.per_hour, start.minutes_left) == (0, 10, 0, None, None)
    shown = take(store, aki)
    for n, seconds in enumerate((30.0, 10_000.0, 90.0)):  # one pause, which counts for ten minutes
        assert shown is not None
        save(store, aki, answer_to(shown, seconds=seconds), NOW + n)
        shown = next_task(store, aki, NOW + n)
    third = progress_of(store, aki, NOW)
    assert (third.mine, third.left, third.team) == (3, 7, 3)
    assert third.per_hour == pytest.approx(3600 / 240)
    assert third.minutes_left == pytest.approx(7 / 0.8 * 240 / 60)
    for person in (ben, aki):
        work(store, person)
    end = progress_of(store, aki, NOW)
    assert (end.left, end.minutes_left) == (0, 0.0)
    assert end.team == end.target == start.target
    assert end.mine + progress_of(store, ben, NOW).mine == len(collect(store).judgements)


def test_threads_share_a_store(tmp_path: Path) -> None:
    store = store_of(tmp_path, 30, overlap=2, repeats=0)
    people = [add_person(store, f"person {n}")[0] for n in range(6)]
    threads = [threading.Thread(target=work, args=(store, person)) for person in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    judgements = collect(store).judgements
    assert len(judgements) == 60
    assert len({(each.task, each.rater) for each in judgements}) == 60
    # as long as anybody has one open its last answer is theirs, so that all get their two
    assert all(sum(each.task == task for each in judgements) == 2 for task in collect(store).items)


def test_a_forgotten_person_can_do_nothing(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    aki = add_person(store, "Aki")[0]
    shown = take(store, aki)
    forget(store, "Aki")
    with refused("unknown_person", f"there is no person '{aki.id}'"):
        next_task(store, aki, NOW)
    with refused("unknown_task", ".*"):
        save(store, aki, skip(shown), NOW)
    assert add_tasks(store, tasks(5)).added == 1


def test_work_goes_through_indexes(tmp_path: Path) -> None:
    store = store_of(tmp_path, 30)
    aki = add_person(store, "Aki")[0]
    db = store.connection
    asked: set[str] = set()
    db.set_trace_callback(lambda statement: asked.add(statement))
    shown = work(store, aki)
    save(store, aki, answer_to(shown[0]), NOW)
    find_shown(store, aki, shown[0].id), answer_of(store, aki, shown[0].id), own_answers(store, aki), person_of(store, "x")
    own_answers(store, aki, 5, shown[3].id), progress_of(store, aki, NOW)
    db.set_trace_callback(None)
    assert len(asked) > 300
    plans = [
        row[3] for each in asked if each[:6] in ("SELECT", "UPDATE", "DELETE") for row in db.execute(f"EXPLAIN QUERY PLAN {each}")
    ]
    assert any("tasks_in_turn" in plan for plan in plans)
    # the whole of it is counted out of an index alone, and the last answers are a few
    known = {"SCAN CONSTANT ROW", "SCAN tasks USING COVERING INDEX tasks_in_turn", "SCAN last"}
    assert {plan for plan in plans if "SCAN" in plan} <= known
    assert not [plan for plan in plans if "TEMP B-TREE" in plan]
