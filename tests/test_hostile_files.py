"""Files that nobody would write on purpose: each reader takes them, or says in one message what is wrong. Never a traceback.

``KONOMI_FUZZ=5000 pytest tests/test_hostile_files.py`` tries more of them.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from konomi.cli import app
from konomi.config import ModelConfig, PPOJob, load_config
from konomi.data.formats import read_records
from konomi.data.row_files import file_rows
from konomi.errors import ConfigError, DataError, KonomiError, ModelError
from konomi.labelling.project import open_project
from konomi.models.embedded import is_complete
from konomi.models.load import load_causal_lm
from konomi.models.reward_files import read_facts
from konomi.models.text_baseline import read_text_baseline
from konomi.report.page import write_report
from konomi.runs.directory import RunDir
from konomi.web.followed_run import FollowedRun
from tiny import save_tiny

fuzzed = settings(
    max_examples=int(os.environ.get("KONOMI_FUZZ", "40")), deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip

numbers = st.one_of(
    st.integers(), st.floats(), st.sampled_from([10**400, -(2**63), 2**64, 1e308, -0.0]), st.booleans(), st.none()
)
texts = st.one_of(st.text(max_size=12), st.sampled_from(["", "\x00", "\ud800", "a" * 5000, "../..", "\x1b[2J", "1e999"]))
values = st.recursive(
    st.one_of(numbers, texts), lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4))
)
DEEP = [b"[" * 100_000, b'{"a":' * 5_000, b"[" * 900 + b"]" * 900]
BAD = [b"", b"\xff\xfe\x00", b"\xef\xbb\xbf{}", b"null", b"[]", b"{}", b"0", b"NaN", b"-Infinity", b"1e999", b"9" * 5000, *DEEP]


@st.composite
def bent(draw: Any, whole: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with some values, however deep, replaced or taken out."""
    copy = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, 3))):
        here: Any = copy
        while True:
            if isinstance(here, dict) and here:
                key: Any = draw(st.sampled_from(sorted(here)))
            elif isinstance(here, list) and here:
                key = draw(st.integers(0, len(here) - 1))
            else:
                break
            if not isinstance(here[key], (dict, list)) or not here[key] or draw(st.booleans()):
                if draw(st.integers(0, 4)):
                    here[key] = draw(values)
                else:
                    del here[key]
                break
            here = here[key]
    return copy


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


def no_files(directory: Path) -> Iterator[Path]:
    """What stands where a file should, and must not be read for ever."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    (directory / "directory").mkdir()
    os.mkfifo(directory / "pipe")
    (directory / "loop").symlink_to(directory / "loop")
    (directory / "zero").symlink_to("/dev/zero")
    (directory / "gone").symlink_to(directory / "nothing")
    yield from (directory / name for name in ("directory", "pipe", "loop", "zero", "gone"))


# one file and its reader

JUNK = st.one_of(st.binary(max_size=200), st.sampled_from(BAD))
PROJECT = {
    "version": 1, "title": "t", "created": 1.0, "lang": "en", "languages": ["en"], "settings": {"votes": 1, "repeat": 0.1},
}  # fmt: skip
NOTE = {"version": 1, "base": "x", "files": {"a": {"size": 1, "sha256": "0"}}}
READERS: dict[str, tuple[Any, Callable[[Path], Any], type[KonomiError]]] = {
    "job.toml": (st.text(max_size=80).map(str.encode), lambda path: load_config(path, PPOJob), ConfigError),
    "project.json": (st.one_of(bent(PROJECT), values).map(encoded), lambda path: open_project(path.parent), DataError),
    "reward.json": (st.one_of(bent(NOTE), values).map(encoded), lambda path: read_facts(path.parent), DataError),
    "manifest.json": (st.one_of(bent(NOTE), values).map(encoded), lambda path: is_complete(path.parent), ()),  # never
}


@pytest.mark.parametrize("name", READERS)
@fuzzed
@given(data=st.data())
def test_one_file(tmp_path: Path, name: str, data: Any) -> None:
    content, read, error = READERS[name]
    (tmp_path / name).write_bytes(data.draw(JUNK | content))
    with suppress(error):
        read(tmp_path / name)


PATHS = ["ppo.episodes", "model", "model.name", "reward", "rollout.response_tokens", "a.b", "judges.x.y.z", "ppo", "run.seed"]
WORDS = ["[" * 5000, "1e999", "nan", "9" * 5000, "{a=1}", "[1, 2]", "1979-05-27", '"\\u0000"', "", "a=b=c", "\udcff", "true"]


@fuzzed
@given(st.lists(st.tuples(st.sampled_from(PATHS), st.one_of(st.sampled_from(WORDS), texts, values.map(json.dumps)))))
def test_set(tmp_path: Path, items: list[tuple[str, str]]) -> None:
    job = 'model.name = "m"\ndata.prompts = "p.jsonl"\nreward = {kind = "function", name = "a.py:b"}\n'
    (tmp_path / "job.toml").write_text(job, encoding="utf-8")
    overrides = [f"{path}={text}" for path, text in items] + ["a"] * (len(items) == 3)
    with suppress(ConfigError):
        load_config(tmp_path / "job.toml", PPOJob, overrides)
    with pytest.raises(ConfigError):
        load_config(tmp_path / "job.toml", PPOJob, [".".join(["a"] * 5000) + "=1"])


# data


ROWS = {"prompt": "p", "response": "r", "chosen": "c", "rejected": "d", "score": 1, "candidates": [{"text": "a"}, {"text": "b"}]}


@fuzzed
@given(
    st.sampled_from([".jsonl", ".csv", ".json", ".parquet", ".tsv"]),
    st.one_of(st.binary(max_size=200), st.lists(bent(ROWS), max_size=3)),
    st.sampled_from(["pairs", "scores", "candidates", "rankings"]),
)
def test_data(tmp_path: Path, suffix: str, rows: Any, kind: str) -> None:
    data = rows if isinstance(rows, bytes) else b"\n".join(map(encoded, rows))
    file = tmp_path / f"data{suffix}"
    file.write_bytes(data)
    with suppress(DataError):
        list(file_rows(file))
    with suppress(DataError):
        read_records(file, kind)


# runs


def run_of(directory: Path, verb: str) -> dict[str, Any]:
    """The files of a small run, as Python values."""
    metrics = [
        {"update": i, "time": 1.0, "ppo/mean_scores": i, "objective/kl": 1, "eval/loss": 1, "sft/loss": 2} for i in range(3)
    ]
    numbers = ("score_mean", "score_std", "kl", "length", "distinct_1", "distinct_2", "perplexity")
    side = dict.fromkeys(numbers, 1.0)
    config = {"model": {"name": "m"}, "data": {"prompts": "p"}, "reward": {"kind": "function", "name": "a"}, "ppo": {"kl_cap": 9}}
    info = {"version": 1, "name": "r", "status": "finished", "reason": None, "verb": verb, "machine": {"cpu": "x"}, "inputs": {}}
    text = {"prompt": "p", "before": "a", "after": "b", "score_before": 1, "score_after": 2, "held_out": True}
    gap = {"mean": 1.0, "low": 0.0, "high": 2.0, "count": 2}
    return {
        "run.json": info, "config.json": config, "metrics.jsonl": metrics,
        "samples.jsonl": [{"update": 1, "prompt": "p", "response": "r", "score": 1.0, "kl": 0.1}],
        "compare.json": {"version": 1, "before": side, "after": side, "difference": gap, "texts": [text], "judges": {}},
        "land.json": {"version": 1, "share": 0.5, "target": 3.0, "points": [{"share": 0.5, "kl": 3.0}], "verdict": {"en": "a"}},
        "eval.json": {"version": 1, "task": "pairs", "held_out": {"accuracy": 0.7, "count": 3}, "train": {}, "texts": []},
    }  # fmt: skip


def put(directory: Path, files: dict[str, Any]) -> None:
    for name, value in files.items():
        lines = value if name.endswith(".jsonl") and isinstance(value, list) else [value]
        (directory / name).write_bytes(value if isinstance(value, bytes) else b"".join(encoded(each) + b"\n" for each in lines))


def look(directory: Path) -> None:
    """Everything that reads a run without a model."""
    with suppress(DataError):
        write_report(directory)
    with suppress(DataError):
        run = FollowedRun(directory)
        json.dumps([run.summary(0), run.data(), run.metrics(), run.samples.rows()], allow_nan=False)


@fuzzed
@given(st.data(), st.sampled_from(["ppo", "sft", "reward", ""]))
def test_run_directories(tmp_path: Path, data: Any, verb: str) -> None:
    files = run_of(tmp_path, verb)
    name = data.draw(st.sampled_from(sorted(files)))
    whole = {"all": files[name]}
    files[name] = data.draw(st.one_of(bent(whole).map(lambda each: each.get("all")), values, st.sampled_from(BAD)))
    put(tmp_path, files)
    look(tmp_path)


@pytest.mark.parametrize("verb", ["ppo", "sft", "reward", ""])
def test_a_whole_run_is_taken(tmp_path: Path, verb: str) -> None:
    """What the others damage is in order to begin with."""
    put(tmp_path, run_of(tmp_path, verb))
    assert "</html>" in write_report(tmp_path).read_text("utf-8")
    run = FollowedRun(tmp_path)
    described = run.summary(0)
    assert (described["status"], described["updates"], described["kl_cap"]) == ("finished", 2, 9)
    assert (len(run.metrics()[0]), len(run.samples.rows()[0])) == (3, 1)
    assert verb != "ppo" or (run.data() or {})["compare"]["version"] == 1


DAMAGE = {"run.json": (DEEP[0], b'{"version": 1, "inputs": 3}'), "config.json": (DEEP[0], b'{"model": 3}')}


@pytest.mark.parametrize(
    ("command", "name"),
    [
        *(([verb, "RUN"], name) for verb in ("report", "compare") for name in DAMAGE),
        *((["ppo", "--resume", "RUN"], name) for name in DAMAGE),
        *((["compare", "RUN", "--people", "P"], name) for name in DAMAGE),
        *((["blend", "RUN", "--kl", "3"], name) for name in DAMAGE),
        (["watch", "RUN"], "run.json"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_a_damaged_run_is_one_message_of_every_verb(
    command: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    files = run_of(run, "ppo")
    files["run.json"]["status"] = "stopped"
    for bad in DAMAGE[name]:
        put(run, {**files, name: bad})
        result = CliRunner().invoke(app, [str(run) if word == "RUN" else word for word in command])
        assert result.exit_code == 2, (bad, result.output)
        assert isinstance(result.exception, SystemExit), result.exception
        named = run if command[0] == "report" and b"model" in bad else run / name  # the page is made of several files
        (message,) = result.stderr.splitlines()
        assert message.startswith(f"konomi: {named}: "), message


# models


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), "llama")


@settings(fuzzed, max_examples=max(10, fuzzed.max_examples // 4))
@given(st.data())
def test_configs_of_models(model: Path, data: Any) -> None:
    names = ["config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json"]
    file = model / data.draw(st.sampled_from(names))
    own = file.read_bytes() if file.exists() else b"{}"
    try:
        file.write_bytes(data.draw(bent(json.loads(own)).map(encoded) | st.sampled_from(BAD)))
        with suppress(ModelError):
            load_causal_lm(ModelConfig(name=str(model)))
    finally:
        file.write_bytes(own)


@settings(fuzzed, max_examples=max(10, fuzzed.max_examples // 4))
@given(
    st.one_of(st.binary(max_size=64), st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))),
    st.binary(max_size=200),
)
def test_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: Any, rest: bytes) -> None:
    start = head if isinstance(head, bytes) else struct.pack("<IQQ", *head)
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + start + rest)
    monkeypatch.setenv("KONOMI_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ModelError):
        load_causal_lm(ModelConfig(name=str(tmp_path / "m.gguf")))


# what is no file


def test_what_stands_where_a_file_should(tmp_path: Path, model: Path) -> None:
    """A directory, a pipe that nobody writes, a link to itself, a device without an end, a link to nothing."""

    def at(name: str, read: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def replaced(bad: Path) -> None:
            place = tmp_path / "place"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            put(place, run_of(place, "ppo"))
            (place / name).unlink(missing_ok=True)
            (place / name).symlink_to(bad)
            read(place)

        return replaced

    readers: dict[str, Callable[[Path], Any]] = {
        "toml": lambda bad: load_config(bad, PPOJob),
        "project": at("project.json", open_project),
        "facts": at("reward.json", read_facts),
        "text baseline": at("text_baseline.safetensors", read_text_baseline),
        **{name: at(name, write_report) for name in run_of(tmp_path, "ppo")},
        **{f"open {name}": at(name, lambda place: RunDir.open(place)) for name in ("run.json",)},
        "watch": at("metrics.jsonl", lambda place: FollowedRun(place).metrics()),
        "jsonl": at("x.jsonl", lambda place: list(file_rows(place / "x.jsonl"))),
        "csv": at("x.csv", lambda place: list(file_rows(place / "x.csv"))),
        "parquet": at("x.parquet", lambda place: list(file_rows(place / "x.parquet"))),
        "gguf": at("x.gguf", lambda place: load_causal_lm(ModelConfig(name=str(place / "x.gguf")))),
        "model": at("config.json", lambda place: load_causal_lm(ModelConfig(name=str(place)))),
    }
    for reader, read in readers.items():
        for bad in no_files(tmp_path / "bad"):
            try:
                read(bad)
            except KonomiError:
                continue
            except Exception as error:
                pytest.fail(f"{reader} of a {bad.name}: {type(error).__name__}: {error}")
