"""The page of a `konomi reward` run: how far its model can be trusted, from eval.json and metrics.jsonl.

Like the page of a PPO run it is one HTML file that needs nothing from outside; docs/reward-models.md explains each figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from konomi.report import charts, page
from konomi.runs.directory import RunDir
from konomi.text import number, percent, signed, words

EVAL_VERSION = 1
TEXTS_SHOWN = 5
"""Texts with the best scores, and as many with the worst."""

Found = Mapping[str, Any]

# label, metric, whether 0 is on the axis
_CURVES = (
    ("train_loss", "train/loss", False),
    ("eval_loss", "eval/loss", False),
    ("eval_accuracy", "eval/accuracy", False),
)


def _points(value: Any) -> str:
    """A difference of shares, in points."""
    return signed(None if value is None else 100.0 * value)


_CALIBRATION = (
    ("ece", ("calibration", "ece"), number),
    ("log_loss", ("calibration", "log_loss"), number),
    ("brier", ("calibration", "brier"), number),
)
# label, where it is in the result, how it is written
_FIGURES = {
    "preference": (
        ("accuracy", ("accuracy",), percent),
        ("longer_wins", ("longer", "accuracy"), percent),
        ("ahead_of_longer", ("longer", "difference"), _points),
        ("tau", ("tau",), number),
        ("top_1", ("top_1",), percent),
        ("top_1_chance", ("top_1", "chance"), percent),
        ("agreement", ("agreement", "share"), percent),
        ("ceiling", ("agreement", "ceiling"), percent),
        ("below_ceiling", ("agreement", "below"), _points),
        *_CALIBRATION,
        ("length_overall", ("length_correlation", "overall", "spearman"), number),
        ("length_within", ("length_correlation", "within_prompt", "spearman"), number),
    ),
    "score": (
        ("pearson", ("pearson",), number),
        ("spearman", ("spearman",), number),
        ("r2", ("r2",), number),
        ("mse", ("mse",), number),
    ),
    "classification": (
        ("accuracy", ("accuracy",), percent),
        ("macro_f1", ("macro_f1",), percent),
        ("majority", ("majority", "accuracy"), percent),
        ("ahead_of_majority", ("majority", "difference"), _points),
        *_CALIBRATION,
    ),
    "truth": (
        ("accuracy", ("accuracy",), percent),
        ("tau", ("tau",), number),
        ("top_1", ("top_1",), percent),
        ("top_1_chance", ("top_1", "chance"), percent),
        ("pearson", ("pearson",), number),
        ("spearman", ("spearman",), number),
    ),
}


def write_reward_report(run: RunDir) -> Path:
    """Write ``report.html`` of a reward model's run from what its directory holds by now, and return the path.

    Whatever is missing (the evaluation, the curves, texts) is left out or said to be missing.

    Raises:
        DataError: a file of the run is damaged, or eval.json was written by a newer konomi.
        RunError: the page cannot be written.
    """
    labels = page.read_labels("report.json", "reward_report.json")
    return page.write_page(run, "reward_report.html", labels, _content(run, page.translator(labels)))


def _content(run: RunDir, t: Any) -> dict[str, Any]:
    found: Found = page.read_result(run, "eval.json", EVAL_VERSION, "train the model again") or {}
    task = str(found.get("task") or "")
    held_out, train, truth = (found.get(name) or {} for name in ("held_out", "train", "truth"))
    best, worst = _texts(found.get("texts", []))
    curves = _charts(run.read_metrics(), task, held_out)
    title = "title_reward", {"model": page.model_name(run.config), "data": str(run.config.get("data", {}).get("file") or "")}
    return {
        **page.about(run, title, _facts(run.config, found, task)),
        "tiles": _tiles(task, held_out, truth, t),
        "evaluated": bool(held_out),
        "verdict": held_out.get("verdict"),
        "figures": _figures(task, held_out, train),
        "with_train": bool(train),
        "truth": _figures("truth", truth, {}) if truth else [],
        "charts": curves.drawn,
        "constant": curves.constant,
        "parts": _parts(held_out),
        "classes": held_out.get("classes", []),
        "confusion": _confusion(held_out),
        "texts": [(key, items) for key, items in (("best_texts", best), ("worst_texts", worst)) if items],
    }


def _facts(config: Found, found: Found, task: str) -> list[tuple[str, str]]:
    scale = found.get("normalisation") or {}
    said = f"μ = {number(scale.get('mean'))}, σ = {number(scale.get('std'))}, n = {number(scale.get('count'))}"
    rows = [("model", page.model_name(config)), ("task", task), ("data", str(config.get("data", {}).get("file") or ""))]
    return rows + ([("normalisation", said)] if scale else [])


def _at(found: Any, path: Sequence[str]) -> Any:
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _value(found: Found, path: Sequence[str]) -> Any:
    """The figure there, whether it has an interval or not."""
    there = _at(found, path)
    return there.get("value") if isinstance(there, Mapping) else there


def _range(found: Any, write: Any) -> str:
    """The interval, or nothing."""
    if not isinstance(found, Mapping) or found.get("low") is None:
        return ""
    return f"[{write(found['low'])}, {write(found.get('high'))}]"


def _figures(task: str, result: Found, train: Found) -> list[dict[str, str]]:
    return [
        {
            "label": label,
            "value": write(_value(result, path)),
            "range": _range(_at(result, path), write),
            "train": write(_value(train, path)),
        }
        for label, path, write in _FIGURES.get(task, ())
        if _value(result, path) is not None
    ]


def _tiles(task: str, result: Found, truth: Found, t: Any) -> list[tuple[str, str, Any, str]]:
    tiles: list[tuple[str, str, Any, str]] = []

    def add(label: str, path: Sequence[str], write: Any, note: Any = None) -> None:
        tiles.append((label, write(_value(result, path)), _range(_at(result, path), write) if note is None else note, ""))

    if not result:
        return tiles
    if task == "preference":
        trained = result.get("train_comparisons")
        ahead = t("ahead") + " " + _points(_value(result, ("longer", "difference")))
        add("accuracy", ("accuracy",), percent)
        add("ceiling", ("agreement", "ceiling"), percent, None if result.get("agreement") else t("no_overlap"))
        add("longer_wins", ("longer", "accuracy"), percent, ahead)
        add("comparisons", ("comparisons",), number, "" if trained is None else t("of_training") + f" {trained:,}")
    elif task == "classification":
        add("accuracy", ("accuracy",), percent)
        add("macro_f1", ("macro_f1",), percent)
        add("majority", ("majority", "accuracy"), percent, words(_at(result, ("majority", "label")) or ""))
        add("text_count", ("texts",), number)
    elif task == "score":
        for label, path, write in _FIGURES["score"][:3]:
            add(label, path, write)
        add("text_count", ("texts",), number)
    if _value(truth, ("accuracy",)) is not None:
        tiles.append(("truth_accuracy", percent(_value(truth, ("accuracy",))), _range(truth.get("accuracy"), percent), ""))
    return tiles


def _charts(metrics: Sequence[Found], task: str, result: Found) -> page.Curves:
    curves = page.Curves()
    by_epoch = bool(metrics) and all(isinstance(line.get("epoch"), (int, float)) for line in metrics)
    for key, metric, zero in _CURVES:
        curves.over_updates(key, metrics, metric, zero=zero, x=("epoch" if by_epoch else "update", None))
    bins = _at(result, ("calibration", "bins")) or []
    points = [(each["predicted"], each["observed"], each["count"]) for each in bins]
    chart = charts.calibration(points, 0.5 if task == "preference" else 0.0)
    curves.add("calibration", chart, about="calibration_about", x=("said", None))
    return curves


def _parts(result: Found) -> list[dict[str, Any]]:
    """Accuracy by part of the data, each with its name, counts, interval and what a small drawing of it needs."""
    found = []
    for key in ("by_length", "by_length_difference", "by_source"):
        rows = [
            {
                "name": f"{row['from']:g} – {row['to']:g}".replace("-", "−") if "from" in row else row.get("source"),
                "comparisons": row.get("comparisons", ""),
                "prompts": row.get("prompts", ""),
                "value": _value(row, ("accuracy",)),
                "range": _range(row.get("accuracy"), percent),
                "low": _at(row, ("accuracy", "low")),
                "high": _at(row, ("accuracy", "high")),
            }
            for row in result.get(key, [])
        ]
        if rows:
            found.append({"key": key, "about": f"{key}_about", "rows": rows})
    return found


def _confusion(result: Found) -> list[tuple[str, list[int]]]:
    return list(zip(result.get("labels", []), result.get("confusion", []), strict=False))


def _texts(texts: Sequence[Found]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Those with the best and those with the worst scores, none in both."""
    scored = [text for text in texts if isinstance(text.get("score"), (int, float))]
    scored.sort(key=lambda text: -text["score"])
    rows = [{key: text.get(key, "") for key in ("prompt", "response", "score")} for text in scored]
    half = min(TEXTS_SHOWN, (len(rows) + 1) // 2)
    return rows[:half], rows[half:][::-1][:half]
