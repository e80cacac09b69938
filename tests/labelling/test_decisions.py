"""What the owner decides where raters differ: blind, kept beside their answers, in no figure."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from pathlib import Path

import pytest

from command_line import konomi, lines_of
from konomi.data.formats import read_comparisons
from konomi.data.records import Ranking
from konomi.errors import DataError
from konomi.labelling.answers import changes, collect, save
from konomi.labelling.assignments import next_task
from konomi.labelling.decisions import decide, differing, disputed, disputes
from konomi.labelling.people import add_person, forget
from konomi.labelling.project import Project, create_project
from konomi.labelling.queue import Settings
from konomi.labelling.records import Person
from konomi.labelling.summary import statistics
from konomi.labelling.tables import write_decision
from people_at_work import NOW, answer_to, refused, tasks

ORDERS = {"Aki": [(1, 2, 3), (1, 2, 3), (1, 2, 3), (1, 1, 2)], "Ben": [(3, 2, 1), (1, 3, 2), (1, 2, 3), (1, 2, 2)]}
"""By person, of each task: opposite, one pair opposite, the same, ties alone."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    made, _ = create_project(Path("people"), tasks(4), settings=Settings(repeats=0.0))
    with made.store() as store:
        for later, (name, orders) in enumerate(ORDERS.items()):
            person = add_person(store, name)[0]
            while (shown := next_task(store, person, NOW)) is not None:
                ranks = orders[int(shown.prompt[-1])]
                given = {each.key: ranks[int(each.text[-1])] for each in shown.texts}
                save(store, person, answer_to(shown, ranks=given), NOW + later)
    return made


def owner_of(project: Project) -> Person:
    """An owner who sees the texts of the first task in another order than that of the import."""
    with project.store() as store:
        task = disputes(store)[0].task
        for number in itertools.count():
            owner = add_person(store, f"owner {number}", admin=True)[0]
            if "".join(each.text[-1] for each in disputed(store, owner, task).shown.texts) != "012":
                return owner
    raise AssertionError


def test_pairs_that_are_ordered_both_ways() -> None:
    assert differing([(1, 2, 2), (2, 1, 1)]) == pytest.approx(2 / 3)
    assert differing([(1, 1), (2, 1), (1, 1)]) == 0  # a tie is neither
    assert differing([(1, 2), (1, 2), (2, 1)]) == 1


def test_the_owner_decides_blind_and_no_figure_changes(project: Project) -> None:
    owner = owner_of(project)
    with project.store() as store:
        before, version = statistics(collect(store)), changes(store)
        first, second = disputes(store)
        assert [(each.prompt, each.raters, round(each.share, 2)) for each in (first, second)] == [
            ("prompt 0", 2, 1.0), ("prompt 1", 2, 0.33),
        ]  # fmt: skip
        found = disputed(store, owner, first.task)
        assert (found.ranks, found.comment, found.shown.revision) == (None, "", 0)
        by_key = {each.key: int(each.text[-1]) for each in found.shown.texts}
        assert [[ranks[key] for key in sorted(by_key, key=by_key.__getitem__)] for ranks in found.rankings] == [
            [1, 2, 3], [3, 2, 1],
        ]  # fmt: skip
        ranks = {key: (2, 1, 3)[number] for key, number in by_key.items()}
        store.freeze()  # which closes the collection for raters
        assert decide(store, owner, first.task, ranks, "\u826f\u3044", 0, NOW) == 1
        again = disputed(store, owner, first.task)
        assert (again.ranks, again.comment, again.shown.revision) == (ranks, "\u826f\u3044", 1)
        assert [each.decided for each in disputes(store)] == [False, True]  # what is open comes first
        assert (statistics(collect(store)), changes(store)) == (before, version)
        for code, message, given in (
            ("conflict_revision", "task .* was decided meanwhile: revision 1, not 0", (first.task, ranks, "", 0)),
            ("bad_ranks", "ranks for a of a, b, c: .*", (first.task, {"a": 1}, "", 1)),
            ("bad_ranks", "rank 4: .*", (first.task, dict.fromkeys("abc", 4), "", 1)),
            ("too_long", "the comment has 2,001 .*", (first.task, ranks, "x" * 2001, 1)),
            ("unknown_task", "there is no task 99", (99, ranks, "", 0)),
        ):
            with refused(code, message):
                decide(store, owner, *given, NOW)
    konomi("export", "people", "--out", "plain", code=0)
    konomi("export", "people", "--out", "final", "--final", code=0)
    final = Ranking("prompt 0", ("text 0.0", "text 0.1", "text 0.2"), (2, 1, 3), owner.id, "decisions")
    plain = read_comparisons("plain/rankings.jsonl")
    assert read_comparisons("plain/decisions.jsonl") == read_comparisons("final/decisions.jsonl") == [final]
    assert len(plain) == 8 and {each.source for each in plain} == {"people"}
    assert read_comparisons("final/rankings.jsonl") == [*(each for each in plain if each.prompt != "prompt 0"), final]
    labels = {(r["chosen"], r["rejected"]): r["label"] for r in lines_of(Path("final/pairs.jsonl")) if r["prompt"] == "prompt 0"}
    assert labels["text 0.1", "text 0.0"] == labels["text 0.1", "text 0.2"] == 1.0
    assert Path("plain/statistics.json").read_bytes() == Path("final/statistics.json").read_bytes()
    assert Path("plain/answers.jsonl").read_bytes() == Path("final/answers.jsonl").read_bytes()


def test_a_ranking_that_was_damaged_is_told(project: Project) -> None:
    with contextlib.closing(sqlite3.connect(project.labels, isolation_level=None)) as db:
        db.execute("UPDATE answers SET ranks = '[1]' WHERE rowid = 1")
    with project.store() as store, pytest.raises(DataError, match="row 1 of the table answers is not as it was written"):
        disputes(store)


def test_a_decision_is_taken_back_forgotten_and_checked(project: Project) -> None:
    owner = owner_of(project)
    with project.store() as store:
        task = disputes(store)[0].task
        assert decide(store, owner, task, dict.fromkeys("abc", 1), "", 0, NOW) == 1
        assert decide(store, owner, task, {}, "", 1, NOW) == 2
        assert collect(store).decisions == () and disputed(store, owner, task).shown.revision == 2
        assert decide(store, owner, task, dict.fromkeys("abc", 1), "kept", 2, NOW) == 3
        assert [each.comment for each in collect(store).decisions] == ["kept"]
    with contextlib.closing(sqlite3.connect(project.labels, isolation_level=None)) as db:
        db.execute("UPDATE decisions SET ranks = '[1, 2, 3]'")
    with project.store() as store:
        for call in (lambda: collect(store), lambda: disputes(store), lambda: disputed(store, owner, task)):
            with pytest.raises(DataError, match=f"row {task} of the table decisions is not as it was written"):
                call()
        # what is decided stays in the list, whatever becomes of the rankings
        with store.write() as db:
            write_decision(db, task, owner.id, 3, NOW, "[1, 1, 1]", "kept")
        for raters, name in ((1, "Ben"), (0, "Aki")):
            forget(store, name)
            assert [(each.task, each.raters, each.share, each.decided) for each in disputes(store)] == [(task, raters, 0, True)]
        assert disputed(store, owner, task).rankings == ()
        forget(store, owner.id)  # and what they decided
        assert collect(store).decisions == ()
