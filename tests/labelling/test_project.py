"""Projects: made, opened again, and what is wrong with their files."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from command_line import konomi
from konomi.data.formats import read_tasks, write_records
from konomi.data.records import Candidate, Task
from konomi.errors import DataError, RunError
from konomi.labelling.answers import collect
from konomi.labelling.assignments import next_task
from konomi.labelling.export import write_export
from konomi.labelling.people import add_person
from konomi.labelling.project import create_project, open_project, tasks_of
from konomi.labelling.queue import Settings
from konomi.labelling.records import LabelOptions, NewTask
from people_at_work import NOW, tasks, work


def test_a_project_is_its_owners_alone_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "people"
    settings = Settings(overlap=1.5, repeats=0.2, lease_minutes=5, k_max=4, seed=7)
    made, imported = create_project(path, tasks(3), title="天気", settings=settings)
    assert imported.added == 3
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.iterdir()} == {
        **{"project.json": 0o600, "guidelines.md": 0o600, "labels.sqlite3": 0o600}
    }
    assert open_project(path) == made
    assert (made.title, made.lang, made.languages, made.settings) == ("天気", "en", ("ja", "en"), settings)
    assert "# ガイドライン" in made.guidelines()
    assert "# Guidelines" in made.guidelines()
    with made.store() as store:
        assert store.settings == settings
        assert next_task(store, add_person(store, "a")[0], NOW) is not None
    assert [each.name for each in path.parent.iterdir()] == ["people"]


def test_what_raters_may_say_is_a_setting_of_the_project(tmp_path: Path) -> None:
    write_records(tmp_path / "c.jsonl", [Task("p", (Candidate("a"), Candidate("b")))])
    project = str(tmp_path / "p")
    made, _ = create_project(Path(project), tasks(1))
    assert made.label == LabelOptions(strength=False, edit=False)
    told = konomi("label", project, "--candidates", str(tmp_path / "c.jsonl"), "--edit", code=2).stderr
    assert f'--edit: {project} is there already; set "edit": true under "label" in its project.json' in told
    file = tmp_path / "p" / "project.json"
    content = json.loads(file.read_text("utf-8"))
    assert content.pop("label") == {"strength": False, "edit": False}
    file.write_text(json.dumps(content), "utf-8")  # of an older konomi
    assert open_project(Path(project)) == made


def test_a_project_in_the_empty_directory_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    made, _ = create_project(Path("."), tasks(2))
    assert {each.name for each in Path(".").iterdir()} == {"project.json", "guidelines.md", "labels.sqlite3"}
    assert (made.title, stat.S_IMODE(here.stat().st_mode)) == ("here", 0o700)
    assert open_project(here) == made
    with pytest.raises(DataError, match="is a project already; give another name, or open it: konomi label "):
        create_project(here, tasks(2))


def test_files_of_a_project_that_an_editor_gave_a_byte_order_mark(tmp_path: Path) -> None:
    project = tmp_path / "p"
    before, _ = create_project(project, tasks(1))
    for name in ("project.json", "guidelines.md"):
        (project / name).write_bytes(b"\xef\xbb\xbf" + (project / name).read_bytes())
    assert open_project(project) == before
    assert not before.guidelines().startswith("\ufeff")


def test_what_cannot_be_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories that others may not enter; whoever runs the tests as root may, so that the system's word is put in."""
    exists = Path.exists

    def forbidden(path: Path) -> bool:
        if "away" in path.parts:
            raise PermissionError(13, "Permission denied")
        return exists(path)

    monkeypatch.chdir(tmp_path)
    project, _ = create_project(Path("people"), tasks(1))
    with project.store() as store:
        work(store, add_person(store, "Aki")[0])
        exported = collect(store)
    monkeypatch.setattr(Path, "exists", forbidden)
    for arguments in (["label", "away"], ["export", "people", "--out", "away"]):
        assert konomi(*arguments, code=1).stderr == "konomi: away: cannot be looked up: Permission denied\n"
    for call in (lambda: create_project(Path("away"), tasks(1)), lambda: write_export(exported, Path("away"))):
        with pytest.raises(RunError, match="away: cannot be looked up: Permission denied"):
            call()
    monkeypatch.undo()


def test_tasks_come_from_a_file_of_candidates(tmp_path: Path) -> None:
    made = [Task(f"今日は {n}", (Candidate("晴れ", {"model": "m"}), Candidate("雨")), {"n": n}) for n in range(2)]
    write_records(tmp_path / "candidates.jsonl", made)
    given = tasks_of(tmp_path / "candidates.jsonl")
    assert given == [NewTask.of(task) for task in read_tasks(tmp_path / "candidates.jsonl")]
    (tmp_path / "empty").mkdir()
    project, imported = create_project(tmp_path / "empty", given)
    assert (project.lang, project.title, imported.added) == ("ja", "empty", 2)
    assert create_project(tmp_path / "en", given, lang="en")[0].lang == "en"
    german = [NewTask(each.prompt, each.candidates, lang="de") for each in given]
    assert create_project(tmp_path / "de", german)[0].lang == "ja"  # the page does not speak German


def test_what_cannot_become_a_project(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for there in ("full", "full/x"):
        with pytest.raises(DataError, match=f"{there}: already exists and is no project; give another name or remove it"):
            create_project(tmp_path / there, tasks(1))
    with pytest.raises(DataError, match="no tasks: there is nothing to label"):
        create_project(tmp_path / "p", [])
    with pytest.raises(RunError, match="x/p: cannot be made: Not a directory"):
        create_project(tmp_path / "full" / "x" / "p", tasks(1))
    assert [each.name for each in tmp_path.iterdir()] == ["full"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2; this konomi reads up to version 1: update konomi"),
        ({"version": None}, "not the settings of a project: there is no version"),
        ({"titel": "x"}, r"titel: unknown key; did you mean title\?"),
        ({"title": None}, r"title: Input should be a valid string"),
        (
            {"languages": ["ja", "fr"]},
            r"Project: languages \['ja', 'fr'\] and lang 'en'; some of ja, en are needed, and lang one of these",
        ),
        ({"languages": []}, "languages: .*at least 1 item.*"),
        ({"languages": ["ja"]}, r"Project: languages \['ja'\] and lang 'en'; .*"),
        ({"settings": 3}, "settings: .*"),
        ({"settings": {"overlap": 2}}, "no 'settings.repeats'; add it"),
        ({"label": {"strenght": True}}, r"label.strenght: unknown key; did you mean strength\?"),
        ({"label": {"edit": 1}}, r"label.edit: Input should be a valid boolean \(got 1\)"),
        (
            {"settings": {**Settings().model_dump(), "overlp": 2}},
            r"settings.overlp: unknown key; did you mean overlap\?",
        ),
        (
            {"settings": {**Settings().model_dump(), "overlap": 0}},
            r"settings.overlap: .* greater than or equal to 1 .*",
        ),
    ],
)
def test_settings_that_were_edited_wrongly(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    create_project(tmp_path / "p", tasks(1))
    file = tmp_path / "p" / "project.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**content, **change}), encoding="utf-8")
    with pytest.raises(DataError, match=f"project.json: {message}$"):
        open_project(tmp_path / "p")


def test_what_is_no_project(tmp_path: Path) -> None:
    message = "nothing: no project.json there; konomi label PROJECT --candidates FILE makes a project"
    assert message in konomi("export", str(tmp_path / "nothing"), "--out", "o", code=2).stderr
    create_project(tmp_path / "p", tasks(1))
    file = tmp_path / "p" / "project.json"
    for text, content in (
        (b"{", "project.json: not JSON: "),
        (b"[]", "project.json: not the settings of a project"),
        (b"\xff", "project.json: not UTF-8 text"),
        (b'{"version":' + b"[" * 100_000, "not JSON: nested too deep"),
    ):
        file.write_bytes(text)
        with pytest.raises(DataError, match=content):
            open_project(tmp_path / "p")
    file.unlink()
    create_project(tmp_path / "half", tasks(1), title="x\ud800")
    half = tmp_path / "half" / "project.json"
    half.write_bytes(half.read_bytes().replace("\ufffd".encode(), b"\\ud800"))
    assert "ud800" in half.read_text()
    assert open_project(tmp_path / "half").title == "x\ufffd"  # which a page can hold
    file.mkdir()
    with pytest.raises(DataError, match=r"project\.json: cannot be read: a directory"):
        open_project(tmp_path / "p")


def test_guidelines_that_cannot_be_read(tmp_path: Path) -> None:
    project, _ = create_project(tmp_path / "p", tasks(1))
    file = tmp_path / "p" / "guidelines.md"
    file.write_text("# 自分の", encoding="utf-8")
    assert project.guidelines() == "# 自分の"
    file.write_bytes("日本".encode("shift_jis"))
    with pytest.raises(DataError, match=r"guidelines\.md: not UTF-8 text \(invalid start byte at byte 0\).*Save it as UTF-8"):
        project.guidelines()
    file.unlink()
    with pytest.raises(DataError, match=r"guidelines\.md: cannot be read: No such file or directory; write one: it may be empty"):
        project.guidelines()
