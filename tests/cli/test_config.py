"""Settings: what is read, what is refused and with which words, and that each of them is used and explained."""

from __future__ import annotations

import ast
import datetime
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from konomi.config import (
    ClassifierReward,
    CompareConfig,
    DataConfig,
    FunctionReward,
    HttpReward,
    JudgeConfig,
    LabelConfig,
    ModelConfig,
    ModelReward,
    NormalizeConfig,
    PPOConfig,
    PPOJob,
    RewardData,
    RewardJob,
    RewardTraining,
    RolloutConfig,
    RunConfig,
    SampleConfig,
    SampleJob,
    Section,
    SFTConfig,
    SFTData,
    SFTJob,
    SumReward,
    build,
    load_config,
)
from konomi.config.pipeline import load_pipeline
from konomi.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "src" / "konomi"
SECTIONS = [
    ModelConfig, DataConfig, RolloutConfig, ClassifierReward, FunctionReward, HttpReward, SumReward, ModelReward,
    PPOConfig, CompareConfig, RunConfig, SFTData, SFTConfig, RewardData, RewardTraining, NormalizeConfig, SampleConfig,
    JudgeConfig, LabelConfig,
]  # fmt: skip
FIELDS = [(section, name) for section in SECTIONS for name in section.model_fields]


def refused(data: dict[str, Any] | None = None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        build(PPOJob, data or {}, overrides, where="a.toml")
    return str(caught.value)


# -- what is read ------------------------------------------------------------------------------------------------------


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text("", encoding="utf-8")
    job = load_config(path, PPOJob)
    assert job == PPOJob()
    assert job.ppo.updates == 16 and isinstance(job.reward, ClassifierReward)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda path: path.name)
def test_every_example_loads(path: Path, tmp_path: Path) -> None:
    second = {"judge-ja": "judge", "people-ja": "label"}.get(path.stem)
    if second is not None:
        pipeline, stages = load_pipeline(path, tmp_path, [])
        assert pipeline.name == path.stem and [stage.do for stage in stages] == ["sample", second, "reward", "ppo"]
        return
    kind: type[Section] = {"sft-ja": SFTJob, "write-up": RewardJob, "sample": SampleJob, "reward": RewardJob}.get(
        path.stem, PPOJob
    )
    job = load_config(path, kind)
    assert build(kind, job.model_dump(mode="json")) == job  # as the run directory keeps it


def test_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(
        '[model]\nname = "モデル"\n[data]\nquery_tokens = [10, 24]\n[reward]\nkind = "function"\nname = "m:f"\n[ppo]\nlam = 1\n',
        encoding="utf-8",
    )
    job = load_config(path, PPOJob, ["data.query_tokens=[3, 3]", "run.mlflow=false"])
    assert (job.model.name, job.reward.name, job.ppo.lam) == ("モデル", "m:f", 1.0)
    assert (job.data.query_tokens, job.run.mlflow) == ((3, 3), False)
    assert isinstance(job.reward, FunctionReward)


def test_overrides_are_toml_or_else_text() -> None:
    job = build(
        PPOJob, {"ppo": {"gamma": 0.5}},
        ["ppo.episodes=128", "ppo.learning_rate=1e-6", "model.name=org/name", 'run.name="a b"', "ppo.whiten_advantages=false",
         "data.query_tokens=[2, 5]", "compare.extra=['今日の', 'x']", "data.prompts=a=b.txt", "ppo.episodes=256"],
    )  # fmt: skip
    assert (job.ppo.episodes, job.ppo.learning_rate, job.ppo.gamma) == (256, 1e-6, 0.5)
    assert (job.model.name, job.run.name, job.ppo.whiten_advantages) == ("org/name", "a b", False)
    assert (job.data.query_tokens, job.compare.extra, job.data.prompts) == ((2, 5), ("今日の", "x"), "a=b.txt")


@pytest.mark.parametrize("text", ["2024", "1e3", "007", "true", "2024-01-31", "3.10", "inf"])
def test_an_override_of_a_text_is_text(text: str) -> None:
    overrides = [f"run.name={text}", f"data.prompts={text}", f"reward.name={text}", f"model.revision={text}"]
    job = build(PPOJob, {"reward": {"kind": "classifier"}}, overrides)
    assert (job.run.name, job.data.prompts, job.reward.name, job.model.revision) == (text, text, text, text)
    function = build(PPOJob, {"reward": {"kind": "function", "name": "m:f"}}, [f"reward.name={text}"])
    assert function.reward.name == text


def test_an_override_of_something_else_is_no_text() -> None:
    job = build(PPOJob, {"reward": {"kind": "classifier"}}, ["reward.label=1", "run.name='2024'", "run.seed=7"])
    assert isinstance(job.reward, ClassifierReward) and job.reward.label == 1
    assert (job.run.name, job.run.seed) == ("2024", 7)
    assert "Input should be a valid string" in refused({}, "run.name=[1]")
    assert "unknown key" in refused({}, "run.nam=2024")


def test_what_is_given_is_left_alone() -> None:
    data = {"ppo": {"gamma": 0.5}, "compare": {"extra": ["a"]}}
    build(PPOJob, data, ["ppo.gamma=0.9", "run.seed=3"])
    assert data == {"ppo": {"gamma": 0.5}, "compare": {"extra": ["a"]}}


def test_a_byte_order_mark_in_front_is_tolerated(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_bytes(b"\xef\xbb\xbf[run]\nseed = 3\n")
    assert load_config(tmp_path / "job.toml", PPOJob).run.seed == 3
    (tmp_path / "job.toml").write_bytes("[run]\nseed = 3\n".encode("utf-16"))
    with pytest.raises(ConfigError, match=r"UTF-16 text .* Save it as UTF-8: iconv"):
        load_config(tmp_path / "job.toml", PPOJob)


def test_settings_cannot_be_changed_later() -> None:
    with pytest.raises(ValueError, match="frozen"):
        PPOJob().ppo.gamma = 0.5  # type: ignore[misc]


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["missing", "directory", "latin", "toml", "below a file"])
def test_files_that_cannot_be_read(file: str, tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_bytes({"latin": '[run]\nname = "é"'.encode("latin-1"), "toml": b"[run\n"}.get(file, b""))
    path = {"missing": tmp_path / "other.toml", "directory": tmp_path, "below a file": path / "x"}.get(file, path)
    words = {
        "missing": "no such file. See examples/", "directory": "a directory; a TOML file is needed", "latin": "not UTF-8 text",
        "toml": "not valid TOML", "below a file": "cannot be read",
    }[file]  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        load_config(path, PPOJob)
    assert str(caught.value).startswith(f"{path}: {words}")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"ppo": {"epochz": 1}}, "a.toml: ppo.epochz: unknown key; did you mean epochs?"),
        ({"ppp": {}}, "a.toml: ppp: unknown key; did you mean ppo?"),
        ({"reward": {"kind": "classifier", "labl": "x"}}, "a.toml: reward.labl: unknown key; did you mean label?"),
        ({"reward": {"kind": "function", "name": "m:f", "label": "x"}},
         "a.toml: reward.label: unknown key; known: kind, name"),
        ({"compare": {"zzzz": 1}}, "a.toml: compare.zzzz: unknown key; known: best_of, extra, prompts, samples, seed"),
        ({"ppo": {"gamma": "x"}},
         "a.toml: ppo.gamma: Input should be a valid number, unable to parse string as a number (got 'x')"),
        ({"ppo": {"gamma": 1.5}}, "a.toml: ppo.gamma: Input should be less than or equal to 1 (got 1.5)"),
        ({"ppo": {"epochs": 0}}, "a.toml: ppo.epochs: Input should be greater than 0 (got 0)"),
        ({"ppo": {"gamma": float("nan")}}, "a.toml: ppo.gamma: Input should be a finite number (got nan)"),
        ({"ppo": 3}, "a.toml: ppo: "),
        ({"run": {"name": datetime.date(2026, 1, 1)}}, "a.toml: run.name: Input should be a valid string"),
        ({"rollout": {"stop": "never"}}, "a.toml: rollout.stop: Input should be 'length', 'eos' or 'both' (got 'never')"),
        ({"reward": {"kind": "taste"}}, "a.toml: reward: Input tag 'taste'"),
        ({"rollout": {"response_tokens": [9, 3]}},
         "a.toml: rollout: response_tokens = [9, 3]: the first has to be the smaller one"),
        ({"data": {"query_tokens": [9, 3]}}, "a.toml: data: query_tokens = [9, 3]: the first has to be the smaller one"),
        ({"data": {"held_out": 0}}, "a.toml: data: held_out = 0: has to be above 0 and below 1; the before/after needs texts"),
        ({"data": {"held_out": 1.0}}, "a.toml: data: held_out = 1: has to be above 0 and below 1"),
        ({"data": {"held_out": float("nan")}}, "a.toml: data.held_out: Input should be a finite number"),
        ({"rollout": {"response_tokens": [0, 3]}}, "a.toml: rollout.response_tokens.0: Input should be greater than 0"),
        ({"ppo": {"kl_target": 30.0}}, "a.toml: ppo: kl_cap = 30.0 has to be above kl_target = 30.0"),
        ({"ppo": {"episodes": 1000}},
         "a.toml: ppo: episodes = 1000 is not a multiple of batch_size = 64; the nearest that are: 960, 1024"),
        ({"ppo": {"episodes": 10}},
         "a.toml: ppo: episodes = 10 is not a multiple of batch_size = 64; the nearest that are: 64, 64"),
        ({"ppo": {"mini_batch_size": 48}},
         "a.toml: ppo: batch_size = 64 is not a multiple of mini_batch_size = 48; the nearest that are: 48, 96"),
        ({"ppo": {"responses_per_prompt": 3}},
         "a.toml: ppo: batch_size = 64 is not a multiple of responses_per_prompt = 3; the nearest that are: 63, 66"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(data: dict[str, Any], message: str) -> None:
    assert refused(data).startswith(message)


CLASSIFIER = {"kind": "classifier"}
HTTP = {"kind": "http", "url": "http://localhost:8000/score"}


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ({"parts": {"x": {"kind": "function", "name": "m:f", "nmae": "m:f"}}},
         "a.toml: reward.parts.x.nmae: unknown key; did you mean name?"),
        # names that are also those of kinds, sections and settings
        ({"parts": {"function": {**CLASSIFIER, "labl": 1}}},
         "a.toml: reward.parts.function.labl: unknown key; did you mean label?"),
        ({"parts": {"sum": {**HTTP, "tokenenv": "X"}}},
         "a.toml: reward.parts.sum.tokenenv: unknown key; did you mean token_env?"),
        ({"parts": {"parts": {**HTTP, "timeout": 0}}},
         "a.toml: reward.parts.parts.timeout: Input should be greater than 0 (got 0)"),
        ({"parts": {"x": CLASSIFIER}, "wieghts": {"x": 1}}, "a.toml: reward.wieghts: unknown key; did you mean weights?"),
        ({"parts": {"x": CLASSIFIER}, "weights": {"y": 1, "z": 1}},
         "a.toml: reward: weights: no part is named y, z; the parts are: x"),
        ({"parts": {"x": CLASSIFIER}, "weights": {"x": "much"}}, "a.toml: reward.weights.x: Input should be a valid number"),
        ({"parts": {"x": {"kind": "sum", "parts": {"y": CLASSIFIER}}}},
         "a.toml: reward: parts.x: a sum cannot be a part of a sum; give its parts here, with their weights"),
        ({"parts": {}}, "a.toml: reward: parts: none is given; write at least one table [reward.parts.NAME]"),
        ({}, "a.toml: reward.parts: Field required"),
        ({"parts": {"x": {"label": 1}}}, 'a.toml: reward.parts.x: kind is missing; write kind = "..." to say which kind it is'),
        ({"parts": {"x": 3}}, "a.toml: reward.parts.x: Input should be a valid dictionary"),
        ({"parts": {"a/b": CLASSIFIER}}, "a.toml: reward.parts.a/b: String should match pattern"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_sum_is_said_with_its_place(reward: dict[str, Any], message: str) -> None:
    assert refused({"reward": {"kind": "sum", **reward}}).startswith(message)


@pytest.mark.parametrize(
    ("judges", "message"),
    [
        ({"x": {**CLASSIFIER, "labl": 1}}, "a.toml: judges.x.labl: unknown key; did you mean label?"),
        ({"reward": {"kind": "sum", "parts": {"http": {**HTTP, "urll": 1}}}},
         "a.toml: judges.reward.parts.http.urll: unknown key; did you mean url?"),
        ({"a b": CLASSIFIER}, "a.toml: judges.a b: String should match pattern"),
        ({"x": {"kind": "taste"}}, "a.toml: judges.x: Input tag 'taste'"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_judge_is_said_with_its_place(judges: dict[str, Any], message: str) -> None:
    assert refused({"judges": judges}).startswith(message)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://host/x?key=geheim",
         "reward: url: what follows ? may be a key, and would be written into the run; use token_env"),
        ("http://user:geheim@host/x",
         "reward: url: holds a user or password, which would be written into the run; use token_env"),
        ("http://user:12/geheim@host/x",
         "reward: url: holds a user or password, which would be written into the run; use token_env"),
        *((url, "reward: url: not an address; write http://host:port/path or https://..., other characters as %XX") for url in (
            "ftp://host/x", "host:80/x", "http://", "http://host:99999/", "http://host/a b", "http://host/ä", "http://host/\n",
            "http://[::1/", "file:///etc/passwd",
        )),
    ],
)  # fmt: skip
def test_addresses_that_are_refused(url: str, message: str) -> None:
    assert refused({"reward": {"kind": "http", "url": url}}) == f"a.toml: {message}"
    for good in ("http://localhost:8000", "https://[::1]:8443/a", "http://10.0.0.1/%E3%81%82"):
        assert build(PPOJob, {"reward": {"kind": "http", "url": good}}).reward.kind == "http"


def test_parts_and_judges_are_set_on_the_command_line() -> None:
    data = {"reward": {"kind": "sum", "parts": {"x": dict(CLASSIFIER)}}, "judges": {"x": dict(CLASSIFIER)}}
    changes = ["reward.parts.x.name=2024", "reward.weights.x=-2", "judges.x.name=1e3", "judges.x.label=1", "judges.y.kind=http"]
    job = build(PPOJob, data, [*changes, "judges.y.url=http://h/"])
    assert isinstance(job.reward, SumReward) and isinstance(job.judges["y"], HttpReward)
    assert (job.reward.parts["x"].name, job.reward.weights, job.judges["x"].name) == ("2024", {"x": -2.0}, "1e3")
    assert job.judges["x"].label == 1
    assert build(PPOJob, job.model_dump(mode="json")) == job


def test_all_that_is_wrong_is_said_at_once() -> None:
    lines = refused({"ppo": {"epochz": 1, "gamma": 2.0}, "run": {"sed": 1}}).splitlines()
    assert len(lines) == 3 and "did you mean seed?" in lines[2]


def test_a_fixed_coefficient_needs_no_room_below_the_cap() -> None:
    assert build(PPOJob, {"ppo": {"kl_target": 30.0, "kl_controller": "fixed"}}).ppo.kl_cap == 30.0


@pytest.mark.parametrize("key", ["top_k", "top_p", "min_p", "repetition_penalty", "min_new_tokens", "num_beams", "do_sample"])
def test_inexact_sampling_is_refused_with_the_reason(key: str) -> None:
    message = refused({"rollout": {key: 1}})
    assert message.startswith(f"a.toml: rollout: {key}: not offered. PPO differentiates the distribution that it samples from")
    assert "temperature" in message


@pytest.mark.parametrize("item", ["ppo.episodes", "episodes=3", "=3", ".a=3", "ppo.=3", "ppo..x=3"])
def test_overrides_of_another_form_are_refused(item: str) -> None:
    assert refused({}, item) == f"--set {item}: write section.key=value, for example --set ppo.episodes=512"


def test_overrides_that_do_not_fit_are_refused() -> None:
    assert refused({}, "ppo.epochz=3") == "a.toml: ppo.epochz: unknown key; did you mean epochs?"
    assert refused({"ppo": {"gamma": 1.0}}, "ppo.gamma.x=3") == "--set ppo.gamma.x=3: gamma is not a section"
    assert "unable to parse" in refused({}, "ppo.episodes=many")
    assert "unable to parse" in refused({}, "ppo.episodes=")


# -- all of them -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def attributes_read() -> set[str]:
    """Names of all attributes that code outside of config/ reads."""
    trees = [ast.parse(path.read_text("utf-8")) for path in SOURCES.rglob("*.py") if path.parent.name != "config"]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return {node.attr for node in nodes if isinstance(node.ctx, ast.Load)}


@pytest.mark.parametrize(("section", "name"), FIELDS, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_every_setting_is_read_and_explained(section: type[BaseModel], name: str, attributes_read: set[str]) -> None:
    assert name in attributes_read
    field = section.model_fields[name]
    is_tag = len(get_args(field.annotation)) == 1 and name == "kind"
    assert is_tag or (field.description and field.description.rstrip().endswith((".", ")")))


def test_sections_are_explained_and_all_in_the_job() -> None:
    assert all((section.__doc__ or "").strip() for section in SECTIONS)
    assert set(PPOJob.model_fields) == {"model", "data", "rollout", "reward", "judges", "ppo", "compare", "run"}


def test_settings_are_read_without_torch() -> None:
    code = (
        "import sys; from konomi.config import PPOJob, build; build(PPOJob, {});"
        "print([m for m in ('torch', 'transformers', 'numpy', 'datasets', 'mlflow') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "src")
    assert (answer.returncode, answer.stdout.strip()) == (0, "[]"), answer.stderr
