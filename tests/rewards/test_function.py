"""A Python function as a reward: how it is found, imported, called; what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from konomi.config import FunctionReward as Config
from konomi.errors import ConfigError, RunError
from konomi.rewards import build_reward, score
from konomi.rewards.function import FunctionReward
from refusals import refused as refused_call

TEXTS = {"prompts": ["a", "bb"], "responses": ["c", "d"]}
COLUMNS = {"answer": [3, 4], "topic": ["x", "y"]}


def made(tmp_path: Path, code: str, name: str = "reward", file: str = "own.py") -> FunctionReward:
    path = tmp_path / file
    path.write_text(code, encoding="utf-8")
    return FunctionReward(Config(kind="function", name=f"{path}:{name}"))


def call(reward: FunctionReward) -> list[Any]:
    return reward(["ac", "bbd"], columns=COLUMNS, **TEXTS)


def refused(name: str | Path, *parts: str) -> None:
    refused_call(lambda: FunctionReward(Config(kind="function", name=str(name))), "reward.name: ", *parts, error=ConfigError)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def reward(texts): return [len(t) for t in texts]", [2.0, 3.0]),
        ("def reward(responses, answer): return [len(r) + a for r, a in zip(responses, answer)]", [4.0, 5.0]),
        ("def reward(*, prompts): return [len(p) for p in prompts]", [1.0, 2.0]),
        ("def reward(texts, scale=10): return [scale] * len(texts)", [10.0, 10.0]),
        ("def reward(texts, topic=None): return [ord(t) for t in topic]", [120.0, 121.0]),
        ("def reward(**given): return [len(given)] * 2", [5.0, 5.0]),
        ("def reward(texts, *rest, **given): return [len(given)] * 2", [4.0, 4.0]),
        ("import numpy\ndef reward(texts): return numpy.arange(2)", [0.0, 1.0]),
        ("import torch\ndef reward(texts): return torch.arange(2.0)", [0.0, 1.0]),
        ("class R:\n def __call__(self, texts): return [1, 2]\nreward = R()", [1.0, 2.0]),
        ("import functools\ndef f(n, texts): return [n] * 2\nreward = functools.partial(f, 7)", [7.0, 7.0]),
        ("def reward(texts): return [[(0, 1), (1, 0.5)], 2]", [[(0, 1.0), (1, 0.5)], 2.0]),
        ("# 日本語\ndef reward(texts): return [t.count('語') for t in texts]", [0.0, 0.0]),
    ],
)
def test_a_function_gets_the_arguments_that_it_names(tmp_path: Path, code: str, expected: list[Any]) -> None:
    reward = made(tmp_path, code)
    reward.check(COLUMNS)
    assert call(reward) == expected


def test_the_function_gets_copies_and_own_names_win_over_columns(tmp_path: Path) -> None:
    reward = made(tmp_path, "def reward(texts, responses):\n    texts.clear()\n    return [len(r) for r in responses]")
    texts = ["a", "b"]
    assert reward(texts, prompts=["a", "b"], responses=["", "c"], columns={"responses": ["another"] * 2}) == [0.0, 1.0]
    assert texts == ["a", "b"]


def test_a_missing_column_is_told_before_the_run(tmp_path: Path) -> None:
    reward = made(tmp_path, "def reward(texts, gold, answer): return [0] * len(texts)")
    with pytest.raises(ConfigError, match=r"needs 'gold'.*available: texts, prompts, responses, answer, topic"):
        reward.check(COLUMNS)
    with pytest.raises(ConfigError, match="needs 'gold'"):
        call(reward)
    with pytest.raises(ConfigError, match="needs 'gold', 'answer'"):
        build_reward(Config(kind="function", name=reward.name), columns=[])
    assert build_reward(Config(kind="function", name=reward.name), columns=["gold", "answer"]).name == reward.name


def test_a_module_of_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "konomi_test_package").mkdir()
    (tmp_path / "konomi_test_package" / "rules.py").write_text("def f(texts): return [1] * len(texts)", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    reward = FunctionReward(Config(kind="function", name="konomi_test_package.rules:f"))
    assert call(reward) == [1.0, 1.0]
    assert sys.path == before


def test_a_file_imports_its_neighbours_and_hides_no_module(tmp_path: Path) -> None:
    import json

    (tmp_path / "konomi_test_neighbour.py").write_text("VALUE = 5", encoding="utf-8")
    code = "from dataclasses import dataclass\nfrom konomi_test_neighbour import VALUE\n"
    code += "@dataclass\nclass A:\n    x: 'int' = VALUE\n"
    before = list(sys.path)
    reward = made(tmp_path, code + "def reward(texts): return [A().x] * len(texts)", file="json.py")
    assert call(reward) == [5.0, 5.0]
    assert sys.modules["json"] is json
    assert sys.path == before


def test_two_files_with_one_name(tmp_path: Path) -> None:
    rewards, before = [], list(sys.path)
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()  # a file may take itself off the search path
        code = f"import sys\ndel sys.path[0]\ndef reward(texts): return [{number}] * len(texts)"
        rewards.append(made(tmp_path / str(number), code))
    assert [call(reward)[0] for reward in rewards] == [1.0, 2.0]
    assert sys.path == before


def test_what_cannot_be_found(tmp_path: Path) -> None:
    for name in ("rules", "rules:", ":f", "rules:f()", "rules:a.b"):
        refused(name, name, "write package.module:function or path/to/file.py:function")
    refused(f"{tmp_path}/none.py:f", "none.py: no such file")
    refused("konomi_no_such_module:f", "cannot be imported: ModuleNotFoundError", "konomi_no_such_module")
    refused(".relative:f", "cannot be imported: TypeError")


@pytest.mark.parametrize(
    ("code", "part"),
    [
        ("import konomi_no_such_module", "ModuleNotFoundError: No module named 'konomi_no_such_module'"),
        ("def f(:", "SyntaxError"),
        ("x = 1\ny = unknown", "own.py, line 2"),
        ("open('/no/such/file')", "FileNotFoundError"),
        ("raise RuntimeError('no GPU')", "RuntimeError: no GPU"),
        ("def other(texts): pass\n_hidden = print\nVALUE = 1", "has no 'f'; callable there: other"),
        ("", "callable there: nothing"),
        ("f = 3", "is a int; a function is needed"),
        ("async def f(texts): return [1]", "async function"),
        ("def f(texts, /): return [1]", "argument 'texts' cannot be given by name"),
        ("f = max", "its arguments cannot be read; wrap it in a def"),
    ],
)
def test_what_cannot_be_imported_or_called(tmp_path: Path, code: str, part: str) -> None:
    path = tmp_path / "own.py"
    path.write_text(code, encoding="utf-8")
    before = {*sys.modules}
    refused(f"{path}:f", part)
    left = any(name.startswith("_konomi_reward_own") for name in {*sys.modules} - before)
    assert left is not ("Error" in part or "line 2" in part)  # a failed import leaves no module behind


def test_a_failure_in_the_run_saves_the_texts(tmp_path: Path) -> None:
    for code, part in (
        ("(texts): raise KeyError('k')", "KeyError: 'k'. The texts are in"),
        ("(gold): return [1]", "ConfigError"),
    ):
        reward: Any = made(tmp_path, f"def reward{code}")
        saved = tmp_path / "failed.jsonl"
        with pytest.raises(RunError) as caught:
            score(reward, TEXTS["prompts"], TEXTS["responses"], COLUMNS, save_to=saved)
        assert part in str(caught.value)
        assert len(saved.read_text(encoding="utf-8").splitlines()) == 2
