"""A run in one call, and what else takes plain strings, lists and functions."""

from __future__ import annotations

import datetime
import signal
from pathlib import Path
from typing import Any

import pytest

import konomi
from konomi.config import ClassifierReward, DataConfig, FunctionReward, HttpReward, ModelReward, PPOConfig, RolloutConfig
from konomi.data.prompts import as_prompts
from konomi.data.records import Prompt
from konomi.jobs.revisit import compare_run
from konomi.rewards import as_reward, reward_config
from konomi.runs.directory import RunDir
from konomi.runs.observer import Observer
from tiny import save_tiny, tiny_tokenizer
from tiny_run import without_dropout

TEXTS = ["the cat", "a", "once upon a time", "rain", "we saw", "hello there", "q", "zebras run far", "by night", "far"]
SMALL: dict[str, Any] = {
    "episodes": 8, "batch_size": 4, "mini_batch_size": 2, "baseline_samples": 4, "response_tokens": (2, 4),
    "data": {"held_out": 0.4}, "run": {"mlflow": False},
}  # fmt: skip


def count_a(responses: list[str]) -> list[int]:
    return [response.count("a") for response in responses]


def longer_of_the_same_name() -> Any:
    def other(responses: list[str]) -> list[int]:
        return [len(response) for response in responses]

    other.__qualname__ = "count_a"
    return other


def test_one_call_with_a_list_and_a_function(tmp_path: Path, fresh_accelerator: None) -> None:
    lm = save_tiny(tmp_path / "lm", "gpt2")
    result = konomi.train(str(lm), TEXTS, count_a, out=str(tmp_path / "runs"), observer=Observer(), **SMALL)
    run = RunDir.open(result["run"])
    assert run.info["status"] == "finished"
    assert (Path(result["model"]) / "model.safetensors").is_file()
    # another process can go on with it: the prompts are in it, and the function is named
    job = run.config
    assert sorted(each.text for each in konomi.load_prompts(konomi.DataConfig(**job["data"]))) == sorted(TEXTS)
    assert job["reward"] == {"kind": "function", "name": f"{__name__}:count_a"}
    assert job["ppo"]["episodes"] == 8
    again = konomi.write_report(str(run.path))
    assert again == run.report


def test_a_run_is_resumed_as_it_began_and_from_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_accelerator: None
) -> None:
    monkeypatch.chdir(tmp_path)
    lm = save_tiny("lm", "gpt2").absolute()
    given = {**SMALL, "run": {"mlflow": False, "save_every": 1, "name": "one"}}
    konomi.train(lm, TEXTS, count_a, observer=Observer(), **given)
    with pytest.raises(konomi.ConfigError, match="finished"):
        konomi.train(lm, TEXTS, count_a, resume="runs/one", observer=Observer())
    run = RunDir.open("runs/one")
    before = run.read_metrics()
    run.set_status("stopped")
    moved = (tmp_path / "runs" / "one").rename(tmp_path / "moved")
    for arguments, settings, message in (
        ((lm, TEXTS, count_a), {"learning_rate": 1e-3}, "learning_rate"),
        ((lm, TEXTS, "embedded:asari"), {}, "began with reward"),
        (("other", TEXTS, count_a), {}, "began with model"),
        ((lm, "prompts.txt", count_a), {}, "began with prompts"),
        ((lm, [{"text": text, "gold": 1} for text in TEXTS], count_a), {}, "columns_digest"),
        ((lm, TEXTS, longer_of_the_same_name()), {}, "has changed since it began: reward = "),
    ):
        with pytest.raises(konomi.ConfigError, match=message):
            konomi.train(*arguments, resume=moved, observer=Observer(), **settings)
    monkeypatch.chdir("/")
    again = konomi.train(lm, TEXTS, count_a, resume=moved, observer=Observer())
    assert (again["status"], RunDir.open(moved).read_metrics()) == ("finished", before)
    found = compare_run(moved, konomi.CompareConfig(prompts=2), Observer())
    assert found["compare"]["prompts"] == 2


def test_a_run_that_ends_before_its_first_checkpoint_says_so_and_begins_again(tmp_path: Path, fresh_accelerator: None) -> None:
    lm, calls = save_tiny(tmp_path / "lm", "gpt2"), 0

    def interrupted(responses: list[str]) -> list[int]:
        nonlocal calls
        calls += 1
        if calls == 3:  # the baseline, the first update, and in the middle of the second: Ctrl-C twice
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return [len(response) for response in responses]

    said = r"stopped at once by SIGINT; nothing was saved yet.*go on with: .*konomi ppo --resume "
    with pytest.raises(KeyboardInterrupt, match=said) as caught:
        konomi.train(lm, TEXTS, interrupted, out=tmp_path / "runs", observer=Observer(), **SMALL)
    assert [Path(place.path).name for place in caught.traceback] == ["test_one_call.py", "train.py"]
    (run,) = (tmp_path / "runs").iterdir()
    assert RunDir.open(run).info["status"] == "stopped"
    warned: list[str] = []
    observer = Observer()
    observer.warn = warned.append  # type: ignore[method-assign]
    assert konomi.train(lm, TEXTS, interrupted, resume=run, observer=observer)["updates"] == 2
    assert warned[0] == f"{run} has no checkpoint: it begins again, and its 1 recorded update is dropped"


def test_rows_with_values_that_json_cannot_hold(tmp_path: Path, fresh_accelerator: None) -> None:
    lm = save_tiny(tmp_path / "lm", "gpt2")
    day = datetime.date(2024, 5, 6)
    rows = [{"text": text, "picture": b"\x89PNG", "day": day, "set": {1}} for text in TEXTS]
    seen: list[str] = []
    result = konomi.train(
        str(lm), rows, lambda responses, day: [float(seen.append(each) or 1) for each in day],  # type: ignore[func-returns-value]
        out=str(tmp_path / "runs"), observer=Observer(), **SMALL,
    )  # fmt: skip
    run = RunDir.open(result["run"])
    assert run.info["status"] == "finished"
    assert set(seen) == {"2024-05-06"}
    said: list[str] = []
    assert as_prompts(rows, say=said.append)[0] == Prompt(TEXTS[0], {"day": "2024-05-06"})
    assert said == ["prompts: columns left out, because JSON cannot hold their values: 'picture', 'set'"]


def test_settings_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(konomi.ConfigError, match="epsiodes: not a setting"):
        konomi.train("nowhere", TEXTS, count_a, epsiodes=8)
    with pytest.raises(konomi.ConfigError, match="compare: not a setting"):
        konomi.train("nowhere", TEXTS, count_a, compare=3)
    assert not list(tmp_path.iterdir())


def test_prompts_of_strings_rows_and_prompts() -> None:
    assert [each.text for each in as_prompts(["a", "b"])] == ["a", "b"]
    rows = as_prompts([{"question": "a", "topic": 1}, {"question": "b"}], DataConfig(column="question"))
    assert [(each.text, each.columns) for each in rows] == [("a", {"topic": 1}), ("b", {"topic": None})]
    assert as_prompts(rows) == rows
    own = [Prompt("What is 2+2?", {"text": "four", "text_": "five"})]
    assert as_prompts(own) == own
    said: list[str] = []
    assert len(as_prompts(["a", "a"], say=said.append)) == len(said) == 1
    for wrong, message in (("one text", "one string"), ([], "no rows"), ([{"x": 1}], "text"), ([3], r"prompts\[0\]")):
        with pytest.raises(konomi.DataError, match=message):
            as_prompts(wrong)


def test_what_may_stand_for_a_reward(tmp_path: Path) -> None:
    for file in ("reward.json", "run/run.json", "run/model/reward.json"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("{}", encoding="utf-8")
    cases = {
        "embedded:asari": ClassifierReward(),
        "someone/sentiment": ClassifierReward(name="someone/sentiment"),
        "my.py:f": FunctionReward(kind="function", name="my.py:f"),
        "package.module:f": FunctionReward(kind="function", name="package.module:f"),
        "http://127.0.0.1:1/": HttpReward(kind="http", url="http://127.0.0.1:1/"),
        str(tmp_path): ModelReward(kind="model", name=str(tmp_path)),
        str(tmp_path / "run"): ModelReward(kind="model", name=str(tmp_path / "run")),
    }
    for given, config in cases.items():
        assert reward_config(given) == config, given
    assert reward_config(cases["my.py:f"]) == cases["my.py:f"]
    assert reward_config({"kind": "function", "name": "m:f"}).name == "m:f"
    for wrong in (3, {"kind": "magic"}, None):
        with pytest.raises(konomi.ConfigError, match="reward"):
            reward_config(wrong)
    with pytest.raises(konomi.ConfigError, match="no such file"):
        reward_config("お茶" * 200)
    with pytest.raises(konomi.ConfigError, match=r"\[reward\] needs kind|kind"):
        reward_config({"name": "embedded:asari"})
    with pytest.raises(konomi.ConfigError, match="nme"):
        reward_config({"kind": "classifier", "nme": 1})


def test_a_script_that_trains_when_it_is_imported_for_its_reward(tmp_path: Path) -> None:
    script = "import konomi\n\ndef f(texts):\n    return [0.0 for _ in texts]\n\nkonomi.train('lm', ['a'], f)\n"
    (tmp_path / "script.py").write_text(script, encoding="utf-8")
    with pytest.raises(konomi.ConfigError, match="__main__"):
        as_reward(f"{tmp_path}/script.py:f")


def test_a_plain_function_is_called_with_the_lists_that_it_names() -> None:
    reward = as_reward(lambda texts, topic: [len(text) + n for text, n in zip(texts, topic, strict=True)], ["topic"])
    assert reward(["ab", "c"], prompts=["a", "c"], responses=["b", ""], columns={"topic": [10, 20]}) == [12.0, 21.0]
    assert as_reward(reward) is reward
    with pytest.raises(konomi.ConfigError, match="topic"):
        as_reward(lambda topic: topic, ["other"])


def test_trainer_and_comparison_take_strings_and_functions(fresh_accelerator: None) -> None:
    policy = konomi.Policy(without_dropout("gpt2"))
    reference, tokens = konomi.make_reference(policy), konomi.Tokens(tiny_tokenizer())
    rollout = RolloutConfig(response_tokens=(2, 4))
    ppo = PPOConfig(episodes=4, batch_size=4, mini_batch_size=2, baseline_samples=4)
    (step,) = konomi.PPOTrainer(policy, reference, tokens, TEXTS, count_a, ppo=ppo, rollout=rollout)
    assert step.metrics["ppo/mean_scores"] >= 0
    found = konomi.compare_models(
        reference, policy.lm, tokens, TEXTS[:3], count_a, rollout=rollout, config=konomi.CompareConfig()
    )  # fmt: skip
    assert found["prompts"] == 3
