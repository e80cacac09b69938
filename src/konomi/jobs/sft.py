"""`konomi sft`: from a configuration to a run directory with the best model in it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from konomi.config import SFTJob
from konomi.data.chat import Render, template_render
from konomi.data.examples import Example, Kind, load_examples, split_examples
from konomi.engine.device import manage_memory, peak_memory_gb
from konomi.errors import ConfigError
from konomi.jobs.common import Work, precision_of, result_of, resume_command, running, saved_until, saving_of
from konomi.jobs.inputs import check_unchanged, digest_of, job_inputs
from konomi.jobs.prepare import check_end, context_of, described, make_trainable
from konomi.models.load import Loaded, load_causal_lm, quiet
from konomi.models.lora import require_peft, save_model
from konomi.runs.directory import RunDir
from konomi.runs.observer import Observer
from konomi.text import plural
from konomi.training.batches import micro_batch_size
from konomi.training.callback import Outcome, perplexity
from konomi.training.checkpoints import Checkpoints
from konomi.training.sft import check_packing, train
from konomi.training.texts import Collator, Row, encode, pack


def run_sft(
    job: SFTJob, root: str | Path, observer: Observer | None = None, resume: Path | None = None, *, parent: str | None = None
) -> dict[str, Any]:
    """Fine-tune a model, or go on in the directory ``resume`` of a run; return what ``--json`` prints.

    From the first evaluation on, the run's ``model/`` is the best so far, and always complete.

    Raises:
        ConfigError, DataError, ModelError: an input is not usable, or has changed; nothing was written.
        RunError: the run failed after it had begun; its directory says why.
        KeyboardInterrupt: stopped by a signal; says what there is and how to go on.
    """
    observer, started = observer or Observer(), time.monotonic()
    old = RunDir.open(resume) if resume else None
    ready = prepare_sft(job, observer, old)
    fields = {
        "data_digest": ready.digest, "precision": ready.precision, "model_revision": ready.loaded.revision,
        "licence": ready.loaded.note, "inputs": job_inputs(job),
    }  # fmt: skip
    if old:
        check_unchanged(old, fields, data="data.texts")
    with running(job, root, observer, fields=fields, parent=parent, resume=old) as work:
        work.start(job.data.texts, _facts(job, ready))
        checkpoints = Checkpoints(work.run.checkpoints, keep=1)
        outcome = _train(job, work, checkpoints, ready, going_on=old is not None)
        if not outcome.best_step:
            observer.warn(
                f"no evaluation was better than that of the initial model ({outcome.initial_loss:.4g} nats/token): "
                f"{work.run.model} is the initial model; lower sft.learning_rate, train for fewer epochs, or give more texts"
            )
        report = work.finish()
        checkpoints.clear()
        return result_of(
            work, started, reason=f"{job.sft.patience} evaluations without a lower loss" if outcome.early else None,
            updates=outcome.steps, best_update=outcome.best_step,
            before={"loss": outcome.initial_loss, "perplexity": perplexity(outcome.initial_loss)},
            after={"loss": outcome.best_loss, "perplexity": perplexity(outcome.best_loss)},
            kind=ready.kind, held_out=ready.texts[1], peak_gb=peak_memory_gb(), model=str(work.run.model), report=str(report),
        )  # fmt: skip


def _train(job: SFTJob, work: Work, checkpoints: Checkpoints, ready: Prepared, going_on: bool) -> Outcome:
    loaded = ready.loaded
    with resume_command(work, "sft", lambda: saved_until(checkpoints)):
        with quiet(), work.stop.patience():
            outcome = train(
                loaded.model, ready.rows, ready.held_out, Collator(loaded.tokens.pad_id, job.sft.packing), job.sft,
                seed=job.run.seed, precision=ready.precision, directory=work.run.path, record=work.log,
                keep=lambda: save_model(loaded, work.run.model, work.run.adapter), progress=work.observer.progress,
                stop=work.stop, saving=saving_of(work, checkpoints, job.run.save_every, going_on),
            )  # fmt: skip
        if signal := work.stop.signal:
            work.finish("stopped", f"{signal} after update {outcome.steps}")
            raise KeyboardInterrupt(f"stopped after update {outcome.steps}; {_what_there_is(work.run, outcome)}")
    return outcome


def _what_there_is(run: RunDir, outcome: Outcome) -> str:
    if not outcome.best_step:
        return f"no evaluation was better yet: {run.model} is the initial model. sft.evaluate_every = N makes them more frequent"
    return f"{run.model} is the best so far (evaluation loss {outcome.best_loss:.4g} after update {outcome.best_step})"


@dataclass(frozen=True)
class Prepared:
    """All that a run needs, checked."""

    kind: Kind
    digest: str
    texts: tuple[int, int]
    """Texts to learn from, and held out."""
    rows: list[Row]
    held_out: list[Row]
    loaded: Loaded
    precision: str


def prepare_sft(job: SFTJob, observer: Observer, run: RunDir | None = None) -> Prepared:
    """Load and check all that a run needs; ``run``: the one that goes on.

    Raises:
        ConfigError, DataError, ModelError: an input is not usable.
    """
    manage_memory()
    require_peft(job.lora)
    micro_batch_size(job.sft, "sft")
    kind, examples = load_examples(job.data, observer.say)
    if kind == "text" and job.sft.loss == "completion":
        raise ConfigError(
            f'sft.loss = "completion": the rows of {job.data.texts} are plain texts, which have no completion; '
            'set sft.loss = "all", or give prompt and completion columns'
        )
    sides = split_examples(examples, job.data)
    loaded = load_causal_lm(job.model, progress=observer.say, fuse=False)
    check_end(loaded, observer)
    render = template_render(loaded.tokenizer, learning=True) if kind == "messages" else None
    everything = kind == "text" or job.sft.loss == "all"
    rows, held_out = (_encoded(job, side, loaded, everything, render, observer) for side in sides)
    make_trainable(job, loaded)
    if job.sft.packing:
        check_packing(loaded.model)
        rows, held_out = (pack(each, job.sft.max_length) for each in (rows, held_out))
    held_out.sort(key=lambda row: len(row.ids))  # like lengths together: less padding, and the sum is the same
    digest = digest_of(sorted(repr((e.text, e.completion, e.messages)) for e in examples))
    counts = len(sides[0]), len(sides[1])
    return Prepared(kind, digest, counts, rows, held_out, loaded, precision_of(job.model.precision, run))


def _encoded(
    job: SFTJob, examples: Sequence[Example], loaded: Loaded, everything: bool, render: Render | None, observer: Observer
) -> list[Row]:
    limit = job.sft.max_length
    rows, cut = encode(examples, loaded.tokens, everything=everything, max_length=limit, render=render)
    context, longest = context_of(loaded), max(len(row.ids) for row in rows)
    if context and longest > context:
        raise ConfigError(
            f"{loaded.source}: a text of {longest} tokens is more than its context of {context}; set sft.max_length = {context}"
        )
    if cut.texts:
        observer.warn(
            f"longer than sft.max_length = {limit} tokens and cut: {cut.texts} of {plural(len(rows), 'text')}; the longest has "
            f"{cut.longest}"
        )
    return rows


def _facts(job: SFTJob, ready: Prepared) -> dict[str, str]:
    learned, rows, sft = sum(row.learned for row in ready.rows), len(ready.rows), job.sft
    return {
        "model": described(job, ready.loaded, ready.precision),
        "texts": f"{job.data.texts}: {ready.texts[0]} to learn from ({ready.kind}), {ready.texts[1]} held out",
        "job": f"{plural(sft.epochs, 'epoch')} of {plural(learned, 'learned token')} in {plural(rows, 'row')}, "
        f"{sft.batch_size} a step",
    }
