"""The documents against the code: settings, metrics, links, commands, and the code in them."""

from __future__ import annotations

import ast
import re
import shlex
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from annotated_types import Ge, Gt, Le
from pydantic.fields import FieldInfo

import konomi
from konomi import config as configuration
from konomi.config import PPOJob, Section, build, load_config, load_pipeline

ROOT = Path(__file__).resolve().parents[1]
READMES = [ROOT / "README.md", ROOT / "README.ja.md"]
PAGES = [*READMES, *sorted((ROOT / "docs").glob("*.md")), ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"]
SECTIONS = {
    "model": configuration.ModelConfig,
    "lora": configuration.LoraConfig,
    "data": configuration.DataConfig,
    "rollout": configuration.SamplingConfig,
    "rollout.server": configuration.ServerConfig,
    'reward` with `kind = "classifier"': configuration.ClassifierReward,
    'reward` with `kind = "function"': configuration.FunctionReward,
    'reward` with `kind = "http"': configuration.HttpReward,
    'reward` with `kind = "model"': configuration.ModelReward,
    'reward` with `kind = "sum"': configuration.SumReward,
    "judges": Section,  # of the kinds above, no settings of its own
    'algorithm` with `kind = "ppo"': configuration.ActorCriticConfig,
    'algorithm` with `kind = "rloo"': configuration.RLOOConfig,
    'algorithm` with `kind = "grpo"': configuration.GRPOConfig,
    'algorithm` with `kind = "reinforce++"': configuration.ReinforceConfig,
    'algorithm` with `kind = "bond"': configuration.BondConfig,
    "ppo": configuration.PPOConfig,
    "land": configuration.LandConfig,
    "compare": configuration.CompareConfig,
    "evaluation": configuration.EvaluationConfig,
    "guard": configuration.GuardConfig,
    "run": configuration.RunConfig,
    "data` of `konomi sft": configuration.SFTData,
    "sft": configuration.SFTConfig,
    "run` of `konomi sft`, `konomi reward` and `konomi dpo": configuration.SavedConfig,
    "data` of `konomi reward": configuration.RewardData,
    "train": configuration.RewardTraining,
    "ensemble": configuration.EnsembleConfig,
    "normalize": configuration.NormalizeConfig,
    "data` of `konomi dpo": configuration.DPOData,
    "dpo": configuration.DPOConfig,
    "sample": configuration.SampleConfig,
    "pick": configuration.PickConfig,
    "judge": configuration.JudgeConfig,
    "label": configuration.LabelConfig,
}
JOBS = {
    "sft": configuration.SFTJob, "sample": configuration.SampleJob, "judge": configuration.JudgeJob,
    "pick": configuration.PickJob, "label": configuration.LabelJob, "reward": configuration.RewardJob,
    "dpo": configuration.DPOJob,
}  # fmt: skip
"""Verbs whose files are not those of PPO."""
METRIC = re.compile(
    r"(objective|ppo|tokens|episodes|memory|reward|judge|sft|dpo)/[a-zA-Z_0-9/]+"
    r"|eval/(loss|perplexity|accuracy|margin|preferred|other)"
)
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """The fenced blocks of a language: where they are, and their text."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            if match[1] == language:
                yield f"{name_of(page)}:{text[: match.start()].count(chr(10)) + 1}", match[2]


# settings


def toml(value: Any) -> str:
    """A default as it stands in a TOML file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml, value))}]"
    if value == {}:
        return "{}"
    if isinstance(value, float):
        return repr(value).replace("e-0", "e-")
    return f'"{value}"' if isinstance(value, str) else str(value)


def kind(annotation: Any, limits: list[Any]) -> str:
    """A type in words."""
    if typing.get_origin(annotation) is typing.Annotated:
        inner, *extra = typing.get_args(annotation)
        return kind(inner, [m for e in extra for m in getattr(e, "metadata", [e])])
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(f'`"{value}"`' for value in typing.get_args(annotation))
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return " or ".join(kind(a, limits) for a in typing.get_args(annotation) if a is not type(None))
    if typing.get_origin(annotation) is dict:
        inside = typing.get_args(annotation)[1]
        return f"table of {'numbers' if inside is float else 'rewards'}"
    if typing.get_origin(annotation) is tuple:
        first, second = typing.get_args(annotation)
        if typing.get_origin(first) is typing.Literal:
            return f"list of texts out of {kind(first, [])}"
        return f"list of {kind(first, [])}s" if second is Ellipsis else f"[{kind(first, [])}, {kind(second, [])}]"
    name = {int: "integer", float: "number", str: "text", bool: "true or false"}[annotation]
    signs = {Gt: ("gt", "above"), Ge: ("ge", "from"), Le: ("le", "to")}
    said = [f"{signs[type(x)][1]} {getattr(x, signs[type(x)][0]):g}" for x in limits if type(x) in signs]
    return " ".join([name, *said])


def config_row(key: str, field: FieldInfo) -> str:
    """The line of docs/config.md for a setting."""
    default = "required" if field.is_required() else "not set" if field.default is None else f"`{toml(field.default)}`"
    meaning = " ".join((field.description or "").split()).replace("|", "\\|")
    if key == "kind" and len(typing.get_args(field.annotation)) == 1:
        meaning = "Says which kind this is."
    return f"| `{key}` | {kind(field.annotation, field.metadata)} | {default} | {meaning} |"


def test_every_setting_is_documented_with_its_default_in_the_order_of_a_job() -> None:
    text = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    for title, section in SECTIONS.items():
        part = text.split(f"\n## `{title}`", 1)[1].split("\n## ", 1)[0]
        rows = re.findall(r"^\| `\w+` \|.*\|$", part, re.M)
        assert rows == [config_row(key, field) for key, field in section.model_fields.items()], title
    sections = list(dict.fromkeys(re.split("[`.]", title)[0] for title in SECTIONS))
    assert sections[: len(PPOJob.model_fields)] == list(PPOJob.model_fields)


# metrics


def emitted_metrics() -> set[str]:
    """Names in string literals of training/, with the phases that make time/ppo/..., and those of the before/after."""
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in (ROOT / "src/konomi/training").glob("*.py")]
    names = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and METRIC.fullmatch(node.value):
            names.add(node.value)
        if isinstance(node, ast.JoinedStr):
            pieces = [piece.value if isinstance(piece, ast.Constant) else "NAME" for piece in node.values]
            names |= {name for name in ["".join(map(str, pieces))] if METRIC.fullmatch(name)}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "lap":
            names |= {f"time/ppo/{typing.cast(ast.Constant, node.args[0]).value}", "time/ppo/total"}
    from konomi.jobs.compare import Answers, _figures, comparison_metrics, paired_difference
    from konomi.jobs.evaluation import evaluation_metrics
    from konomi.jobs.land import landing_metrics

    answers = Answers(prompts=["a"], texts=["a"], ids=[[1, 2]], scores=[0.0], kl=[0.0], initial_logprob=[-1.0])
    figures = _figures(answers, answers, 1)
    gap = paired_difference([0.0], [1.0], 1)
    judge = {"before": 0.0, "after": 1.0, "difference": gap}
    evaluation = {"score": 1.0, "kl": 0.5, "difference": {"mean": 1.0, "low": None, "high": None}}
    names |= {*evaluation_metrics(evaluation), "time/evaluation"}
    names |= {*landing_metrics({"share": 1.0, "kl": 0.5, "end_kl": 0.5, "points": [{"share": 1.0, "score": 0.0}]})}
    return names | set(comparison_metrics({"before": figures, "after": figures, "difference": gap, "judges": {"NAME": judge}}))


def test_every_metric_is_documented_and_nothing_else() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `([^`]+)` \|", text, re.M)) - {"update", "episodes", "time", "out_of_range"}
    emitted = emitted_metrics()
    assert documented == emitted
    assert {"objective/kl", "ppo/loss/total", "time/ppo/rollout", "compare/after/kl", "judge/NAME/mean"} <= emitted
    assert len(emitted) > 40


def test_healthy_ranges_are_those_of_the_code() -> None:
    from konomi.report.ranges import HEALTHY

    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    said = {name: cell for name, cell in re.findall(r"^\| `([^`]+)` \|.*\| ([^|]*) \|$", text, re.M) if name in HEALTHY}
    assert said == {name: f"{str(healthy).capitalize()}: {healthy.reason}." for name, healthy in HEALTHY.items()}


# links and commands


def test_relative_links_resolve_and_no_placeholder_is_left() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"\{\{[A-Z_]+\}\}", text), name_of(page)
        for link in LINK.findall(text):
            target, _, anchor = link.partition("#")
            if not re.match(r"[a-z]+:", target):
                path = (page.parent / target).resolve() if target else page
                assert path.exists() and (not anchor or anchor in anchors(path)), f"{name_of(page)}: {link}"


def anchors(page: Path) -> set[str]:
    """The names that headings get on a rendered page."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_both_readmes_link_every_page_and_name_the_two_commands() -> None:
    for readme in READMES:
        text = readme.read_text(encoding="utf-8")
        linked = {link.partition("#")[0] for link in LINK.findall(text)}
        assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= linked, readme.name
        assert any(line.startswith("make demo") for line in text.splitlines()[:15]), readme.name
        assert "make test" in text


def test_the_table_of_verbs_is_that_of_the_command_line() -> None:
    import typer.main

    from konomi.cli import app

    verbs = set(typing.cast(Any, typer.main.get_command(app)).commands)
    for readme in READMES:
        rows = re.findall(r"^\| (`konomi [a-z]+`.*?) \|", readme.read_text(encoding="utf-8"), re.M)
        table = [row for row in rows if len(row) < 60]
        named = {verb for row in table for verb in re.findall(r"`(?:konomi )?([a-z]+)`", row)}
        assert named == verbs, readme.name


PLANNED: dict[str, str] = {}
"""What the documents say is not there -> the file that will hold it."""


def test_what_is_said_to_be_missing_is_missing() -> None:
    """A new item needs a line in PLANNED; an item whose file exists has to go from the documents."""
    lists = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lists += re.findall(r"^(?:Not (?:yet|there)[^:\n]*|未対応の機能): ([^.。\n]+)", text, re.M)
        lists += re.findall(r"^\| ([^|]+) \| (?:not yet|未対応) \|", text, re.M)
    items = [item.strip().lower() for each in lists for item in re.split("[,、]", each)]
    for item in items:
        assert item in PLANNED, item
        assert not (ROOT / "src/konomi" / PLANNED[item]).exists(), item


def test_files_that_the_documents_name_exist() -> None:
    """Paths in code spans that begin with a folder of the repository."""
    for page in PAGES:
        spans = re.findall(r"`((?:src|docs|tests|benchmarks|examples)/[\w./-]+)`", page.read_text(encoding="utf-8"))
        missing = [span for span in spans if not (ROOT / span).exists()]
        assert missing == [], name_of(page)


def test_every_picture_of_the_documents_is_made_by_a_script() -> None:
    shown = {(page.parent / link).resolve() for page in PAGES for link in LINK.findall(page.read_text(encoding="utf-8"))
             if link.endswith((".png", ".svg"))}  # fmt: skip
    kept = {*(ROOT / "docs").glob("*.png"), *(ROOT / "docs").glob("*.svg")}
    assert shown == kept
    scripts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py"))
    for picture in kept:
        assert re.sub("-(en|ja)$", "", picture.stem) in scripts, picture.name


def test_file_tree_names_files_that_exist() -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    tree = next(m[2] for m in FENCE.finditer(text) if m[2].startswith("konomi/\n"))
    places, named = [ROOT], []
    for line in tree.splitlines()[1:]:
        depth = (len(line) - len(line.lstrip())) // 2
        for name in line.split("  #")[0].split():
            path = places[depth - 1] / name
            assert path.exists(), path
            places[depth:] = [path]
            named.append(path)
    whole = {path for path in named if path.is_dir() and not any(path in other.parents for other in named)}
    sources = (path for path in (ROOT / "src" / "konomi").rglob("*.py") if path.stem not in ("__init__", "__main__"))
    assert [str(path) for path in sources if path not in named and not whole & set(path.parents)] == []


def commands() -> Iterator[tuple[str, list[str]]]:
    for where, text in blocks("sh"):
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            if "konomi" in words:
                yield f"{where}: {line}", words[words.index("konomi") + 1 :]


def test_commands_in_the_documents_exist() -> None:
    import typer.main

    from konomi.cli import app

    group = typing.cast(Any, typer.main.get_command(app))
    found = list(commands())
    assert len(found) > 5
    for where, (verb, *words) in found:
        if verb.startswith("--"):
            continue
        known = {name for parameter in group.commands[verb].params for name in parameter.opts}
        assert {word.partition("=")[0] for word in words if word.startswith("-")} <= known, where
        settings = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        if verb == "run":
            assert all(re.fullmatch(r"stages\.\w+\.\w+\.\w+=.+", item) for item in settings), where
        elif settings:
            build(JOBS.get(verb, PPOJob), {}, settings)


def test_the_settings_that_matter_exist() -> None:
    page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    part = page.split("## The ten settings that matter", 1)[1].split("\n## ", 1)[0]
    named = re.findall(r"^\| `(\w+)\.(\w+)` \|", part, re.M)
    assert len(named) == 10
    for section, key in named:
        kinds = [kind for title, kind in SECTIONS.items() if title.partition("`")[0] == section]
        assert any(key in kind.model_fields for kind in kinds), f"{section}.{key}"


def test_job_files_in_the_documents_exist() -> None:
    """What a reader makes is called my_...; anything else has to be there."""
    named = [match for page in PAGES for match in re.findall(r"konomi [a-z]+ (\S+\.toml)", page.read_text(encoding="utf-8"))]
    assert len(named) > 10
    assert [name for name in named if not name.startswith("my_") and not (ROOT / name).is_file()] == []


# code


def test_python_blocks_compile_and_use_public_names_only() -> None:
    for where, code in blocks("python"):
        tree = ast.parse(code)
        compile(tree, where, "exec")
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "konomi":
                assert node.attr in konomi.__all__, where
            if isinstance(node, ast.ImportFrom) and node.module == "konomi":
                assert {alias.name for alias in node.names} <= set(konomi.__all__), where


def test_pipeline_of_the_readme_runs_in_the_tiny_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_accelerator: None
) -> None:
    from tiny import save_tiny

    readme = READMES[0].read_text(encoding="utf-8")
    code = next(m[2] for m in FENCE.finditer(readme) if m[1] == "python" and "PPOTrainer" in m[2])
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 25
    texts = ["the cat", "a", "once upon a time", "rain", "we saw", "hello there", "q", "zebras run", "far", "by night"]
    (tmp_path / "prompts.txt").write_text("\n".join(texts), encoding="utf-8")
    small = {
        '"embedded:gemma3-270m"': repr(str(save_tiny(tmp_path / "lm", "gemma3"))),
        '"embedded:openings-ja"': '"prompts.txt"',
        "episodes=512": "episodes=8, batch_size=4, mini_batch_size=2, baseline_samples=4",
        "0.2)": "0.4)",
    }
    for old, new in small.items():
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert (tmp_path / "tuned" / "model.safetensors").is_file()


def test_reward_example_of_the_quickstart_scores(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    code = next(m[2] for m in FENCE.finditer(page) if m[1] == "python" and m[2].startswith("# my_reward.py"))
    (tmp_path / "my_reward.py").write_text(code, encoding="utf-8")
    names = re.findall(r"^def ([a-z]\w*)", code, re.M)
    assert names
    for name in names:
        config = configuration.FunctionReward(kind="function", name=f"{tmp_path / 'my_reward.py'}:{name}")
        reward = konomi.build_reward(config, columns=["topic"])
        responses = ["晴れて気持ちがいいです。", "雨", ""]
        scores = reward(responses, prompts=["今日は"] * 3, responses=responses, columns={"topic": ["weather", "weather", "food"]})
        assert scores[0] > scores[1]


def test_toml_blocks_are_valid_jobs(tmp_path: Path) -> None:
    for where, text in blocks("toml"):
        path = tmp_path / f"{where.replace('/', '-')}.toml"
        path.write_text(text, encoding="utf-8")
        named = re.match(r"# konomi (\w+)\n", text)
        verb = named[1] if named else "sft" if "[sft]" in text else "ppo"
        if verb == "run":
            load_pipeline(path, tmp_path)
        else:
            load_config(path, JOBS.get(verb, PPOJob))


def test_changelog_names_the_version() -> None:
    assert f"## [{konomi.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_each_fault_of_the_list_has_its_tests() -> None:
    text = (ROOT / "docs" / "design.md").read_text("utf-8")
    rows = [line for line in text.partition("\n## Faults\n")[2].partition("\n## ")[0].splitlines() if line.startswith("| ")]
    assert len(rows) > 15
    for row in rows[2:]:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", row)
        assert named, row
        for file, test in named:
            assert f"\ndef {test}(" in (ROOT / "tests" / file).read_text("utf-8"), f"{file}::{test}"
