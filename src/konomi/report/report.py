"""The page of a run: one HTML file that shows what changed, needs nothing from outside, and can be sent by mail.

Here is that of a PPO run; konomi.report.reward_report and konomi.report.sft_report have the others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from konomi.errors import DataError
from konomi.reading import written_by_konomi
from konomi.report import charts, page
from konomi.report.charts import Chart
from konomi.report.reward_report import write_reward_report
from konomi.report.sft_report import write_sft_report
from konomi.runs.directory import RunDir
from konomi.text import interval_words, number, signed

COMPARE_VERSION = 1
TEXTS_FIRST = 3
"""Before/after texts at the top of the page."""
TEXTS_OPEN = 8
"""Of each kind, before/after texts further down that are shown without a click."""

Metrics = Sequence[Mapping[str, Any]]

# chart and label of its title, metric, unit, whether 0 is on the axis
_CURVES = (
    ("score_mean", "ppo/mean_scores", "unit_score", False),
    ("kl_short", "objective/kl", "unit_nats", True),
    ("kl_coef", "objective/kl_coef", "unit_coef", True),
    ("entropy", "objective/entropy", "unit_nats", False),
    ("response_length", "tokens/responses_len_mean", "unit_tokens", False),
    ("policy_loss", "ppo/loss/policy", None, False),
    ("value_loss", "ppo/loss/value", None, True),
)
_JUDGE = re.compile(r"judge/[^/]+/mean")
_FIGURES = (
    ("score_mean", "unit_score", "score_std"),
    ("kl", "unit_nats", None),
    ("length", "unit_tokens", None),
    ("distinct_1", None, None),
    ("distinct_2", None, None),
    ("repetition", None, None),
    ("perplexity", None, None),
)


def write_report(run: RunDir | str | Path) -> Path:
    """Write ``report.html`` of a run (of PPO, SFT or a reward model) or of its directory, from what is there by now.

    Return the path. What is missing (updates, before/after, evaluation, sample texts) is left out or said to be missing.

    Raises:
        DataError: a file of the run is damaged, or was written by a newer konomi; it is a run of another kind.
        RunError: the page cannot be written.
    """
    run = run if isinstance(run, RunDir) else RunDir.open(run)
    with written_by_konomi(run.path):
        verb = run.verb
        if verb == "reward":
            return write_reward_report(run)
        if verb == "sft":
            return write_sft_report(run)
        if verb not in ("", "ppo"):
            raise DataError(f"{run.path}: a run of `konomi {verb}` has no page; what it made is in that directory")
        labels = page.read_labels("report.json")
        return page.write_page(run, "report.html", labels, _content(run, page.translator(labels)))


def _content(run: RunDir, t: Any) -> dict[str, Any]:
    info, config, metrics = run.info, run.config, run.read_metrics()
    compare = _read_compare(run)
    curves = _charts(config, metrics, compare)
    title = "title_ppo", {"model": page.model_name(config), "reward": _goal(config.get("reward", {}))}
    return {
        **page.about(run, title, _facts(config)),
        "tiles": _tiles(info, config, metrics, compare, t),
        "compare": compare,
        "charts": curves.drawn,
        "marked": _marked(metrics),
        "constant": curves.constant,
        "samples": page.samples(run),
    }


def _marked(metrics: Metrics) -> list[str]:
    if not any(line.get("out_of_range") for line in metrics):
        return []
    from konomi.report.healthy import over_the_run  # imports scipy

    return over_the_run(metrics)


def _facts(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    judges = "; ".join(f"{name}: {reward_in_words(judge)}" for name, judge in config.get("judges", {}).items())
    return [("model", page.model_name(config)), ("reward", reward_in_words(config.get("reward", {}))), ("judges", judges)]


def reward_in_words(reward: Mapping[str, Any]) -> str:
    """What a reward is, in a few words."""
    weights = reward.get("weights", {})
    parts = [f"{weights.get(name, 1.0):g} × {name}: {reward_in_words(part)}" for name, part in reward.get("parts", {}).items()]
    detail = parts or [str(reward[key]) for key in ("label", "use", "text") if reward.get(key) is not None]
    address = str(reward.get("url", "")).partition("?")[0]  # of a run whose settings did not refuse what follows
    return f"{reward.get('kind', '')} {reward.get('name', address)}".strip() + (f" ({', '.join(detail)})" if detail else "")


def _goal(reward: Mapping[str, Any]) -> str:
    """What a reward is, in a word or two."""
    name = reward.get("name") or str(reward.get("url", "")).partition("?")[0] or " + ".join(reward.get("parts", {}))
    label = reward.get("label")
    return (name or str(reward.get("kind", ""))) + ("" if label is None else f" ({label})")


def _tiles(
    info: Mapping[str, Any], config: Mapping[str, Any], metrics: Metrics, compare: Mapping[str, Any] | None, t: Any
) -> list[tuple[str, str, Any, str]]:
    """Key of the label, value, note, and a name that comes after the label."""
    tiles: list[tuple[str, str, Any, str]] = []
    first, last = (metrics[0], metrics[-1]) if metrics else ({}, {})
    if compare:
        gap = compare["difference"]
        for row in (compare["rows"][0], *compare["judges"]):
            ends = f"{number(row['before'])} → {number(row['after'])}"
            tiles.append((row["label"], ends, _interval(row.get("gap", gap)), row.get("name", "")))
        count = sum(gap[key] or 0 for key in ("wins", "losses", "ties"))
        tiles.append(("wins", f"{number(gap['wins'])} / {count}", "", ""))
        tiles.append(("kl_short", number(compare["rows"][1]["after"]), t("unit_nats"), ""))
    elif metrics:
        both = [number(line.get("ppo/mean_scores")) for line in (first, last)]
        tiles.append(("score_mean", " → ".join(both[: len(metrics)]), "", ""))
        tiles.append(("kl_short", number(last.get("objective/kl")), t("unit_nats"), ""))
    ppo = config.get("ppo", {})
    planned = ppo["episodes"] // ppo["batch_size"] if ppo.get("episodes") and ppo.get("batch_size") else None
    done = str(last.get("update", 0))
    episodes = t("episodes") + " " + number(last["episodes"]) if "episodes" in last else ""
    tiles.append(("updates", f"{done} / {planned}" if planned else done, episodes, ""))
    if duration := _duration(info, last):
        tiles.append(("duration", duration, "", ""))
    return tiles


def _interval(gap: Mapping[str, Any]) -> str:
    return f"{signed(gap.get('mean'))} {interval_words(gap, signed, '[{low}, {high}]', '')}".strip()


def _duration(info: Mapping[str, Any], last: Mapping[str, Any]) -> str | None:
    """Hours, minutes and seconds from the start to the end, or to the last update of a run that has none."""
    try:
        started = datetime.fromisoformat(str(info.get("started")))
        ended = datetime.fromisoformat(info["ended"]).timestamp() if info.get("ended") else last.get("time")
    except ValueError:
        return None
    return None if ended is None else str(timedelta(seconds=max(0, round(ended - started.timestamp()))))


def _read_compare(run: RunDir) -> dict[str, Any] | None:
    found = page.read_result(run, run.compare.name, COMPARE_VERSION, "make the before/after again")
    if found is None:
        return None
    before, after = found.get("before", {}), found.get("after", {})
    rows = [
        {
            "label": "kl_short" if key == "kl" else key,
            "unit": unit,
            "before": before.get(key),
            "after": after.get(key),
            "before_spread": before.get(spread) if spread else None,
            "after_spread": after.get(spread) if spread else None,
            "difference": _minus(after.get(key), before.get(key)),
        }
        for key, unit, spread in _FIGURES
    ]
    judges = [
        {
            "label": "judge",
            "name": name,
            "unit": "unit_score",
            "before": judge.get("before"),
            "after": judge.get("after"),
            "before_spread": None,
            "after_spread": None,
            "difference": _minus(judge.get("after"), judge.get("before")),
            "gap": judge.get("difference", {}),
        }
        for name, judge in found.get("judges", {}).items()
    ]
    gap = dict.fromkeys(("mean", "low", "high", "wins", "losses", "ties")) | found.get("difference", {})
    prompts = found.get("prompts") or 0
    texts = [_text(item) for item in found.get("texts", [])]
    held_out, extra = ([text for text in texts if text["held_out"] is which] for which in (True, False))
    first, rest = (held_out or extra)[:TEXTS_FIRST], (held_out or extra)[TEXTS_FIRST:]
    groups = [("held_out_prompts", rest), ("extra_prompts", extra)] if held_out else [("extra_prompts", rest)]
    return {
        "prompts": prompts,
        "samples": found.get("samples") or 0,
        "verdict": found.get("verdict") or _verdict(gap, prompts),
        "rows": rows,
        "judges": judges,
        "best_of_n": found.get("best_of_n", []),
        "difference": gap,
        "level": f"{100 * found.get('difference', {}).get('level', 0.95):g} %",
        "first": first,
        "texts": [(key, items[:TEXTS_OPEN], items[TEXTS_OPEN:]) for key, items in groups if items],
    }


def _verdict(gap: Mapping[str, Any], prompts: int) -> dict[str, str]:
    """The sentence on a before/after that was made before there were sentences."""
    from konomi.report.advice import change  # imports scipy

    return change(gap, prompts)


def _text(item: Mapping[str, Any]) -> dict[str, Any]:
    gap = _minus(item.get("score_after"), item.get("score_before"))
    keys, judged = ("prompt", "before", "after", "score_before", "score_after"), item.get("judges", {})
    return {key: item.get(key, "") for key in keys} | {
        "held_out": bool(item.get("held_out", True)),
        "judges": [(name, {side: judge.get(side) for side in ("before", "after")}) for name, judge in judged.items()],
        "difference": gap,
        "direction": "" if not gap else "up" if gap > 0 else "down",
    }


def _minus(a: Any, b: Any) -> float | None:
    return a - b if isinstance(a, (int, float)) and isinstance(b, (int, float)) else None


def _charts(config: Mapping[str, Any], metrics: Metrics, compare: Mapping[str, Any] | None) -> page.Curves:
    updates = [line["update"] for line in metrics]
    ppo = config.get("ppo", {})
    target = ppo.get("kl_target") if ppo.get("kl_controller", "adaptive") == "adaptive" else None
    curves = page.Curves()
    judges = list(dict.fromkeys(k.split("/")[1] for line in metrics for k in line if _JUDGE.fullmatch(k)))
    for key, metric, unit, zero in _CURVES:
        more: dict[str, Any] = {"score_mean": {"spread": "ppo/std_scores", "about": "score_about"}}.get(key, {})
        if key == "kl_short" and target is not None:
            more = {"target": target, "about": "kl_about"}
        curves.over_updates(key, metrics, metric, unit=unit, zero=zero, **more)
        for i, name in enumerate(judges if key == "score_mean" else ()):
            said: dict[str, Any] = {"unit": "unit_score", "about": "judge_about", "title": "judge", "name": name}
            curves.over_updates(f"judge_{i}", metrics, f"judge/{name}/mean", **said)
    beside = "path_best_about" if compare and compare["best_of_n"] else None
    against = ("kl_short", "unit_nats")
    curves.add("path", _path(metrics, updates, compare, None), unit="unit_score", about=beside or "path_about", x=against)
    for i, name in enumerate(judges):
        way = _path(metrics, updates, compare, name)
        curves.add(f"judge_path_{i}", way, unit="unit_score", about=beside, x=against, title="judge_path", name=name)
    return curves


def _path(metrics: Metrics, updates: Sequence[int], compare: Mapping[str, Any] | None, judge: str | None) -> Chart | None:
    """The way in the plane of KL and score, or of KL and what a judge says."""
    metric = "ppo/mean_scores" if judge is None else f"judge/{judge}/mean"
    kl, scores = ([line.get(key) for line in metrics] for key in ("objective/kl", metric))
    whole = [(x, y) for x, y in zip(kl, scores, strict=True) if x is not None and y is not None]
    marks = {"first": whole[0], "last": whole[-1]} if len(whole) > 1 else {}
    beside: list[tuple[str, Any, Any]] = []
    if compare:
        score_row, kl_row = compare["rows"][:2]
        if judge is not None:
            score_row = next((row for row in compare["judges"] if row["name"] == judge), {})
        for side in ("before", "after"):
            if kl_row[side] is not None and score_row.get(side) is not None:
                marks[side] = (kl_row[side], score_row[side])
        for row in compare["best_of_n"]:
            value = row.get("score") if judge is None else row.get("judges", {}).get(judge)
            beside.append((f"n = {row.get('n')}", row.get("kl"), value))
    return charts.path(updates, kl, scores, marks, beside)
