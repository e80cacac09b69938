"""`konomi config VERB`: the printed file is the defaults."""

from __future__ import annotations

import re
from typing import Any

import pytest
from typer.testing import CliRunner

from konomi.cli import app
from konomi.config import VERBS, build
from konomi.config.section import tomllib

REQUIRED = {
    "sft": {"data": {"texts": "t.jsonl"}},
    "judge": {"candidates": "c.jsonl"},
    "label": {"candidates": "c.jsonl", "label": {"project": "people"}},
    "reward": {"data": {"file": "r.jsonl"}},
}


def printed(verb: str) -> str:
    result = CliRunner().invoke(app, ["config", verb])
    assert result.exit_code == 0, result.output
    return result.output


def merged(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    return a | {k: merged(a.get(k, {}), v) if isinstance(v, dict) else v for k, v in b.items()}


@pytest.mark.parametrize("verb", VERBS)
def test_the_printed_file_says_what_an_empty_one_says(verb: str) -> None:
    data, required = tomllib.loads(printed(verb)), REQUIRED.get(verb, {})
    kind = VERBS[verb].job
    assert build(kind, merged(data, required)) == build(kind, required)


@pytest.mark.parametrize("verb", VERBS)
def test_every_setting_is_in_it_under_what_it_means(verb: str) -> None:
    def check(kind: Any) -> None:
        for name, field in kind.model_fields.items():
            if section := getattr(field.annotation, "model_fields", None) and field.annotation:
                check(section)
                continue
            assert re.search(rf"^(# )?{name} =|^(# )?\[(\w+\.)*{name}(\.NAME)?\]", text, re.M), name
            assert " ".join((field.description or "").split()) in prose, name

    text = printed(verb)
    prose = text.replace("\n# ", " ")
    assert max(map(len, text.splitlines())) <= 130
    check(VERBS[verb].job)


def test_a_verb_without_a_job_file_is_refused_with_those_that_have_one() -> None:
    result = CliRunner().invoke(app, ["config", "trim"])
    assert result.exit_code == 2
    assert "ppo" in result.output and "reward" in result.output
