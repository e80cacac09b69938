"""The page of a run, live or finished, or of a pipeline's rounds: its data as JSON, and a self-contained HTML file.

The script and style in static/ also draw the page of `konomi watch`. Texts by models or from data files are never trusted: they
reach the page as JSON and are inserted as text, and a content security policy allows only this script and style.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

from konomi import files
from konomi.errors import DataError
from konomi.reading import written_by_konomi
from konomi.report.advice import change, locale
from konomi.report.names import algorithm_name, machine_line, model_name, reward_in_words, reward_name
from konomi.report.ranges import excursions
from konomi.runs.directory import RunDir
from konomi.text import flat, number

STATIC = Path(__file__).parent / "static"
SCRIPTS = ("words.js", "text.js", "format.js", "chart.js", "parts.js", "evaluation.js", "curves.js", "rounds.js", "tiles.js",
           "page.js", "report.js")  # fmt: skip
"""In the order of their imports."""
SAMPLE_UPDATES = 12
"""Updates whose texts are in a report, spread over the run."""
PROMPTS_OVER_TIME = 8
"""Prompts of the evaluations whose texts are in it."""
_COMPARE = ("compare", "compare.json", "make the before/after again")
_COMPARISON = ("compare", "compare.json", "run the stage again")
_EVALUATION = ("evaluation", "eval.json", "train the model again")
RESULTS = {"ppo": (_COMPARE,), "sft": (), "reward": (_EVALUATION,), "dpo": (_COMPARE, _EVALUATION), "compare": (_COMPARISON,)}
"""Verb whose runs have a page -> keys in the page's data, each with its file, and what to do if the file is damaged."""
RESULT_VERSION = 1
_OBJECTS = ("before", "after", "difference", "judges", "verdict", "held_out", "train", "truth", "normalisation")
_LISTS = ("texts", "best_of_n", "points")

Row = Mapping[str, Any]


def write_report(run: RunDir | str | Path) -> Path:
    """Write ``report.html`` of a run of PPO, DPO, SFT, a reward model or a comparison, finished or not, and return its path.

    Parts that are missing (updates, before/after, evaluation, sample texts) are left out or marked as missing.

    Raises:
        DataError: a file of the run is damaged, or was written by a newer konomi; it is a run of another kind.
        RunError: the page cannot be written.
    """
    run = run if isinstance(run, RunDir) else RunDir.open(run)
    with written_by_konomi(run.path):
        metrics = run.read_metrics()
        shown = data_of(run, metrics)
        files.write_atomic(run.report, _page(shown, [numbers(row) for row in metrics], _samples(run)))
    return run.report


def write_rounds(directory: Path, data: Row) -> None:
    """Write ``report.html`` of a pipeline in rounds, unless it is there already.

    Args:
        data: ``name``; ``planned``, the rounds of its file; ``rounds``, those that are finished, see `konomi.jobs.rounds`.
    """
    page, path = (
        _page({"verb": "rounds", "model": data["name"], "goal": "", "texts": "", **data}, [], []),
        directory / "report.html",
    )
    if not path.is_file() or path.read_bytes() != page:
        files.write_atomic(path, page)


def _page(shown: Row, metrics: Sequence[Row], samples: Sequence[Row]) -> bytes:
    """The HTML file."""
    names = {"model": shown["model"], "algorithm": shown.get("algorithm"), "reward": shown["goal"], "data": shown["texts"]}
    title = locale("page")["en"][f"title_{shown['verb']}"].format(**names)
    style, script = (STATIC / "page.css").read_text(encoding="utf-8"), _script()
    page = Template((STATIC.parent / "page.html").read_text(encoding="utf-8")).substitute(
        policy=html.escape(_policy(style, script)),
        words=html.escape(json.dumps(locale("page"), ensure_ascii=False)),
        title=html.escape(flat(f"{shown['name']}: {title}")),
        style=style,
        script=script,
        data=_inert({"run": shown, "metrics": metrics, "samples": samples}),
    )
    return page.encode("utf-8")


def data_of(run: RunDir, metrics: Sequence[Row]) -> dict[str, Any]:
    """Everything that the page shows of a run, except its metrics and sample texts.

    Args:
        metrics: the lines of its metrics.jsonl.

    Raises:
        DataError: a file is damaged, or was written by a newer konomi; the run is of a kind that has no page.
    """
    info, config = run.info, run.config
    verb = run.verb or "ppo"
    if verb not in RESULTS:
        raise DataError(f"{run.path}: a run of `konomi {verb}` has no page; what it made is in that directory")
    results = {key: _read_result(run, name, again) for key, name, again in RESULTS[verb]}
    compare, evaluation = results.get("compare"), results.get("evaluation")
    if compare is not None and not compare.get("verdict"):  # written by a version without verdicts
        compare = {**compare, "verdict": change(compare.get("difference", {}), compare.get("prompts") or 0)}
    data = config.get("data", {})
    return {
        **described(run, info, config),
        "verb": verb,
        "model": model_name(config),
        "algorithm": algorithm_name(config),
        "goal": reward_name(config.get("reward") or {}),
        "texts": str(data.get("texts") or data.get("file") or ""),
        "planned": _planned(config.get("ppo", {})),
        "facts": _facts(verb, info, config, evaluation or {}),
        "compare": compare,
        "evaluation": evaluation,
        "learned": evaluations(metrics) if verb == "sft" else None,
        "dial": _read_result(run, "land.json", "make the run again, or delete it") if verb == "ppo" else None,
        "over_time": _over_time(run) if verb == "ppo" else [],
        "excursions": {"updates": len(metrics), "metrics": excursions(metrics)},
        "config": config,
        "info": info,
    }


def described(run: RunDir, info: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a run, its KL target and its KL cap; ``info`` and ``config`` may be empty."""
    ppo = config.get("ppo")
    ppo = ppo if isinstance(ppo, dict) else {}
    return {
        "name": info.get("name") or run.path.absolute().name,
        **{name: info.get(name) for name in ("status", "reason", "started", "ended")},
        "kl_target": ppo.get("kl_target") if ppo.get("kl_controller") != "fixed" else None,
        "kl_cap": ppo.get("kl_cap"),
    }


def numbers(row: Row) -> dict[str, Any]:
    """The figures of a line of metrics.jsonl."""
    return {name: value for name, value in row.items() if value is None or isinstance(value, (int, float))}


def _read_result(run: RunDir, name: str, again: str) -> dict[str, Any] | None:
    """A result file of the run; None if there is none. Raises DataError: it is damaged or of another version."""
    result = run.read_json(name)
    if result is None:
        return None
    version = result.get("version") if isinstance(result, dict) else None
    if version != RESULT_VERSION:
        raise DataError(f"{run.path / name}: format {version!r}, this konomi reads {RESULT_VERSION}; update konomi, or {again}")
    parts = {key: value for key, value in result.items() if value is not None}
    wrong = [key for key in _OBJECTS if not isinstance(parts.get(key, {}), dict)]
    wrong += [key for key in _LISTS if not _are_objects(parts.get(key, []))]
    if wrong:
        raise DataError(f"{run.path / name}: {', '.join(wrong)}: not what konomi writes there; {again}")
    return dict(result)


def _are_objects(rows: Any) -> bool:
    return isinstance(rows, list) and all(isinstance(row, dict) for row in rows)


def evaluations(metrics: Sequence[Row]) -> dict[str, Any] | None:
    """The evaluation of an SFT run before the first step and the best one after it; None if there was none yet.

    Returns:
        ``before``, ``after``: loss (nats/token) and perplexity; ``after`` is None where no step was evaluated. ``update``: when
        the best was. ``better``: whether it is better than the one before. ``model``: the figures of what is in ``model/``,
        which is the initial model unless something better came after it.
    """
    lines = [line for line in metrics if isinstance(line.get("eval/loss"), (int, float))]
    if not lines or lines[0]["update"] != 0:
        return None
    first, *later = lines
    best = min(later, key=lambda line: line["eval/loss"], default=None)
    sides = [line and {"loss": line["eval/loss"], "perplexity": line.get("eval/perplexity")} for line in (first, best)]
    better = best is not None and best["eval/loss"] < first["eval/loss"]
    model = sides[1] if better else sides[0]
    return {"before": sides[0], "after": sides[1], "update": best and best["update"], "better": better, "model": model}


def _planned(ppo: Mapping[str, Any]) -> int | None:
    """Planned updates of the run."""
    return ppo["episodes"] // ppo["batch_size"] if ppo.get("episodes") and ppo.get("batch_size") else None


def _facts(verb: str, info: Row, config: Row, result: Row) -> list[tuple[str, str]]:
    """Label keys and values of what the run used."""
    data, scale = config.get("data", {}), result.get("normalisation") or {}
    mean, std, count = (number(scale.get(key)) for key in ("mean", "std", "count"))
    scored = [
        ("reward", reward_in_words(config.get("reward") or {})),
        ("judges", "; ".join(f"{name}: {reward_in_words(judge)}" for name, judge in config.get("judges", {}).items())),
    ]
    own = {
        "ppo": scored,
        "dpo": [("data", str(data.get("file") or "")), *scored],
        "compare": [("before", str(config.get("before", ""))), ("reward", reward_in_words(config.get("reward") or {}))],
        "sft": [("texts_learned", str(data.get("texts") or ""))],
        "reward": [
            ("task", str(result.get("task") or "")),
            ("data", str(data.get("file") or "")),
            ("normalisation", f"μ = {mean}, σ = {std}, n = {count}" if scale else ""),
        ],
    }[verb]
    facts = [
        ("model", model_name(config)),
        *own,
        ("seed", str(info.get("seed", ""))),
        ("precision", str(info.get("precision") or config.get("model", {}).get("precision", ""))),
        ("machine", machine_line(info.get("machine", {}))),
        ("versions", ", ".join(f"{name} {version}" for name, version in info.get("versions", {}).items())),
        ("started", str(info.get("started", "")).replace("T", " ").replace("+00:00", " UTC")),
    ]
    return [(key, value) for key, value in facts if value.strip()]


def _over_time(run: RunDir) -> list[dict[str, Any]]:
    """The evaluations of a PPO run during training, the initial model's first: update, difference and texts of some prompts."""
    lines = [line for line in run.read_evaluations() if isinstance(line.get("difference"), dict)]
    chosen = [lines[i] for i in spread_over(len(lines))]
    shown = [line["texts"][:PROMPTS_OVER_TIME] if _are_objects(line.get("texts")) else [] for line in chosen]
    keys = ("update", "difference")
    return [{key: line[key] for key in keys} | {"texts": each} for line, each in zip(chosen, shown, strict=True)]


def spread_over(count: int) -> list[int]:
    """At most `SAMPLE_UPDATES` of ``count`` places, spread evenly, with the first and the last.

    >>> spread_over(3), spread_over(100)[-2:]
    ([0, 1, 2], [90, 99])
    """
    last, most = count - 1, SAMPLE_UPDATES
    return list(range(count)) if count <= most else [round(i * last / (most - 1)) for i in range(most)]


def _samples(run: RunDir) -> list[dict[str, Any]]:
    """The sample texts of some updates."""
    lines = run.read_samples()
    updates = sorted({line["update"] for line in lines})
    keys, shown = ("update", "prompt", "response", "score", "kl"), {updates[i] for i in spread_over(len(updates))}
    return [{key: line.get(key) for key in keys} for line in lines if line["update"] in shown]


@cache
def _script() -> str:
    """The modules of the page as one script; their names are unique."""
    modules = "".join((STATIC / name).read_text(encoding="utf-8") for name in SCRIPTS)
    return re.sub(r"^import .*;\n|^export ", "", modules, flags=re.MULTILINE)


def _policy(style: str, script: str) -> str:
    """A content security policy: the one style and the one script by their hashes, nothing else from anywhere."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script))
    allowed = "; ".join(f"{kind}-src 'sha256-{each}'" for kind, each in zip(("style", "script"), hashes, strict=True))
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def _inert(data: Any) -> str:
    """JSON without characters that could end an element or mislead a reader of the file."""
    text = json.dumps(files.plain(data), allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\x7f]", lambda odd: f"\\u{ord(odd[0]):04x}", text)
