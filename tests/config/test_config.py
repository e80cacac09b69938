"""Settings: what is read, what is refused and with which words, and that each of them is used and explained."""

from __future__ import annotations

import ast
import datetime
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from command_line import konomi
from konomi.config import (
    VERBS,
    ActorCriticConfig,
    ClassifierReward,
    FunctionReward,
    GRPOConfig,
    HttpReward,
    PPOJob,
    ReinforceConfig,
    SumReward,
    build,
    load_config,
    load_pipeline,
)
from konomi.config.section import _sections, tomllib
from konomi.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "src" / "konomi"


def refused(data: dict[str, Any] | None = None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        build(PPOJob, data or {}, overrides, where="a.toml")
    return str(caught.value)


# -- what is read ------------------------------------------------------------------------------------------------------


def test_every_example_loads(tmp_path: Path) -> None:
    verbs = {"sft-ja": "sft", "sample": "sample", "reward": "reward", "dpo-ja": "dpo"}
    pipelines = {name: ["sample", rater, "reward", "ppo"] for name, rater in (("judge-ja", "judge"), ("people-ja", "label"))}
    pipelines |= {"write-up": ["reward", "ppo"], "rounds-ja": 3 * ["sample", "judge", "reward", "ppo", "compare"]}
    for path in (ROOT / "examples").glob("*.toml"):
        if path.stem in pipelines:
            pipeline, stages = load_pipeline(path, tmp_path, [])
            assert pipeline.name == path.stem
            assert [stage.do for stage in stages] == pipelines[path.stem]
        else:
            kind = VERBS[verbs.get(path.stem, "ppo")].job
            job = load_config(path, kind)
            assert build(kind, job.model_dump(mode="json")) == job  # as the run directory keeps it


def test_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(
        '[model]\nname = "モデル"\n[data]\nquery_tokens = [10, 24]\n[reward]\nkind = "function"\nname = "m:f"\n[ppo]\nlam = 1\n',
        encoding="utf-8",
    )
    assert build(PPOJob, {}) == PPOJob() and PPOJob().ppo.updates == 16
    job = load_config(path, PPOJob, ["data.query_tokens=[3, 3]", "run.mlflow=false"])
    assert (job.model.name, job.reward.name, job.ppo.lam) == ("モデル", "m:f", 1.0)
    assert (job.data.query_tokens, job.run.mlflow) == ((3, 3), False)
    assert isinstance(job.reward, FunctionReward)


def test_overrides_are_toml_or_else_text() -> None:
    data = {"ppo": {"gamma": 0.5}}
    job = build(
        PPOJob, data,
        ["ppo.episodes=128", "ppo.learning_rate=1e-6", "model.name=org/name", 'run.name="a b"', "ppo.whiten_advantages=false",
         "data.query_tokens=[2, 5]", "compare.extra=['今日の', 'x']", "data.prompts=a=b.txt", "ppo.episodes=256"],
    )  # fmt: skip
    assert data == {"ppo": {"gamma": 0.5}}  # what is given is left alone
    assert (job.ppo.episodes, job.ppo.learning_rate, job.ppo.gamma) == (256, 1e-6, 0.5)
    assert (job.model.name, job.run.name, job.ppo.whiten_advantages) == ("org/name", "a b", False)
    assert (job.data.query_tokens, job.compare.extra, job.data.prompts) == ((2, 5), ("今日の", "x"), "a=b.txt")
    set_in_file = {"land": {"kl": 6.0}, "data": {"limit": 3}, "run": {"name": "a"}}
    left_out = build(PPOJob, set_in_file, ["land.kl=", "data.limit= ", "run.name="])
    assert (left_out.land.kl, left_out.data.limit, left_out.run.name) == (None, None, "")


def test_an_override_of_a_text_is_text_and_of_something_else_is_not() -> None:
    for text in ("2024", "1e3", "007", "true", "2024-01-31", "3.10", "inf"):
        overrides = [f"run.name={text}", f"data.prompts={text}", f"reward.name={text}", f"model.revision={text}"]
        job = build(PPOJob, {"reward": {"kind": "classifier"}}, overrides)
        assert (job.run.name, job.data.prompts, job.reward.name, job.model.revision) == (text, text, text, text)
        function = build(PPOJob, {"reward": {"kind": "function", "name": "m:f"}}, [f"reward.name={text}"])
        assert function.reward.name == text
    job = build(PPOJob, {"reward": {"kind": "classifier"}}, ["reward.label=1", "run.name='2024'", "run.seed=7"])
    assert isinstance(job.reward, ClassifierReward) and job.reward.label == 1
    assert (job.run.name, job.run.seed) == ("2024", 7)
    assert "Input should be a valid string" in refused({}, "run.name=[1]")
    assert "unknown key" in refused({}, "run.nam=2024")


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


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name, content in (("latin", '[run]\nname = "é"'.encode("latin-1")), ("toml", b"[run\n")):
        (tmp_path / name).write_bytes(content)
    for path, words in (
        ("missing", "no such file. See examples/"), ("", "a directory; a TOML file is needed"), ("latin", "not UTF-8 text"),
        ("toml", "not valid TOML"), ("toml/below", "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            load_config(tmp_path / path, PPOJob)
        assert str(caught.value).startswith(f"{tmp_path / path}: {words}")


CLASSIFIER = {"kind": "classifier"}
HTTP = {"kind": "http", "url": "http://localhost:8000/score"}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"ppo": {"epochz": 1}}, "ppo.epochz: unknown key; did you mean epochs?"),
    ({"ppp": {}}, "ppp: unknown key; did you mean ppo?"),
    ({"reward": {"kind": "classifier", "labl": "x"}}, "reward.labl: unknown key; did you mean label?"),
    ({"reward": {"kind": "function", "name": "m:f", "label": "x"}},
     "reward.label: unknown key; known: kind, name"),
    ({"compare": {"zzzz": 1}}, "compare.zzzz: unknown key; known: best_of, extra, prompts, samples, seed"),
    ({"ppo": {"gamma": "x"}},
     "ppo.gamma: Input should be a valid number, unable to parse string as a number (got 'x')"),
    ({"ppo": {"gamma": 1.5}}, "ppo.gamma: Input should be less than or equal to 1 (got 1.5)"),
    ({"ppo": {"epochs": 0}}, "ppo.epochs: Input should be greater than 0 (got 0)"),
    ({"ppo": {"gamma": float("nan")}}, "ppo.gamma: Input should be a finite number (got nan)"),
    ({"ppo": 3}, "ppo: "),
    ({"run": {"name": datetime.date(2026, 1, 1)}}, "run.name: Input should be a valid string"),
    ({"rollout": {"stop": "never"}}, "rollout.stop: Input should be 'length', 'eos' or 'both' (got 'never')"),
    ({"reward": {"kind": "taste"}}, "reward: Input tag 'taste'"),
    ({"rollout": {"response_tokens": [9, 3]}},
     "rollout: response_tokens = [9, 3]: the first has to be the smaller one"),
    ({"data": {"query_tokens": [9, 3]}}, "data: query_tokens = [9, 3]: the first has to be the smaller one"),
    ({"data": {"held_out": 0}}, "data: held_out = 0: has to be above 0 and below 1; the before/after needs texts"),
    ({"data": {"held_out": 1.0}}, "data: held_out = 1: has to be above 0 and below 1"),
    ({"data": {"held_out": float("nan")}}, "data.held_out: Input should be a finite number"),
    ({"rollout": {"response_tokens": [0, 3]}}, "rollout.response_tokens.0: Input should be greater than 0"),
    ({"ppo": {"kl_target": 30.0}}, "ppo: kl_cap = 30.0 has to be above kl_target = 30.0"),
    ({"ppo": {"episodes": 1000}},
     "ppo: episodes = 1000 is not a multiple of batch_size = 64; the nearest that are: 960, 1024"),
    ({"ppo": {"episodes": 10}},
     "ppo: episodes = 10 is not a multiple of batch_size = 64; the nearest that are: 64, 64"),
    ({"ppo": {"mini_batch_size": 48}},
     "ppo: batch_size = 64 is not a multiple of mini_batch_size = 48; the nearest that are: 48, 96"),
    ({"ppo": {"responses_per_prompt": 3}},
     "ppo: batch_size = 64 is not a multiple of responses_per_prompt = 3; the nearest that are: 63, 66"),
    ({"model": {"precision": "fp64"}, "ppo": {"weights": "bf16"}, "lora": {"rank": 4}},
     'PPOJob: ppo.weights = "bf16" with model.precision = "fp64": '),
    ({"model": {"precision": "fp64"}, "ppo": {"optimizer": "adam8"}},
     'PPOJob: ppo.optimizer = "adam8" with model.precision = "fp64": '),
    ({"ppo": {"weights": "bf16"}}, 'PPOJob: ppo.optimizer = "adam" with ppo.weights = "bf16": '),
    ({"algorithm": {"kind": "rlo"}}, "algorithm: Input tag 'rlo'"),
    ({"algorithm": {"level": "token"}}, 'algorithm: kind is missing; write kind = "..." to say which kind it is'),
    ({"algorithm": {"kind": "rloo", "scale": "group"}}, "algorithm.scale: unknown key; known: kind, level"),
    *(({"algorithm": {"kind": kind}}, f'PPOJob: ppo.responses_per_prompt = 1 with algorithm.kind = "{kind}", which compares the '
       "responses to a prompt with each other; set it to 4") for kind in ("rloo", "grpo", "bond")),
    *(({"algorithm": {"kind": kind}, "ppo": {"responses_per_prompt": 4, key: value}},
       f'PPOJob: ppo.{key} = {shown} with algorithm.kind = "{kind}", which does not read it; remove it, or set it to ')
      for kind, key, value, shown in (
          ("rloo", "lam", 1.0, "1.0"), ("grpo", "gamma", 0.9, "0.9"), ("reinforce++", "vf_coef", 0.5, "0.5"),
          ("bond", "value_clip", 0.1, "0.1"), ("rloo", "value_learning_rate", 1e-3, "0.001"),
          ("grpo", "whiten_advantages", False, "false"), ("grpo", "kl_penalty", "k2", '"k2"'), ("bond", "score_clip", 9, "9.0"),
          ("bond", "normalize_scores", False, "false"),
      )),
    *(({"reward": {**CLASSIFIER, "name": name, key: value}}, f"reward: {key}: no setting of {name}")
      for name in ("embedded:asari", "embedded:vader") for key, value in {
          "batch_size": 4, "chat": True, "max_length": 9, "offload": True, "precision": "fp32", "revision": "a",
          "trust_remote_code": True,
      }.items()),
]  # fmt: skip
IN_A_SUM: list[tuple[dict[str, Any], str]] = [
    ({"parts": {"x": {"kind": "function", "name": "m:f", "nmae": "m:f"}}},
     "reward.parts.x.nmae: unknown key; did you mean name?"),
    # names that are also those of kinds, sections and settings
    ({"parts": {"function": {**CLASSIFIER, "labl": 1}}},
     "reward.parts.function.labl: unknown key; did you mean label?"),
    ({"parts": {"sum": {**HTTP, "tokenenv": "X"}}},
     "reward.parts.sum.tokenenv: unknown key; did you mean token_env?"),
    ({"parts": {"parts": {**HTTP, "timeout": 0}}},
     "reward.parts.parts.timeout: Input should be greater than 0 (got 0)"),
    ({"parts": {"x": CLASSIFIER}, "wieghts": {"x": 1}}, "reward.wieghts: unknown key; did you mean weights?"),
    ({"parts": {"x": CLASSIFIER}, "weights": {"y": 1, "z": 1}},
     "reward: weights: no part is named y, z; the parts are: x"),
    ({"parts": {"x": CLASSIFIER}, "weights": {"x": "much"}}, "reward.weights.x: Input should be a valid number"),
    ({"parts": {"x": {"kind": "sum", "parts": {"y": CLASSIFIER}}}},
     "reward: parts.x: a sum cannot be a part of a sum; give its parts here, with their weights"),
    ({"parts": {}}, "reward: parts: none is given; write at least one table [reward.parts.NAME]"),
    ({}, "reward.parts: Field required"),
    ({"parts": {"x": {"label": 1}}}, 'reward.parts.x: kind is missing; write kind = "..." to say which kind it is'),
    ({"parts": {"x": 3}}, "reward.parts.x: Input should be a valid dictionary"),
    ({"parts": {"a/b": CLASSIFIER}}, "reward.parts.a/b: String should match pattern"),
]  # fmt: skip
IN_JUDGES: list[tuple[dict[str, Any], str]] = [
    ({"x": {**CLASSIFIER, "labl": 1}}, "judges.x.labl: unknown key; did you mean label?"),
    ({"reward": {"kind": "sum", "parts": {"http": {**HTTP, "urll": 1}}}},
     "judges.reward.parts.http.urll: unknown key; did you mean url?"),
    ({"a b": CLASSIFIER}, "judges.a b: String should match pattern"),
    ({"x": {"kind": "taste"}}, "judges.x: Input tag 'taste'"),
]  # fmt: skip
ADDRESSES = [
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
]  # fmt: skip


def test_what_is_wrong_is_said_with_its_place() -> None:
    for data, message in (
        *WRONG,
        *(({"reward": {"kind": "sum", **reward}}, message) for reward, message in IN_A_SUM),
        *(({"judges": judges}, message) for judges, message in IN_JUDGES),
    ):
        assert refused(data).startswith(f"a.toml: {message}"), refused(data)
    for url, message in ADDRESSES:
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


def test_bfloat16_weights_go_with_adapters_or_moments_of_8_bits() -> None:
    for settings in ({"lora": {"rank": 4}}, {"ppo": {"optimizer": "adam8"}}):
        ppo = {"weights": "bf16", **settings.get("ppo", {})}
        assert build(PPOJob, {**settings, "ppo": ppo}).ppo.weights == "bf16"


def test_all_that_is_wrong_is_said_at_once() -> None:
    lines = refused({"ppo": {"epochz": 1, "gamma": 2.0}, "run": {"sed": 1}}).splitlines()
    assert len(lines) == 3 and "did you mean seed?" in lines[2]


def test_an_algorithm_is_chosen_and_what_only_another_reads_may_stand_at_its_default() -> None:
    assert build(PPOJob, {}).algorithm == ActorCriticConfig()
    job = build(PPOJob, {"ppo": {"gamma": 1.0, "lam": 0.95}}, ["algorithm.kind=reinforce++"])
    assert job.algorithm == ReinforceConfig()
    more = ["algorithm.kind=grpo", "algorithm.kl=reward", "ppo.kl_penalty=k2", "ppo.responses_per_prompt=4"]
    job = build(PPOJob, {}, more)
    assert (job.algorithm, job.ppo.kl_penalty) == (GRPOConfig(kl="reward"), "k2")
    assert build(PPOJob, job.model_dump(mode="json")) == job  # as the run directory keeps it


def test_a_fixed_coefficient_needs_no_room_below_the_cap() -> None:
    assert build(PPOJob, {"ppo": {"kl_target": 30.0, "kl_controller": "fixed"}}).ppo.kl_cap == 30.0


def test_inexact_sampling_is_refused_with_the_reason() -> None:
    for key in ("top_k", "top_p", "min_p", "repetition_penalty", "min_new_tokens", "num_beams", "do_sample"):
        message = refused({"rollout": {key: 1}})
        assert message.startswith(f"a.toml: rollout: {key}: not offered. PPO differentiates the distribution that it samples")
        assert "temperature" in message


def test_overrides_that_do_not_fit_are_refused() -> None:
    for item in ("ppo.episodes", "episodes=3", "=3", ".a=3", "ppo.=3", "ppo..x=3"):
        assert refused({}, item) == f"--set {item}: write section.key=value, for example --set ppo.episodes=512"
    assert refused({}, "ppo.epochz=3") == "a.toml: ppo.epochz: unknown key; did you mean epochs?"
    assert refused({"ppo": {"gamma": 1.0}}, "ppo.gamma.x=3") == "--set ppo.gamma.x=3: gamma is not a section"
    assert "unable to parse" in refused({}, "ppo.episodes=many")
    assert "unable to parse" in refused({}, "ppo.episodes=")


# -- all of them -------------------------------------------------------------------------------------------------------


def test_every_setting_is_read_and_explained() -> None:
    """Read: code outside of config/ has an attribute of its name."""
    trees = [ast.parse(path.read_text("utf-8")) for path in SOURCES.rglob("*.py") if path.parent.name != "config"]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    attributes = {node.attr for node in nodes if isinstance(node.ctx, ast.Load)}
    jobs = [verb.job for verb in VERBS.values()]
    for section in {each for job in jobs for field in job.model_fields.values() for each in _sections([field.annotation])}:
        assert (section.__doc__ or "").strip(), section.__name__
        for name, field in section.model_fields.items():
            assert name in attributes, f"{section.__name__}.{name}"
            is_tag = len(get_args(field.annotation)) == 1 and name == "kind"
            assert is_tag or (field.description or "").rstrip().endswith((".", ")")), f"{section.__name__}.{name}"
    sections = "model lora data rollout reward judges algorithm ppo land compare evaluation guard run"
    assert list(PPOJob.model_fields) == sections.split()


# -- konomi config VERB ----------------------------------------------------------------------------------------------------


REQUIRED = {
    "sft": {"data": {"texts": "t.jsonl"}},
    "judge": {"candidates": "c.jsonl"},
    "pick": {"candidates": "c.jsonl"},
    "label": {"candidates": "c.jsonl", "label": {"project": "people"}},
    "compare": {"before": "lm"},
    "reward": {"data": {"file": "r.jsonl"}},
    "dpo": {"data": {"file": "r.jsonl"}},
}


def merged(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    return a | {k: merged(a.get(k, {}), v) if isinstance(v, dict) else v for k, v in b.items()}


def test_the_printed_file_says_what_an_empty_one_says_and_every_setting_under_what_it_means() -> None:
    """And a setting that is not set is an example, which may be uncommented."""

    def check(kind: Any) -> None:
        for name, field in kind.model_fields.items():
            if section := getattr(field.annotation, "model_fields", None) and field.annotation:
                check(section)
                continue
            assert re.search(rf"^(# )?{name} =|^(# )?\[(\w+\.)*{name}(\.NAME)?\]", text, re.M), name
            assert " ".join((field.description or "").split()) in prose, name

    for verb, each in VERBS.items():
        text, required = konomi("config", verb, code=0).stdout, REQUIRED.get(verb, {})
        assert build(each.job, merged(tomllib.loads(text), required)) == build(each.job, required)
        prose = text.replace("\n# ", " ")
        assert max(map(len, text.splitlines())) <= 130
        check(each.job)
        for example in re.finditer(r"^# (\w+ = .+)    # not set; an example$", text, re.M):
            uncommented = tomllib.loads(text[: example.start()] + example[1] + text[example.end() :])
            if verb == "sample" and example[1].startswith("query_tokens"):
                uncommented["sample"]["prompts"] = "train"
            given = required
            if uncommented.get("reward", {}).keys() & {"batch_size", "revision"}:  # no settings of an embedded classifier
                given = merged(required, {"reward": {"kind": "classifier", "name": "owner/classifier"}})
            if verb == "dpo" and "prompts" in uncommented["data"]:
                given = merged(required, {"reward": {"kind": "classifier"}})
            if uncommented.get("rollout", {}).get("server", {}).keys() & {"model", "directory", "token_env"}:
                given = merged(required, {"rollout": {"server": {"url": "http://localhost"}}})
            assert build(each.job, merged(uncommented, given)) != build(each.job, given), example[1]
        assert "    # not set\n" not in text
