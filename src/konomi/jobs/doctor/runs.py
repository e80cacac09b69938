"""The doctor after a run: what went wrong, since when, what to change, and how far to trust the result."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from konomi.config import VERBS, PPOJob, build
from konomi.errors import RunError
from konomi.jobs.common import locked
from konomi.jobs.doctor.lines import Line, broken, look
from konomi.jobs.doctor.reward_models import quality
from konomi.reading import written_by_konomi
from konomi.report.advice import change, kl_missed
from konomi.report.page import evaluations
from konomi.report.ranges import HEALTHY, excursions
from konomi.runs.directory import RunDir
from konomi.runs.environment import typed
from konomi.text import number, percent, plural, shortened, signed
from konomi.training.guard import Watch

OFTEN = 0.1
"""Share of the updates in which a figure has to be out of its range to be worth a thought."""
CHANGES = {
    "ppo/scores_clipped": "raise ppo.score_clip",
    "ppo/policy/approxkl": "lower ppo.learning_rate or ppo.epochs",
    "ppo/policy/clipfrac": "lower ppo.learning_rate or ppo.epochs",
    "ppo/policy/ratio": "lower ppo.learning_rate",
    "ppo/policy/entropy": "raise ppo.kl_coef, or stop earlier",
    "ppo/policy/grad_norm": "lower ppo.learning_rate, or raise ppo.max_grad_norm if the run was calm",
    "ppo/val/var_explained": "change ppo.value_learning_rate (usual 1e-5 to 1e-3), or set ppo.responses_per_prompt = 4",
    "ppo/val/clipfrac": "lower ppo.value_learning_rate, or raise ppo.value_clip",
}
"""A figure out of its range -> what to change."""
DISTRUSTED = ("negative_kl", "judge")
"""Guards that make a run's score meaningless."""


def examine_run(path: Path) -> tuple[str, list[Line]]:
    """The verb of a run, and lines on it.

    Raises:
        DataError: there is no run, or one of its files is damaged.
    """
    run = RunDir.open(path)
    with written_by_konomi(run.path):
        verb = run.verb
        examine = {"ppo": _ppo, "sft": _sft, "reward": _reward, "dpo": _dpo}.get(verb)
        return verb, [_status(run, verb), *(examine(run) if examine else [])]


def _status(run: RunDir, verb: str) -> Line:
    info, updates = run.info, len(run.read_metrics())
    status, reason = info["status"], info.get("reason")
    resumes = verb in VERBS and VERBS[verb].resumes
    again = f"go on with: {typed('konomi')} {verb} --resume {shlex.quote(str(run.path))}" if resumes else "run it again"
    seen = f"{status} after {plural(updates, 'update')}" if verb == "ppo" else str(status)
    if status == "finished":
        return Line("the run", seen)
    if status == "running":
        if _held(run):
            return Line("the run", f"still running, {plural(updates, 'update')} so far")
        return broken("the run", f"killed after {plural(updates, 'update')}: nobody works on it any more", again)
    if status == "failed":
        return broken("the run", f"{seen}: {reason}", f"mend that, then {again}")
    if "KL" in str(reason):  # it has a model and a before/after
        return broken("the run", f"{seen}: {reason}", "lower ppo.learning_rate, or raise ppo.kl_coef, and start a new run")
    return look("the run", f"{seen}: {reason}", again)


def _held(run: RunDir) -> bool:
    """Whether a process has locked the run, here or on another machine. A kill ends its lock."""
    if not (run.path / ".lock").is_file():
        return False
    try:
        with locked(run.path, lambda: run.info):
            return False
    except RunError:
        return True


def _ppo(run: RunDir) -> list[Line]:
    job, metrics = build(PPOJob, run.config, where=str(run.path / "config.json")), run.read_metrics()
    comparison = run.read_json("compare.json")
    lines = _outcome(comparison) if comparison else [Line("before/after", "there is none: the run has not come to its end")]
    if metrics:
        lines += [*_guards(job, run.info.get("guards") or [], metrics), *_course(job, metrics, comparison)]
        lines += _landing(run.read_json("land.json"))
        lines += _texts(run.read_samples())
        went_well = comparison is not None and all(line.level == "fine" for line in lines)
        lines += _out_of_range(metrics, went_well)
    return lines


def _outcome(comparison: Mapping[str, Any]) -> list[Line]:
    """Lines on whether the model is better, and at what price."""
    gap, before, after = (comparison[key] for key in ("difference", "before", "after"))
    verdict = comparison.get("verdict") or change(gap, comparison["prompts"])
    name, seen, held_out = "before/after", verdict["en"], plural(comparison["prompts"], "held-out prompt")
    lines = [{
        "better": lambda: Line(name, seen),
        "worse": lambda: broken(name, seen, "do not use this model; see the lines below for why"),
        "few": lambda: look(name, seen, f"hold out more prompts (data.held_out): {held_out} cannot tell"),
        "same": lambda: look(name, seen, "compare on more draws: konomi compare RUN --samples 8"),
        "unclear": lambda: look(name, seen, "compare on more draws (konomi compare RUN --samples 8), or train longer"),
    }[verdict["grade"]]()]  # fmt: skip
    price = []
    if after["repetition"] > before["repetition"] + 0.1:
        price.append(f"repetition {percent(before['repetition'])} to {percent(after['repetition'])}")
    if after["distinct_2"] < 0.6 * before["distinct_2"]:
        price.append(f"different pairs of words {percent(before['distinct_2'])} to {percent(after['distinct_2'])}")
    if after["perplexity"] > 2.7 * before["perplexity"]:
        price.append(f"perplexity {number(before['perplexity'])} to {number(after['perplexity'])}")
    if price and gap["mean"] > 0:
        do = "read the texts in report.html: the reward may like what people do not. Lower ppo.kl_target, or mend the reward"
        lines.append(look("price of the score", "; ".join(price), do))
    for judge, scores in comparison["judges"].items():
        high = scores["difference"].get("high")
        if gap["mean"] > 0 and high is not None and high < 0:
            seen = f"fell by {number(-scores['difference']['mean'])} while the score changed by {signed(gap['mean'])}"
            lines.append(broken(f"judge {judge}", seen, "the reward is over-optimised: lower ppo.kl_target, or mend the reward"))
    return lines


def _guards(job: PPOJob, recorded: Sequence[Mapping[str, Any]], metrics: Sequence[Mapping[str, Any]]) -> list[Line]:
    """A line for each guard that fired: those that the run has noted, and what its metrics show beside them."""
    watch, events = Watch(job.ppo.batch_size, job.ppo.kl_cap), [*recorded]
    noted = {each["guard"] for each in recorded}
    seen = [alarm.event("warned") for line in metrics for alarm in watch.see(line["update"], line)]
    events += [each for each in seen if each["guard"] not in noted]
    lines = []
    for name in dict.fromkeys(each["guard"] for each in events):
        own = [each for each in events if each["guard"] == name]
        what, _, cure = own[0]["en"].partition(". ")
        often = f", {plural(len(own), 'time')}" if len(own) > 1 else ""
        level = broken if name in DISTRUSTED or own[-1]["action"] in ("ended", "mend_reward") else look
        lines.append(level(f"guard {name}", f"from update {own[0]['update']} on{often}: {what}", cure))
    return lines or [Line("guards", f"none fired in {plural(len(metrics), 'update')}")]


def _texts(samples: Sequence[Mapping[str, Any]]) -> list[Line]:
    """A line where the texts that a run has kept of its last updates say one thing."""
    last = [str(sample.get("response")) for sample in samples[-max(16, len(samples) // 4) :]]
    again = len(last) - len(set(last))
    if len(last) < 8 or again <= len(last) // 2:
        return []
    do = "the model says one thing: raise ppo.kl_coef or lower ppo.kl_target, and read samples.jsonl for when it began"
    return [look("texts", f"{again} of the last {len(last)} kept repeat another: {shortened(last[-1])!r}", do)]


def _course(job: PPOJob, metrics: Sequence[Mapping[str, Any]], comparison: Mapping[str, Any] | None) -> list[Line]:
    """Lines on score and KL over the run."""
    kls = [line["objective/kl"] for line in metrics if line.get("objective/kl") is not None]
    scores = [line["ppo/mean_scores"] for line in metrics if line.get("ppo/mean_scores") is not None]
    if not kls or not scores:
        return []
    lines, quarter = [], -(-len(scores) // 4)
    first, last = (sum(part) / quarter for part in (scores[:quarter], scores[-quarter:]))
    noise = 2 * (metrics[0].get("ppo/std_scores") or 0.0) * (2 / (quarter * job.ppo.batch_size)) ** 0.5
    seen = f"{number(first)} in the first quarter, {number(last)} in the last"
    better = comparison is not None and (comparison["difference"].get("low") or 0.0) > 0.0  # which is measured more exactly
    if len(scores) >= 4 and last < first + noise and not better:
        far = kls[-1] >= 0.8 * job.ppo.kl_target
        do = "raise ppo.kl_target: the penalty holds the model back" if far else "raise ppo.learning_rate or ppo.episodes"
        lines.append(look("score over the run", f"{seen}: no more than noise ({number(noise)})", do))
    else:
        lines.append(Line("score over the run", seen))
    coefficients = [line["objective/kl_coef"] for line in metrics if line.get("objective/kl_coef") is not None]
    kl = comparison["after"]["kl"] if comparison else kls[-1]
    steered = job.ppo.kl_controller != "fixed" and job.land.kl is None and coefficients
    missed = None
    if comparison and steered:
        missed = kl_missed(kl, job.ppo.kl_target, (coefficients[0], coefficients[-1]), kls, job.ppo.kl_controller)
    if missed:
        seen, _, do = missed.rpartition(": ")
        lines.append(look("KL", seen, do) if abs(kl / job.ppo.kl_target - 1) > 0.5 else Line("KL", seen))
    else:
        lines.append(Line("KL", f"{number(kl)} nats a response at the end"))
    return lines


def _landing(land: Mapping[str, Any] | None) -> list[Line]:
    """A line on where a run has landed, if it was to."""
    if not land:
        return []
    seen = land["verdict"]["en"]
    missed = land["verdict"]["grade"] == "missed"
    do = "raise land.prompts, or land.samples" if missed else "raise ppo.episodes, or land.most"
    if land["end_kl"] > 0:
        do += f"; another KL: {typed('konomi')} blend RUN --kl {number(land['end_kl'])}"
    return [Line("landing", seen) if land["landed"] else look("landing", seen, do)]


def _out_of_range(metrics: Sequence[Mapping[str, Any]], went_well: bool) -> list[Line]:
    """A line for each figure that was out of its healthy range: since when, how often, how far. They are rules of thumb: of a
    run that went well they explain nothing."""
    lines = []
    for each in excursions(metrics):
        name, healthy = each["name"], HEALTHY[each["name"]]
        began = next(line["update"] for line in metrics if name in (line.get("out_of_range") or ()))
        seen = f"{each['worst']:.2g} at worst (healthy: {str(healthy).replace('`', '')}); in {each['count']} of "
        seen += f"{plural(len(metrics), 'update')}, first in update {began}"
        often = not went_well and each["count"] > max(1, OFTEN * len(metrics))
        do = f"{CHANGES[name]}: {healthy.reason.replace('`', '')}"
        lines.append(look(name, seen, do) if often else Line(name, seen))
    return lines or [Line("figures", f"all in their healthy ranges over {plural(len(metrics), 'update')}")]


def _sft(run: RunDir) -> list[Line]:
    learned = evaluations(run.read_metrics())
    if learned is None or learned["after"] is None:
        return [look("evaluation", "there is none after training", "see the run's status")]
    before, after = learned["before"]["loss"], learned["after"]["loss"]
    seen = f"loss {before:.4g} to {after:.4g} nats/token, at update {learned['update']}"
    if not learned["better"]:
        do = "lower sft.learning_rate, train for fewer epochs, or give more texts"
        return [broken("evaluation", f"{seen}: the model is the initial one", do)]
    return [Line("evaluation", seen)]


def _reward(run: RunDir) -> list[Line]:
    evaluation = run.read_json("eval.json")
    if not isinstance(evaluation, dict) or "held_out" not in evaluation:
        return [look("evaluation", "there is none", "see the run's status")]
    lines = [quality("held-out prompts", evaluation, "")]
    if evaluation.get("task") != "classification" and "normalisation" not in evaluation:
        lines.append(look("scale", "it has none, and PPO asks for one", "train it with normalize.samples (konomi sample)"))
    return lines


def _dpo(run: RunDir) -> list[Line]:
    evaluation, comparison = run.read_json("eval.json"), run.read_json("compare.json")
    if not isinstance(evaluation, dict) or "held_out" not in evaluation:
        return [look("evaluation", "there is none", "see the run's status")]
    held_out = evaluation["held_out"]
    accuracy, margin = held_out["accuracy"], held_out["margin"]["value"]
    seen = f"the preferred response is raised more in {percent(accuracy['value'])}, by {number(margin)} on average"
    low = accuracy.get("low")
    weak = low is None or low <= 0.5
    lines = [look("held out", seen, "not shown to beat a coin: collect more comparisons") if weak else Line("held out", seen)]
    if held_out["preferred"] < 0 and held_out["other"] < 0:
        seen = f"both kinds became less likely: by {number(-held_out['preferred'])} and {number(-held_out['other'])} nats"
        do = "usual where responses are alike or from another model; raise dpo.beta or lower dpo.learning_rate if texts get worse"
        lines.append(look("likelihood", seen, do))
    return lines + (_outcome(comparison) if comparison else [])
