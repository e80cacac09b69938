"""`konomi compare`, a pipeline's stage `compare`, and `konomi generate`: use a model after its run."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from konomi.config import CompareConfig, CompareJob, DataConfig, ModelConfig, PPOJob, RolloutConfig, build
from konomi.data.messages import Answered, Message, asked, readable
from konomi.data.prompts import as_prompts, extra_prompts
from konomi.data.records import Candidate, Prompt
from konomi.engine.device import autocast, choose_precision, find_device
from konomi.engine.sampler import make_draws, sample
from konomi.errors import DataError, ModelError
from konomi.jobs.common import result_of, running
from konomi.jobs.compare import compare_models, comparison_metrics
from konomi.jobs.inputs import job_inputs, prompts_digest
from konomi.jobs.prepare import as_read, check_context, check_lengths, check_reading, find_prompts, job_of, prepare
from konomi.models.load import Loaded, load_causal_lm
from konomi.report.advice import too_few
from konomi.report.model_card import write_card
from konomi.report.page import write_report
from konomi.rewards import as_reward, build_judges, in_precision
from konomi.rewards.base import Reward, check_without_columns
from konomi.runs.directory import RunDir
from konomi.runs.observer import Observer
from konomi.runs.processes import first
from konomi.runs.sinks import open_sinks, sink_names


def compare_run(path: Path, config: CompareConfig, observer: Observer) -> dict[str, Any]:
    """Make ``compare.json``, the report and the model card of a run anew with these settings."""
    run = RunDir.open(path)
    job = job_of(run)
    sink_names(job.run)  # a missing package is reported before the models run
    if not (run.model / "config.json").is_file():
        raise DataError(f"{run.model}: no model there yet; the run has to end first ({run.info['status']})")
    ready = prepare(job, observer, run, compare=config)
    tuned = job.model.model_copy(update={"name": str(run.model), "revision": None})
    after, device = load_causal_lm(tuned, progress=observer.say), find_device()
    observer.say("Both models answer held-out prompts")
    comparison = compare_models(
        _placed(ready.loaded, ready.precision), _placed(after, ready.precision), ready.tokens, ready.held_out, ready.reward,
        rollout=job.rollout, data=job.data, config=config, autocast=lambda: autocast(device, ready.precision),
        judges=ready.judges, progress=observer.progress,
    )  # fmt: skip
    report = first(partial(_replace, run, job, comparison, observer))
    return {"run": str(run.path), "report": str(report), "compare": comparison}


def _replace(run: RunDir, job: PPOJob, comparison: Mapping[str, Any], observer: Observer) -> Path:
    run.write_json("compare.json", comparison)
    write_card(run)
    report = write_report(run)
    _log_again(run, job, comparison, report, observer)
    return report


def _log_again(run: RunDir, job: PPOJob, comparison: Mapping[str, Any], report: Path, observer: Observer) -> None:
    """Replace the before/after in the run's sinks; in MLflow only if the run is there."""
    info, metrics = run.info, run.read_metrics()
    settings = job.run.model_copy(update={"mlflow": job.run.mlflow and bool(info.get("mlflow_run_id"))})
    sinks = open_sinks(settings, run, observer.warn, job.data.prompts, again=True)
    sinks.log(metrics[-1]["update"] if metrics else 0, comparison_metrics(comparison))
    sinks.artifacts(report, run.compare)
    sinks.end("FINISHED" if info["status"] == "finished" else "FAILED" if info["status"] == "failed" else "KILLED")


def run_compare(
    job: CompareJob, root: str | Path, observer: Observer | None = None, *, parent: str | None = None
) -> dict[str, Any]:  # fmt: skip
    """Let two models answer held-out prompts with the same random numbers; return what ``--json`` prints.

    The run directory gets compare.json and report.html.

    Raises:
        ConfigError, DataError, ModelError: an input is not usable; nothing was written.
        RunError: the reward failed; its texts are in failed_texts.jsonl.
        KeyboardInterrupt: stopped by a signal.
    """
    observer, started, device = observer or Observer(), time.monotonic(), find_device()
    held_out, reward, judges = _asked(job, observer)
    after, before, initial = _models(job, observer)
    check_lengths(job, held_out, after)
    check_reading(job, after.tokens, held_out, [reward, *judges.values()], observer)
    precision = choose_precision(job.model.precision)
    fields = {
        "verb": "compare", "precision": precision, "data_digest": prompts_digest(held_out), "inputs": job_inputs(job),
    }  # fmt: skip
    facts = {"before": job.before, "after": job.model.name, "initial": job.initial or job.before, "reward": reward.name}
    with running(job, root, observer, fields=fields, parent=parent) as work:
        work.start(job.data.prompts, facts)
        if few := too_few(min(len(held_out), job.compare.prompts)):
            observer.warn(few)
        comparison = compare_models(
            _placed(before, precision), _placed(after, precision), after.tokens, held_out, reward, rollout=job.rollout,
            data=job.data, config=job.compare, autocast=lambda: autocast(device, precision), judges=judges,
            failed_texts=work.run.path / "failed_texts.jsonl", progress=observer.progress, initial=_placed(initial, precision),
        )  # fmt: skip
        work.run.write_json("compare.json", comparison)
        work.sinks.log(0, comparison_metrics(comparison))
        report = work.finish()
        return result_of(work, started, report=str(report), compare=comparison)


def _asked(job: CompareJob, observer: Observer) -> tuple[list[Prompt], Reward, dict[str, Reward]]:
    """The held-out prompts, the reward and the judges."""
    sides, device = find_prompts(job, say=observer.say), find_device()
    columns, scoring = sides[0][0].columns, choose_precision("auto", device)
    reward = as_reward(in_precision(job.reward, scoring), columns, device)
    judges = build_judges({name: in_precision(each, scoring) for name, each in job.judges.items()}, columns, device)
    rewards = [reward, *judges.values()]
    held_out = as_read(sides, rewards, job.data.prompts, observer.say)[1]
    check_without_columns(rewards, extra_prompts(job.compare.extra, job.data, held_out[0]), held_out[0])
    return held_out, reward, judges


def _placed(loaded: Loaded, precision: str) -> PreTrainedModel:
    """A model where it is to answer, in float64 where that is the precision."""
    model: PreTrainedModel = loaded.model.to(find_device())
    return model.double() if precision == "fp64" else model


def _models(job: CompareJob, observer: Observer) -> tuple[Loaded, Loaded, Loaded]:
    """The models after, before and initial, each name loaded once. Raises ModelError: their vocabularies differ."""
    names = (job.model.name, job.before, job.initial or job.before)
    loaded: dict[str, Loaded] = {}
    for name in dict.fromkeys(names):
        own = {} if name == job.model.name else {"name": name, "revision": None}
        loaded[name] = load_causal_lm(job.model.model_copy(update=own), progress=observer.say)
        if loaded[name].tokenizer.get_vocab() != loaded[job.model.name].tokenizer.get_vocab():
            raise ModelError(f"{name} and {job.model.name}: their tokenizers differ, so that their answers cannot be paired")
    after, before, initial = (loaded[name] for name in names)
    return after, before, initial


class Writer:
    """A model that answers prompts, until its end of text or ``length`` tokens.

    Raises:
        ModelError: it cannot be loaded.
        ConfigError: a number is out of its range.
    """

    def __init__(self, model: ModelConfig, length: int, temperature: float, seed: int, observer: Observer) -> None:
        settings = {"response_tokens": [1, length], "stop": "eos", "temperature": temperature}
        self._config, self._seed = build(RolloutConfig, settings, where="generate"), seed
        self._loaded, self._name = load_causal_lm(model, progress=observer.say), model.name
        self._loaded.model.to(find_device())

    def answers(self, prompts: Sequence[Prompt], samples: int = 1, streams: Sequence[int] = ()) -> list[Answered]:
        """``samples`` responses to each prompt, of the random streams 0, 1, ... or ``streams``.

        Raises:
            ConfigError: a prompt leaves no room for a response of ``length``.
        """
        tokens, items = self._loaded.tokens, [(prompt, i) for prompt in prompts for i in streams or range(samples)]
        each = [prompt for prompt, _ in items]
        queries = tokens.queries(each, None, self._seed, 0, sys.maxsize)
        check_context(max(map(len, queries)), self._config.response_tokens[1], self._loaded)
        draws = make_draws(self._config, self._seed, [("generate", prompt.text, i) for prompt, i in items])
        rollout = sample(self._loaded.model, tokens, queries, draws, self._config, self._name)
        texts = zip(each, *tokens.split_all(each, queries, rollout.response_ids()), strict=True)
        return [Answered(text, response, prompt.messages) for prompt, text, response in texts]

    def check_chat(self) -> None:
        """Check that it can answer messages. Raises ModelError: it has no chat template."""
        _ = self._loaded.tokens.render

    def drawn(self, prompt: Prompt, streams: Sequence[int]) -> list[Candidate]:
        """A response to a prompt for each random stream, with its source. Raises as :meth:`answers` does."""
        texts = self.answers([prompt], len(streams), streams)
        about = {"model": self._name, "revision": self._loaded.revision, "temperature": self._config.temperature}
        rows = zip(texts, streams, strict=True)
        return [Candidate(text.response, {**about, "seed": self._seed, "stream": stream}) for text, stream in rows]

    def talk(self, lines: Iterable[str], system: str | None = None) -> Iterator[Answered]:
        """The answer to each line of a user, all of them one conversation; blank lines are passed over."""
        messages: list[Message] = []
        for line in filter(None, map(str.strip, lines)):
            messages.append({"role": "user", "content": line})
            (answer,) = self.answers([Prompt(readable(messages), {"messages": asked(messages, system)})])
            messages.append({"role": "assistant", "content": answer.response})
            yield answer


def prompts_of(texts: Sequence[str], chat: bool = False, system: str | None = None) -> list[Prompt]:
    """Texts to be continued, or with ``chat`` a user's messages. Raises DataError where one is blank."""
    if not all(text.strip() for text in texts):
        raise DataError("--prompt: a blank text; give the beginning of what the model is to write")
    return as_prompts([{"text": text, "n": n} for n, text in enumerate(texts)], DataConfig(chat=chat, system=system))
