"""Settings, data, checkpoints, runs and projects that are whole but for some damage: taken, or one message. Never a traceback,
never a run that is half written.

``KONOMI_FUZZ=5000 pytest tests/test_fuzz.py`` (or ``make fuzz``) tries more of them, others each time. Single files that nobody
would write are in test_hostile_files.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from command_line import konomi, sets
from furnished import JOBS, PIPE, furnish
from konomi.config import VERBS, DataConfig, ModelConfig, RewardData, SFTData, load_config, load_pipeline
from konomi.config.section import read_toml
from konomi.data.convert import FROM, convert_file
from konomi.data.examples import load_examples, read_labelled
from konomi.data.prompts import load_prompts
from konomi.errors import ConfigError, DataError, KonomiError, ModelError, RunError
from konomi.labelling.assignments import next_task, progress_of
from konomi.labelling.database import Store
from konomi.labelling.people import add_person, all_people
from konomi.labelling.project import create_project, open_project, tasks_of
from konomi.models.load import load_causal_lm
from konomi.training.checkpoints import Checkpoints
from test_hostile_files import BAD, bent, fuzzed
from tiny_run import tiny_trainer


def fewer(divisor: int) -> settings:
    """For examples that take longer."""
    return settings(fuzzed, max_examples=max(6, fuzzed.max_examples // divisor))


@st.composite
def damaged(draw: Any, data: bytes) -> bytes:
    """Bytes with some changed, cut off, repeated, or put in."""
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(out) - 1)) | st.integers(0, min(300, max(0, len(out) - 1))))  # heads matter most
        match draw(st.sampled_from(["flip", "cut", "put", "repeat", "zero"])):
            case "flip" if out:
                out[place] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del out[place:]
            case "put":
                out[place:place] = draw(st.binary(min_size=1, max_size=20))
            case "repeat":
                out[place:place] = out[place : place + draw(st.integers(1, 50))]
            case _:
                out[place : place + 8] = bytes(min(8, len(out) - place))
    return bytes(out)


# -- settings ----------------------------------------------------------------------------------------------------------


def toml(value: Any) -> str:
    """A value as TOML that a parser may refuse: null, infinities, halves of characters."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {toml(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(map(toml, value)) + "]" if isinstance(value, list) else json.dumps(value)


def write_toml(path: Path, content: dict[str, Any]) -> None:
    lines = (f"{json.dumps(str(key))} = {toml(value)}" for key, value in content.items())
    path.write_bytes("\n".join(lines).encode("utf-8", "replace"))


def whole_settings(verb: str, directory: Path) -> dict[str, Any]:
    """All settings of a job, with their values."""
    file = directory / f"{verb}.toml"
    file.write_text(JOBS[file.name], encoding="utf-8")
    content: dict[str, Any] = load_config(file, VERBS[verb].job).model_dump(mode="json", exclude_none=True)
    return content


def refused(result: Result) -> None:
    """One message, exit code 2."""
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), (result.output, result.exception)
    assert result.stderr.startswith("konomi: ") and "Traceback" not in result.stderr, result.stderr


@pytest.mark.parametrize("verb", [name.removesuffix(".toml") for name in JOBS])
@fewer(2)
@given(data=st.data())
def test_settings_of_every_verb(tmp_path: Path, verb: str, data: Any) -> None:
    content, file = whole_settings(verb, tmp_path), tmp_path / "bent.toml"
    write_toml(file, data.draw(bent(content)))
    try:
        load_config(file, VERBS[verb].job)
    except ConfigError:
        refused(konomi(verb, str(file), "--out", str(tmp_path / "out")))
        assert not (tmp_path / "out").exists()


@fewer(2)
@given(data=st.data())
def test_pipelines(tmp_path: Path, data: Any) -> None:
    whole, file = tmp_path / "pipe.toml", tmp_path / "bent.toml"
    whole.write_text(PIPE, encoding="utf-8")
    write_toml(file, data.draw(bent(read_toml(whole))))
    try:
        load_pipeline(file, tmp_path / "out")
    except ConfigError:
        refused(konomi("run", str(file), "--out", str(tmp_path / "out")))
        assert not (tmp_path / "out").exists()


# -- data --------------------------------------------------------------------------------------------------------------

PAIR = {"prompt": "p", "chosen": "c", "rejected": "d"}
RANKED = {"version": 1, "prompt": "p", "responses": ["a", "b", "c"], "ranks": [1, 2, 2], "rater": "r"}
TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
ROWS: list[dict[str, Any]] = [
    PAIR, RANKED, {"prompt": "p", "response": "r", "score": 1.5}, {"prompt": TALK[:1], "chosen": TALK[1:], "rejected": TALK[1:]},
    {"prompt": "p", "candidates": [{"text": "a", "model": "m"}, {"text": "b", "model": "n"}]}, {"messages": TALK},
    {"text": "t", "label": "good"}, {"prompt": "p", "completion": "c"},
]  # fmt: skip


def table(path: Path, rows: list[dict[str, Any]]) -> bytes:
    """Rows as a whole file of the format of its name."""
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path.read_bytes()
    if path.suffix in (".csv", ".tsv"):
        comma = "," if path.suffix == ".csv" else "\t"
        cells = [list(rows[0]), *([str(value).replace(comma, ";") for value in row.values()] for row in rows)]
        return "".join(comma.join(line) + "\n" for line in cells).encode()
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def readers(file: Path, out: Path, kind: str, to: str) -> list[Callable[[], object]]:
    name = str(file)
    return [
        lambda: convert_file(name, out / "out.jsonl", to, kind),
        lambda: load_prompts(DataConfig(prompts=name)),
        lambda: load_prompts(DataConfig(prompts=name, column="prompt", chat=True)),
        lambda: load_examples(SFTData(texts=name)),
        lambda: read_labelled(RewardData(file=name)),
        lambda: tasks_of(file),
    ]


@fuzzed
@given(
    data=st.data(), suffix=st.sampled_from([".jsonl", ".csv", ".tsv", ".parquet", ".txt"]), row=st.sampled_from(ROWS),
    kind=st.sampled_from(FROM), to=st.sampled_from(["pairs", "rankings", "scores", "candidates"]),
)  # fmt: skip
def test_files_of_rows(tmp_path: Path, data: Any, suffix: str, row: dict[str, Any], kind: str, to: str) -> None:
    directory = tmp_path / "data"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    file = directory / f"rows{suffix}"
    whole = table(file, [row, {**row, **({"prompt": "other"} if isinstance(row.get("prompt"), str) else {})}])
    file.write_bytes(data.draw(damaged(whole)))
    for read in readers(file, directory, kind, to):
        with suppress(DataError, ConfigError):
            read()
        made = {path.name for path in directory.iterdir()} - {file.name}
        assert made in (set(), {"out.jsonl", "out.jsonl.manifest.json"}), made


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory, trainer = tmp_path_factory.mktemp("saved") / "checkpoints", tiny_trainer(episodes=32)
    for _ in range(2):
        trainer.step()
        Checkpoints(directory, keep=2).save(trainer.update, trainer.save)
    return directory


@fewer(2)
@given(data=st.data())
def test_checkpoints(tmp_path: Path, checkpoints: Path, data: Any) -> None:
    """The damaged one is refused, and the one before it is loaded; or it is whole as far as anybody can tell."""
    directory = tmp_path / "checkpoints"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(checkpoints, directory)
    files = sorted(path.name for path in (directory / "update-00002").iterdir())
    file, other = (directory / "update-00002" / data.draw(st.sampled_from(files)) for _ in "ab")
    match data.draw(st.sampled_from(["damage", "gone", "swap", "older", "directory"])):
        case "damage":
            file.write_bytes(data.draw(damaged(file.read_bytes()) | st.sampled_from(BAD)))
        case "gone":
            file.unlink()
        case "swap":
            one, two = file.read_bytes(), other.read_bytes()
            file.write_bytes(two)
            other.write_bytes(one)
        case "older":
            shutil.copyfile(directory / "update-00001" / file.name, file)
        case _:
            file.unlink()
            file.mkdir()
    trainer, warned = tiny_trainer(episodes=32), list[str]()
    update = Checkpoints(directory, keep=2).load_newest(trainer.load, warned.append)
    assert update == 2 - len(warned) and trainer.update >= 0
    shutil.rmtree(directory / "update-00001")
    with suppress(RunError):
        Checkpoints(directory, keep=2).load_newest(tiny_trainer(episodes=32).load, warned.append)


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world with a run in it that was stopped after its last update but one."""
    world = furnish(tmp_path_factory.mktemp("stopped"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        settings = sets("run.name=run", "ppo.episodes=32", "compare.prompts=4", "evaluation.every=1", "run.keep=2")
        konomi("ppo", "ppo.toml", *settings, code=0)
    run = world / "runs" / "run"
    info = json.loads((run / "run.json").read_text("utf-8"))
    (run / "run.json").write_text(json.dumps({**info, "status": "stopped"}), encoding="utf-8")
    shutil.rmtree(run / "checkpoints" / "update-00002")
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best", "update-00001"}
    return world


RUN_FILES = ["run.json", "config.json", "metrics.jsonl", "samples.jsonl", "evaluations.jsonl", "compare.json"]
COMMANDS = (["ppo", "--resume", "runs/run"], ["compare", "runs/run", "--prompts", "2"], ["report", "runs/run"],
            ["compare", "runs/run", "--people", "people"], ["doctor", "runs/run"])  # fmt: skip


@fewer(6)
@given(data=st.data(), command=st.sampled_from(COMMANDS))
def test_runs(tmp_path: Path, stopped: Path, data: Any, command: list[str]) -> None:
    """After a refusal the run is as it was; after success it is finished or as it was."""
    world = tmp_path / "world"
    shutil.rmtree(world, ignore_errors=True)
    shutil.copytree(stopped, world)
    run = world / "runs" / "run"
    places = sorted(path.relative_to(run) for path in run.rglob("*"))
    place = run / data.draw(st.sampled_from([*map(Path, RUN_FILES), *places]))
    how = data.draw(st.sampled_from(["bent", "bent", "damage", "gone", "empty"]))
    if how == "gone" or place.is_dir():
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    elif how == "bent" and place.suffix in (".json", ".jsonl"):  # one of its lines, or all of it
        lines = place.read_text("utf-8").splitlines() if place.suffix == ".jsonl" else [place.read_text("utf-8")]
        number = data.draw(st.integers(0, len(lines) - 1))
        lines[number] = json.dumps(data.draw(bent(json.loads(lines[number]))))
        place.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "replace"))
    else:
        place.write_bytes(b"" if how == "empty" else data.draw(damaged(place.read_bytes())))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        result = konomi(*command)
    told = (command, place.relative_to(run), result.output[-2000:], result.exception)
    assert result.exit_code in (0, 1, 2) and isinstance(result.exception, (SystemExit, type(None))), told
    assert "Traceback" not in result.output, told
    assert [path for path in run.rglob(".*") if path.name not in (".lock", ".gitattributes")] == [], told
    if result.exit_code == 0 and command[0] == "ppo":
        assert json.loads((run / "run.json").read_bytes())["status"] == "finished", told


def test_records_of_a_run_that_konomi_does_not_write(tmp_path: Path, stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(stopped, tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    run = Path("runs/run")
    info = json.loads((run / "run.json").read_bytes())
    guards, best = {**info, "guards": [3]}, {**info, "best": {"update": 1}}
    files = (
        ("run.json", guards), ("run.json", best), ("samples.jsonl", {"update": "2"}), ("metrics.jsonl", {"update": 1}),
        ("evaluations.jsonl", {"update": 0, "scores": ["high"]}),
    )  # fmt: skip
    for name, wrong in files:
        file, before = run / name, (run / name).read_bytes()
        file.write_text(json.dumps(wrong) + "\n", encoding="utf-8")
        result = konomi("ppo", "--resume", "runs/run", code=2)
        assert result.stderr.splitlines()[-1].startswith("konomi: runs/run: one of its files holds what konomi does not write")
        assert isinstance(result.exception, SystemExit) and "Traceback" not in result.stderr
        file.write_bytes(before)


# -- projects and models -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("project")
    texts = [[{"text": "a", "model": "m"}, {"text": f"b{i}", "model": "n"}] for i in range(5)]
    rows = [{"prompt": f"prompt {i}", "candidates": each} for i, each in enumerate(texts)]
    (directory / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    made, _ = create_project(directory / "p", tasks_of(directory / "c.jsonl"))
    store = Store(made.labels, made.settings)
    add_person(store, "Aki")
    store.close()
    return directory / "p"


@fuzzed
@given(data=st.data())
def test_projects(tmp_path: Path, project: Path, data: Any) -> None:
    place = tmp_path / "p"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(project, place)
    file = place / data.draw(st.sampled_from(sorted(path.name for path in place.iterdir() if path.is_file())))
    file.write_bytes(data.draw(damaged(file.read_bytes())))
    with suppress(KonomiError):
        opened = open_project(place)
        store = Store(opened.labels, opened.settings)
        try:
            for person in all_people(store):
                next_task(store, person, 1.8e9)
                progress_of(store, person, 1.8e9)
        finally:
            store.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_tiny(tmp_path_factory.mktemp("model"), "llama")


@fewer(4)
@given(data=st.data())
def test_weights(model: Path, data: Any) -> None:
    file = model / "model.safetensors"
    own = file.read_bytes()
    try:
        file.write_bytes(data.draw(damaged(own)))
        with suppress(ModelError):
            load_causal_lm(ModelConfig(name=str(model)))
    finally:
        file.write_bytes(own)
