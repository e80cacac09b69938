"""Answers as files: konomi export; and konomi forget."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from command_line import konomi, lines_of
from konomi.cli import app
from konomi.config import SFTData
from konomi.data.examples import load_examples
from konomi.data.formats import read_comparisons, read_scores
from konomi.data.records import Pair, Ranking
from konomi.errors import DataError, RunError
from konomi.labelling.answers import answer_of, collect, own_answers, save
from konomi.labelling.assignments import find_shown, progress_of
from konomi.labelling.export import SOURCE, rankings, repeated, write_export
from konomi.labelling.people import add_person, all_people, find_person
from konomi.labelling.project import create_project, open_project
from konomi.labelling.queue import Settings
from konomi.labelling.records import MESSAGES, LabelOptions
from konomi.labelling.summary import statistics
from people_at_work import NOW, answer_to, skip, take, tasks, work


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of 12 tasks of which two people, Aki and Ben, have answered all."""
    monkeypatch.chdir(tmp_path)
    path = Path("people")
    opened, _ = create_project(path, tasks(12), settings=Settings(repeats=0.2))
    with opened.store() as store:
        for name in ("Aki", "Ben"):
            person = add_person(store, name)[0]
            for n, shown in enumerate(work(store, person)):
                number = int(shown.prompt.split()[1])
                if number == 3:
                    save(store, person, skip(shown, reason=f"{name} cannot read it"), NOW)
                elif number == 4:
                    save(store, person, answer_to(shown, kind="all_bad", ranks={}, reason="all false"), NOW)
                elif name == "Ben" and number >= 6:  # a tie of the best two, by Ben alone
                    by_text = {"0": 1, "1": 1, "2": 3}
                    ranks = {text.key: by_text[text.text[-1]] for text in shown.texts}
                    save(store, person, answer_to(shown, ranks=ranks, comment=f"良い {n}", flags={"a": ["unsafe"]}), NOW)
    return path


LAST = "(SELECT max(answers.rowid) FROM answers JOIN shown ON shown.id = shown WHERE answers.kind = 'ranked' AND repeat = 0)"
DAMAGES = {
    "wrong ranks": f"UPDATE answers SET ranks = '[3, 2, 1]' WHERE rowid = {LAST}",
    "ranks that are no JSON": f"UPDATE answers SET ranks = '[3, 2' WHERE rowid = {LAST}",
    "ranks that are bytes": f"UPDATE answers SET ranks = x'5b312c5d' WHERE rowid = {LAST}",
    "another kind": f"UPDATE answers SET kind = 'skipped' WHERE rowid = {LAST}",
    "flags of another shape": f"UPDATE answers SET flags = '7' WHERE rowid = {LAST}",
    "a comment": f"UPDATE answers SET comment = 'x' WHERE rowid = {LAST}",
    "another order": "UPDATE shown SET places = '012' WHERE places = (SELECT max(places) FROM shown)",
    "a repeat": "UPDATE shown SET repeat = 7 WHERE number = 2 AND repeat = 0",
    "an older revision": "UPDATE shown SET revision = 1 WHERE revision = 2",
    "an answer that is gone": f"DELETE FROM answers WHERE rowid = {LAST}",
    "a prompt": "UPDATE tasks SET prompt = 'x' WHERE id = 2",
    "columns that are no JSON": "UPDATE tasks SET columns = '{' WHERE id = 2",
    "a task that is gone": "DELETE FROM tasks WHERE id = 2",
    "a text": "UPDATE candidates SET text = 'x' WHERE task = 2 AND number = 1",
    "a source that is no JSON": "UPDATE candidates SET source = '{' WHERE task = 2 AND number = 1",
    "a candidate that is gone": "DELETE FROM candidates WHERE task = 2 AND number = 0",
    "a last candidate that is gone": "DELETE FROM candidates WHERE task = 2 AND number = 2",
    "a list that is no JSON": "UPDATE meta SET value = '[' WHERE key = 'unchanged'",
    "no answers": "DROP TABLE answers",
    "no meta": "DROP TABLE meta",
    "no index": "DROP INDEX answers_of",
    "no column": "ALTER TABLE tasks DROP COLUMN columns",
}


def test_nothing_damaged_is_exported(project: Path) -> None:
    labels = project / "labels.sqlite3"
    whole = labels.read_bytes()
    for damage, statement in DAMAGES.items():
        with contextlib.closing(sqlite3.connect(labels, isolation_level=None)) as db:
            changed = db.execute(statement).rowcount
        assert changed != 0, damage
        printed = konomi("export", "people", "--out", "out", "--freeze", code=2)
        assert f"{labels}: damaged, or not a database (" in printed.stderr, damage
        assert "Restore a backup" in printed.stderr, damage
        assert not Path("out").exists(), damage
        if damage in ("wrong ranks", "a text", "no answers"):
            assert "damaged" in konomi("export", "people", "--out", "out", code=2).stderr
            assert "damaged" in konomi("label", "people", code=2).stderr
        labels.write_bytes(whole)
    for length in (len(whole) - 4096, 4096, 100):
        labels.write_bytes(whole[:length])
        assert "damaged" in konomi("export", "people", "--out", "out", code=2).stderr, length
    labels.write_bytes(whole)
    konomi("export", "people", "--out", "out", code=0)


def test_the_damaged_row_is_named(project: Path) -> None:
    with contextlib.closing(sqlite3.connect(project / "labels.sqlite3", isolation_level=None)) as db:
        (row,) = db.execute(LAST[1:-1]).fetchone()
        db.execute("UPDATE answers SET ranks = '[3, 2, 1]' WHERE rowid = ?", (row,))
        chosen = "SELECT shown.id, person FROM answers JOIN shown ON shown.id = shown WHERE answers.rowid = ?"
        showing, who = db.execute(chosen, (row,)).fetchone()
    with (
        open_project(project).store() as store,
        pytest.raises(DataError, match=f"row {row} of the table answers is not as it was"),
    ):
        answer_of(store, find_person(store, who), showing)


# export


def test_export_writes_what_the_reward_model_reads(project: Path) -> None:
    result = konomi("export", "people", "--out", "data/out", code=0)
    out = Path("data/out")
    assert {each.name for each in out.iterdir()} == {
        *("rankings.jsonl", "pairs.jsonl", "scores.jsonl", "answers.jsonl", "other.jsonl", "manifest.json", "statistics.json")
    }
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert [each.name for each in Path("data").iterdir()] == ["out"]
    ranked = read_comparisons(out / "rankings.jsonl")
    assert len(ranked) == 20
    with open_project(project).store() as store:
        aki, ben = all_people(store)
    assert ranked[0] == Ranking("prompt 0", ("text 0.0", "text 0.1", "text 0.2"), (1, 2, 3), min(aki.id, ben.id), SOURCE)
    assert {each.ranks for each in ranked if isinstance(each, Ranking) and each.rater == ben.id} == {(1, 2, 3), (1, 1, 3)}
    of_pairs = [each for each in read_comparisons(out / "pairs.jsonl") if isinstance(each, Pair)]
    assert len(of_pairs) == 30  # each two texts once, however many raters
    soft = Pair("prompt 6", "text 6.0", "text 6.1", 0.75, source=SOURCE)  # one for it, one tie
    assert [each for each in of_pairs if each.prompt == "prompt 6"] == [
        *(soft, Pair("prompt 6", "text 6.0", "text 6.2", source=SOURCE), Pair("prompt 6", "text 6.1", "text 6.2", source=SOURCE))
    ]
    votes = {
        (r["prompt"], r["chosen"], r["rejected"]): (r["for"], r["against"], r["ties"]) for r in lines_of(out / "pairs.jsonl")
    }
    assert votes["prompt 6", "text 6.0", "text 6.1"] == (1, 0, 1)
    assert votes["prompt 0", "text 0.1", "text 0.2"] == (2, 0, 0)
    scores = read_scores(out / "scores.jsonl")
    assert len(scores) == 30  # each text once
    # Aki says 1 2 3 and Ben 1 1 3: the best is at 1 and at 0.5
    assert [each.score for each in scores if each.prompt == "prompt 6"] == [0.75, 0.25, -1.0]
    assert "rankings.jsonl: 20 records, 10 prompts, 30 responses" in result.stdout
    assert result.stdout.endswith("data/out\n")
    for file in out.iterdir():  # people are pseudonyms
        assert not {"Aki", "Ben"} & set(file.read_text(encoding="utf-8").replace("cannot", "").split('"'))


def test_edits_and_strengths_are_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = LabelOptions(strength=True, edit=True)
    talk = [{"role": "user", "content": "hello"}]
    for name, columns in (("texts", {}), ("talks", {MESSAGES: talk})):
        two = [replace(each, columns=columns) for each in tasks(2, k=2)]
        opened, _ = create_project(Path(name), two, settings=Settings(repeats=0.0), options=options)
        assert open_project(Path(name)).label == options
        with opened.store() as store:
            aki = add_person(store, "Aki")[0]
            for kind, more in (("ranked", {"strength": 3}), ("all_bad", {"ranks": {}})):
                shown = take(store, aki)
                worst = max(shown.texts, key=lambda each: each.text)
                answer = answer_to(shown, kind=kind, edits={worst.key: f"{worst.text} mended"}, **more)
                save(store, aki, answer, NOW, options=options)
                if kind == "ranked":
                    strong = shown.prompt[-1]
            figures = statistics(collect(store))
        assert (figures["comparisons"], figures["agreement"]) == (1, None)  # edits are in no figure
        konomi("export", name, "--out", f"{name}-out", code=0)
        out, other = Path(f"{name}-out"), str(1 - int(strong))
        ranked = [each for each in read_comparisons(out / "rankings.jsonl") if isinstance(each, Ranking)]
        edits = [
            Ranking(f"prompt {n}", (f"text {n}.1 mended", f"text {n}.1"), (1, 2), aki.id, "edits", ranked[0].messages)
            for n in sorted((strong, other))
        ]
        first = Ranking(f"prompt {strong}", (f"text {strong}.0", f"text {strong}.1"), (1, 2), aki.id, SOURCE, strength=3)
        assert ranked == [first, *edits]
        pairs = read_comparisons(out / "pairs.jsonl")
        assert [(each.responses, each.source) for each in pairs[1:]] == [(each.responses, "edits") for each in edits]
        kind_of, examples = load_examples(SFTData(texts=str(out / "edits.jsonl")))
        assert [each.completion for each in examples] == [
            None if columns else f"text {n}.1 mended" for n in sorted((strong, other))
        ]
        assert kind_of == ("messages" if columns else "prompt-completion")
        assert [each["edit"] for row in lines_of(out / "answers.jsonl") for each in row["candidates"] if "edit" in each] == [
            each.responses[0] for each in edits
        ]


def test_the_other_files_keep_everything(project: Path) -> None:
    konomi("export", "people", "--out", "out", code=0)
    answers, other = lines_of(Path("out/answers.jsonl")), lines_of(Path("out/other.jsonl"))
    with open_project(project).store() as store:
        exported = collect(store)
        ben = find_person(store, "Ben").id
    assert len(answers) == len(exported.judgements)
    assert other == [each for each in answers if each["repeat"] or each["answer"] != "ranked"]
    reasons = {(each["answer"], each["reason"]) for each in other if not each["repeat"]}
    assert reasons == {("skipped", "Aki cannot read it"), ("skipped", "Ben cannot read it"), ("all_bad", "all false")}
    repeats = [each for each in other if each["repeat"]]
    assert len(repeats) >= 2
    one = next(each for each in answers if each["rater"] == ben and each["prompt"] == "prompt 7" and not each["repeat"])
    flags = [each.pop("flags") for each in one["candidates"]]
    assert sorted(flags) == [[], [], ["unsafe"]]
    assert flags[one["order"][0]] == ["unsafe"]
    assert one["comment"].startswith("良い ")
    assert {name: one[name] for name in ("version", "lang", "task", "answer", "ranks", "reason", "confidence", "columns")} == {
        **{"version": 1, "lang": "en", "task": "rank", "answer": "ranked", "ranks": [1, 1, 3], "reason": None},
        **{"confidence": None, "columns": {"topic": "hidden column 7"}},
    }
    assert one["candidates"][1] == {
        **{"model": "lab/secret-model-1", "seed": 7, "text": "text 7.1", "lang": "en", "names_model": False},
    }
    assert (one["revision"], one["at"], one["seconds"]) == (2, NOW, 10.0)


def test_the_manifest(project: Path) -> None:
    shown = json.loads(konomi("export", "people", "--out", "out", "--json", code=0).stdout)
    assert shown.pop("statistics") == json.loads(Path("out/statistics.json").read_text(encoding="utf-8"))
    assert shown == json.loads(Path("out/manifest.json").read_text(encoding="utf-8"))
    for name in ("rankings", "pairs", "scores", "answers", "other"):
        entry = shown["files"][name]
        assert entry["name"] == f"{name}.jsonl"
        assert entry["sha256"] == hashlib.sha256(Path("out", entry["name"]).read_bytes()).hexdigest()
        assert entry["counts"]["records"] == len(lines_of(Path("out", entry["name"])))
    assert shown["files"]["pairs"]["format"] == "pairs"
    assert shown["files"]["other"]["format"] == "answers"
    assert shown["project"] == "people"
    repeats = shown["answers"].pop("repeats")
    assert repeats >= 2
    assert shown["answers"] == {"raters": 2, "ranked": 20, "all_bad": 2, "skipped": 2}


def test_export_on_its_own_connection_while_threads_write(project: Path) -> None:
    with open_project(project).store() as store:
        person = find_person(store, "Ben")
        shown = find_shown(store, person, own_answers(store, person)[0].shown)
        assert shown is not None
        more = threading.Thread(target=lambda: [save(store, person, answer_to(shown), NOW) for _ in range(10)])  # type: ignore[arg-type]
        more.start()
        sizes = {len(collect(store).judgements) for _ in range(5)}
        more.join()
        assert sizes == {len(collect(store).judgements)}
        assert own_answers(store, person)[0].revision >= 11


def test_freezing_comes_with_an_export_or_not_at_all(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def frozen() -> bool:
        with open_project(project).store() as store:
            return store.frozen

    Path("there").mkdir()
    assert "there: already exists" in konomi("export", "people", "--out", "there", "--freeze", code=2).stderr
    assert not frozen()
    create_project(Path("none"), tasks(2))
    assert "nobody has answered anything yet" in konomi("export", "none", "--out", "o", "--freeze", code=2).stderr
    with open_project(Path("none")).store() as store:
        assert not store.frozen
    with monkeypatch.context() as patched:

        def stopped(*_: object, **__: object) -> None:
            assert frozen()
            raise KeyboardInterrupt

        patched.setattr("konomi.labelling.summary.statistics", stopped)
        konomi("export", "people", "--out", "out", "--freeze", code=130)
    assert not frozen()
    konomi("export", "people", "--out", "out", "--freeze", code=0)
    assert frozen()


def test_what_is_frozen_is_what_is_exported(project: Path) -> None:
    """Another process answers as fast as it can: none of what it gets saved comes after the export."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from konomi.labelling.project import open_project
from konomi.labelling.records import Refused
from konomi.labelling.answers import own_answers, save
from konomi.labelling.assignments import find_shown
from konomi.labelling.people import find_person
from people_at_work import answer_to
with open_project(Path("people")).store() as store:
    person = find_person(store, "Aki")
    shown = find_shown(store, person, own_answers(store, person)[0].shown)
    last = None
    try:
        for n in range(1_000_000):
            save(store, person, answer_to(shown, comment=f"number {{n}}"), n + 1.0)
            last = n
            if n == 3:
                print("writing", flush=True)
    except Refused as error:
        print(error.code, last, flush=True)
"""
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None and writer.stdout.readline() == "writing\n"
    konomi("export", "people", "--out", "out", "--freeze", code=0)
    why, last = writer.communicate(timeout=60)[0].split()
    assert why == "frozen"
    assert [each["comment"] for each in lines_of(Path("out/answers.jsonl")) if each["comment"].startswith("number")] == [
        f"number {last}"
    ]


def test_exports_are_their_owners_alone_and_do_not_meet(project: Path) -> None:
    Path(".out.tmp").mkdir()  # of another export, under way
    Path(".out.tmp/rankings.jsonl").touch()
    with open_project(project).store() as store:
        exported = collect(store)
    threads = [threading.Thread(target=write_export, args=(exported, Path(f"out{n}"))) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(2):
        assert {stat.S_IMODE(each.stat().st_mode) for each in Path(f"out{n}").iterdir()} == {0o600}
    assert Path(".out.tmp/rankings.jsonl").exists()
    assert {each.name for each in Path().iterdir()} == {"people", "out0", "out1", ".out.tmp"}


def test_nothing_ranked_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    opened, _ = create_project(Path("p"), tasks(2))
    assert "nobody has answered anything yet: there is nothing to export" in konomi("export", "p", "--out", "o", code=2).stderr
    with opened.store() as store:
        aki = add_person(store, "Aki")[0]
        shown = take(store, aki)
        save(store, aki, skip(shown), NOW)
    result = konomi("export", "p", "--out", "o", code=0)
    assert "nobody has ranked anything yet: there are no rankings, pairs and scores" in result.stderr
    assert {each.name for each in Path("o").iterdir()} == {"answers.jsonl", "other.jsonl", "manifest.json", "statistics.json"}


def test_where_an_export_cannot_go(project: Path) -> None:
    Path("there").mkdir()
    assert "there: already exists; give another name or remove it" in (
        konomi("export", "people", "--out", "there", code=2).stderr
    )
    Path("file").touch()
    with open_project(project).store() as store, pytest.raises(RunError, match="file/out: cannot be made: Not a directory"):
        write_export(collect(store), Path("file/out"))
    assert {each.name for each in Path().iterdir()} == {"people", "there", "file"}


def test_an_export_that_fails_leaves_nothing(project: Path) -> None:
    with open_project(project).store() as store:
        exported = collect(store)
    with pytest.raises(RunError, match=r"x\.json: cannot be written"):
        write_export(exported, Path("out"), {"nowhere/x.json": {}})
    first = next(iter(exported.items.values()))
    first.candidates[0].source["model"] = {1, 2}  # what JSON cannot hold
    with pytest.raises(TypeError):
        write_export(exported, Path("out"))
    assert {each.name for each in Path().iterdir()} == {"people"}


# rankings


def test_rankings_are_the_first_words_of_each(project: Path) -> None:
    with open_project(project).store() as store:
        exported = collect(store)
    found = rankings(exported)
    assert len({(each.prompt, each.rater) for each in found}) == len(found) == 20
    repeats = [each for each in exported.judgements if each.repeat and each.kind == "ranked"]
    couples = repeated(exported)
    assert len(couples) == len(repeats) > 1
    for first, again in couples:
        assert first in found
        assert (first.prompt, first.responses, first.rater) == (again.prompt, again.responses, again.rater)


# forget


def test_forget_by_name(project: Path) -> None:
    with open_project(project).store() as store:
        ben = find_person(store, "Ben")
        answered = progress_of(store, ben, NOW).mine
    result = konomi("forget", "people", "Ben", "--yes", code=0)
    printed = f"removed: Ben and {answered} answers; rows of {ben.id} in earlier exports are still there\n"
    assert result.stdout == printed
    konomi("export", "people", "--out", "out", code=0)
    assert {each["rater"] for each in lines_of(Path("out/answers.jsonl"))} != {ben.id}
    assert len({each["rater"] for each in lines_of(Path("out/answers.jsonl"))}) == 1
    data = Path("people/labels.sqlite3").read_bytes()
    assert "良い".encode() not in data
    assert ben.id.encode() not in data
    assert "there is no person 'Ben'" in konomi("forget", "people", "Ben", "--yes", code=2).stderr


def test_forget_asks_first(project: Path) -> None:
    with open_project(project).store() as store:
        aki = find_person(store, "Aki")
    for answer in ("n\n", ""):
        result = CliRunner().invoke(app, ["forget", "people", aki.id], input=answer)
        assert result.exit_code == 1
        assert f"Remove Aki ({aki.id}) and all their answers for good?" in result.output
    with open_project(project).store() as store:
        assert find_person(store, "Aki") == aki
    assert CliRunner().invoke(app, ["forget", "people", aki.id], input="y\n").exit_code == 0
    with open_project(project).store() as store:
        assert [each.name for each in all_people(store)] == ["Ben"]
