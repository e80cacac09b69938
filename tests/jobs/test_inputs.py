"""What a job depends on is known by its contents."""

from __future__ import annotations

from pathlib import Path

import pytest

from konomi.data.records import Prompt
from konomi.errors import ConfigError
from konomi.jobs.inputs import check_unchanged, inputs_of, prompts_digest
from konomi.runs.directory import RunDir


def test_what_settings_name_is_known_by_its_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commit = "0123456789abcdef0123456789abcdef01234567"
    files = (
        *("classifier/config.json", "classifier/model.safetensors", "taste.py", "pack/inner.py", "pack/__init__.py", "texts.csv"),
        f"hub/models--owner--model/snapshots/{commit}/config.json",
    )
    for file in files:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("one", encoding="utf-8")
    (tmp_path / "hub/models--owner--model/refs").mkdir()
    (tmp_path / "hub/models--owner--model/refs/main").write_text(commit, encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    settings = {
        "model": {"name": "owner/model"},
        "reward": {
            "kind": "sum",
            "parts": {
                "a": {"kind": "classifier", "name": "classifier", "label": "x"},
                "b": {"kind": "function", "name": "taste.py:f"},
                "c": {"kind": "function", "name": "pack.inner:f"},
                "d": {"kind": "function", "name": "pack:f"},
                "e": {"kind": "http", "url": "http://localhost/texts.csv"},
            },
        },
        "judges": {"j": {"kind": "classifier", "name": "embedded:asari"}, "k": {"kind": "classifier", "name": "no/such"}},
        "data": {"file": "texts.csv"},
        "several": {"name": ["taste.py:g", "classifier"]},
    }
    before = inputs_of(settings)
    parts = [f"reward.parts.{name}.name" for name in "abcd"]
    assert list(before) == ["model.name", *parts, "data.file", "several.name.0", "several.name.1"]
    assert before["model.name"] == {"name": "owner/model", "commit": commit}
    for file, changed in {
        "classifier/model.safetensors": {parts[0], "several.name.1"}, "taste.py": {parts[1], "several.name.0"},
        "pack/inner.py": {parts[2]}, "pack/__init__.py": {parts[3]}, "texts.csv": {"data.file"},
    }.items():  # fmt: skip
        (tmp_path / file).write_text("two", encoding="utf-8")
        now = inputs_of(settings)
        assert {path for path in now if now[path] != before[path]} == changed
        before = now
    (tmp_path / "classifier" / ".hidden").write_text("", encoding="utf-8")
    assert inputs_of(settings) == before


def test_settings_that_are_no_files_are_not_taken_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train", "v1.0", "project", "embedded"):
        (tmp_path / name).mkdir()
    settings = {
        "sample": {"prompts": "train"}, "data": {"split": "train", "column": "v1.0", "prompts": "train"},
        "models": {"a": {"revision": "v1.0", "name": "embedded:gemma3-270m"}}, "label": {"project": "project"},
    }  # fmt: skip
    assert list(inputs_of(settings)) == ["data.prompts"]


def test_a_run_of_an_older_konomi_read_each_text_once(tmp_path: Path) -> None:
    config = {"data": {"prompts": "p"}}
    copies = [Prompt("a"), Prompt("b", {"n": 1}), Prompt("b", {"n": 2}, copy=1)]
    now = {"data_digest": prompts_digest(copies), "inputs": {}, "model_revision": None}
    old = RunDir.create(tmp_path, "old", config, seed=0, extra={"data_digest": prompts_digest(copies[:2])})
    check_unchanged(old, now, copies)
    with pytest.raises(ConfigError, match="data_digest"):
        check_unchanged(old, now, [*copies, Prompt("c")])
    old.note(inputs={})
    with pytest.raises(ConfigError, match="data_digest"):
        check_unchanged(old, now, copies)
