"""The page of a `konomi sft` run: what the model learned, from metrics.jsonl: loss and perplexity before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from konomi.report import page
from konomi.runs.directory import RunDir
from konomi.text import number

# chart and label of its title, metric, unit
_CURVES = (
    ("train_loss", "sft/loss", "unit_token_nats"),
    ("eval_loss", "eval/loss", "unit_token_nats"),
    ("held_out_perplexity", "eval/perplexity", None),
    ("grad_norm", "sft/grad_norm", None),
)


def write_sft_report(run: RunDir) -> Path:
    """Write ``report.html`` of an SFT run from what its directory holds by now, and return the path.

    Raises:
        DataError: a file of the run is damaged.
        RunError: the page cannot be written.
    """
    labels = page.read_labels("report.json", "sft_report.json")
    config, metrics = run.config, run.read_metrics()
    found = evaluations(metrics)
    curves = page.Curves()
    for key, metric, unit in _CURVES:
        curves.over_updates(key, metrics, metric, unit=unit)
    data = str(config.get("data", {}).get("texts") or "")
    content = {
        **page.about(
            run,
            ("title_sft", {"model": page.model_name(config), "data": data}),
            [("model", page.model_name(config)), ("texts_learned", data)],
        ),
        "tiles": _tiles(metrics, found),
        "found": found,
        "charts": curves.drawn,
        "constant": curves.constant,
        "samples": page.samples(run),
    }
    return page.write_page(run, "sft_report.html", labels, content)


def evaluations(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The evaluation before the first step and the best one after it; None where there was no evaluation yet.

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


def _tiles(metrics: Sequence[Mapping[str, Any]], found: Mapping[str, Any] | None) -> list[tuple[str, str, Any, str]]:
    tiles: list[tuple[str, str, Any, str]] = []
    if found:
        for key, label in (("perplexity", "held_out_perplexity"), ("loss", "eval_loss")):
            ends = [number(side[key]) for side in (found["before"], found["after"] and found["model"]) if side]
            tiles.append((label, " → ".join(ends), "", ""))
    last = max((line["update"] for line in metrics), default=0)
    return [*tiles, ("updates", str(last), "", "")]
