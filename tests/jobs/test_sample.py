"""`konomi sample` on tiny models: what is drawn, from which streams, and what is refused."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from command_line import konomi, sets
from furnished import TOPICS
from konomi.config import DataConfig, ModelConfig, RolloutConfig, SampleJob, build
from konomi.data.formats import read_tasks
from konomi.data.prompts import load_prompts, split_held_out
from konomi.data.records import Prompt, Task
from konomi.engine.sampler import make_draws, sample
from konomi.errors import ConfigError
from konomi.models.load import load_causal_lm

WORDS = [row["text"] for row in TOPICS]


def sampled(name: str, *settings: str) -> tuple[list[Task], dict[str, Any]]:
    """The tasks of a run and its manifest."""
    result = konomi("sample", "sample.toml", *sets(f"run.name={name}", *settings), code=0)
    run = Path("runs") / name
    assert str(run / "candidates.jsonl") in result.stdout
    return read_tasks(run / "candidates.jsonl"), json.loads((run / "manifest.json").read_text(encoding="utf-8"))


TWO = ("models.b.name=other", "models.b.precision=fp64")


def test_a_column_of_dates_and_one_of_bytes(world: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = {"text": WORDS, "day": [datetime.date(2026, 1, 2)] * len(WORDS), "image": [b"\x89PNG"] * len(WORDS)}
    pyarrow.parquet.write_table(pyarrow.table(table), "p.parquet")
    tasks, _ = sampled("one", "data.prompts=p.parquet", "data.limit=8", "sample.prompts=all")
    assert [task.columns for task in tasks] == [{"day": "2026-01-02"}] * 8


def test_candidates_with_where_they_came_from(world: Path) -> None:
    tasks, manifest = sampled("one", "run.mlflow=false", "sample.prompts=train")
    train, _ = split_held_out(load_prompts(DataConfig(prompts="prompts.jsonl")), 0.2)
    assert [task.prompt for task in tasks] == [prompt.text for prompt in train]
    assert all(task.columns == {"topic": task.prompt[0]} for task in tasks)
    assert all(len({each.text.strip() for each in task.candidates}) == 4 for task in tasks)
    assert manifest["tasks"] == len(tasks) and manifest["candidates"] == 4 * len(tasks)
    assert manifest["models"] == {"a": {"name": "lm", "revision": None, "precision": "fp64", "ends_at": "<eos> (1)"}}
    assert manifest["files"]["candidates"]["counts"]["records"] == len(tasks)
    loaded = load_causal_lm(ModelConfig(name="lm"))
    tokens, config = loaded.tokens, RolloutConfig(response_tokens=(3, 6))
    for each in tasks[3].candidates:  # what is said of a candidate is enough to draw it again
        assert (each.source["model"], each.source["seed"], each.source["temperature"]) == ("a", 0, 1.0)
        query = tokens.encode(tasks[3].prompt)
        draws = make_draws(config, each.source["seed"], [tuple(each.source["stream"])])
        again = sample(loaded.model.double(), tokens, [query], draws, config).response_ids()[0]
        assert (len(again), tokens.split(Prompt(tasks[3].prompt), query, again)[1]) == (each.source["tokens"], each.text)


def test_same_seed_same_file_whatever_the_batches(world: Path) -> None:
    path = "candidates.jsonl"
    for name, *settings in (("x",), ("y", "sample.batch_size=3"), ("z", "run.seed=1")):
        sampled(name, *TWO, "sample.rounds=2", *settings)
    files = [(world / "runs" / name / path).read_bytes() for name in "xyz"]
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_models_share_evenly_and_the_order_does_not_tell_them(world: Path) -> None:
    tasks, manifest = sampled("two", *TWO, "sample.rounds=4", "sample.prompts=all")
    assert set(manifest["models"]) == {"a", "b"}
    by_place: list[Counter[str]] = [Counter() for _ in range(4)]
    for task in tasks:
        writers = [each.source["model"] for each in task.candidates]
        assert Counter(writers) == {"a": 2, "b": 2}
        for place, writer in enumerate(writers):
            by_place[place][writer] += 1
    assert len(tasks) == 96
    assert all(30 < counts["a"] < 66 for counts in by_place)  # 48 expected, deviation 4.9
    odd, _ = sampled("odd", *TWO, "sample.candidates=3", "sample.prompts=all", "sample.rounds=4")
    shares = Counter(each.source["model"] for task in odd for each in task.candidates)
    assert abs(shares["a"] - shares["b"]) < 40  # of 288; without a turn it would be 96


def test_rounds_are_tasks_of_their_own(world: Path) -> None:
    tasks, _ = sampled("rounds", "sample.rounds=2")
    assert all(one.prompt == other.prompt and one != other for one, other in zip(tasks[::2], tasks[1::2], strict=True))
    first, _ = sampled("first")
    assert tasks[::2] == first  # a further round changes nothing in those before


def test_the_side_of_the_prompts(world: Path) -> None:
    sides = {side: {task.prompt for task in sampled(side, f"sample.prompts={side}")[0]} for side in ("train", "held_out", "all")}
    assert sides["train"] | sides["held_out"] == sides["all"] == set(WORDS)
    assert sides["held_out"] and not sides["train"] & sides["held_out"]


def test_a_cut_prompt_is_what_the_candidates_go_on_from(world: Path) -> None:
    tasks, _ = sampled("cut", "data.query_tokens=[1, 2]", "sample.prompts=train", *TWO)
    prompts = {Prompt(word[:n]).text for word in WORDS for n in (1, 2)}
    assert {task.prompt for task in tasks} <= prompts
    assert {len(task.prompt) for task in tasks} == {1, 2}


def test_cut_prompts_of_both_sides_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"a prompt that is cut is another text, so that `konomi reward` would hold out others"):
        build(SampleJob, {"data": {"query_tokens": [1, 2]}})


def test_duplicates_are_drawn_again_then_left_out(world: Path) -> None:
    one_letter = ("rollout.response_tokens=[1, 1]", "sample.candidates=20", "sample.prompts=all")
    tasks, manifest = sampled("tight", *one_letter, "sample.attempts=0")
    assert all(len({each.text.strip() for each in task.candidates}) == len(task.candidates) < 20 for task in tasks)
    assert manifest["tasks_with_fewer"] == len(tasks) and manifest["drawn_again"] == 0
    more, again = sampled("loose", *one_letter, "sample.attempts=20")
    assert again["drawn_again"] > 0
    assert sum(len(task.candidates) for task in more) > sum(len(task.candidates) for task in tasks)
    for one, other in zip(tasks, more, strict=True):
        assert {each.text for each in one.candidates} <= {each.text for each in other.candidates}


def test_no_models_and_odd_names_are_refused() -> None:
    for models, words in (({}, "models: Dictionary should have at least 1 item"), ({"a b": {}}, "models.a b: ")):
        with pytest.raises(ConfigError, match=words):
            build(SampleJob, {"models": models})
    assert list(SampleJob().models.values()) == [ModelConfig(name="embedded:gemma3-270m-ja")]


def test_a_model_that_says_one_thing_only_fails_the_run_and_says_so(world: Path) -> None:
    result = konomi("sample", "sample.toml", *sets("rollout.temperature=1e-6", "run.name=cold"),
                    "--set", "rollout.response_tokens=[4, 4]")  # fmt: skip
    assert result.exit_code == 1
    assert "none has two different candidates; raise rollout.temperature" in result.stderr
    assert json.loads(Path("runs/cold/run.json").read_text(encoding="utf-8"))["status"] == "failed"
