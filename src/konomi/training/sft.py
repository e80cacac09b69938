"""Supervised fine-tuning on `transformers.Trainer`: the loss, the evaluation, and what is heard of both.

The loop, the optimiser, the schedule, accumulation and clipping are the Trainer's. What is konomi's own: logits exist at the
tokens that count alone, and in blocks; precision is an autocast of the run, not of the process; the evaluation is a mean over
tokens and not over batches; and what is kept is one whole directory, without a pickle in it, of the best model so far.

Shape suffixes: B rows, L tokens, N tokens that count, D width.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from konomi.config import SFTConfig
from konomi.engine.device import autocast
from konomi.engine.forward import through_head
from konomi.engine.packed import trunk_of
from konomi.engine.shared_weights import one_gradient
from konomi.errors import ConfigError, RunError
from konomi.runs.signals import Stop
from konomi.seeds import stream_seed
from konomi.training.texts import IGNORED, Collator, Row

_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


class TokenLoss(nn.Module):
    """A language model as the Trainer wants it: a batch in, a loss out."""

    accepts_loss_kwargs = True

    def __init__(self, lm: PreTrainedModel) -> None:
        super().__init__()
        self.lm = lm

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        position_ids: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """Return ``loss`` and ``rows``.

        loss: cross-entropy in nats, summed over the tokens that count, over ``num_items_in_batch`` (None: over their number).
        rows: [B, 2] float64, of each row the sum and the number of these tokens; without gradients.
        """
        given = {} if position_ids is None else {"position_ids": position_ids}
        row_N, at_N = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        with one_gradient(self.lm):
            hidden_BLD = trunk_of(self.lm)(input_ids=input_ids, use_cache=False, **given).last_hidden_state
            hidden_ND = hidden_BLD.flatten(0, 1).index_select(0, row_N * labels.shape[1] + at_N)
            logprobs_N, _ = through_head(self.lm, hidden_ND, labels[row_N, at_N + 1], 1.0)
        rows_B2 = torch.zeros(len(labels), 2, dtype=torch.float64, device=labels.device)
        each_N2 = torch.stack([-logprobs_N.detach().double(), torch.ones_like(logprobs_N, dtype=torch.float64)], dim=-1)
        rows_B2.index_add_(0, row_N, each_N2)
        return {"loss": -logprobs_N.sum() / (len(row_N) if num_items_in_batch is None else num_items_in_batch), "rows": rows_B2}


@torch.no_grad()
def check_packing(lm: PreTrainedModel) -> None:
    """Make sure that a text in a row of several does not see the others.

    Raises:
        ConfigError: it does, in this family.
    """
    trunk = trunk_of(lm)
    ids = torch.arange(2, 8, device=lm.device).remainder(lm.config.get_text_config().vocab_size)
    if "position_ids" in inspect.signature(trunk.forward).parameters:
        positions = torch.arange(6, device=lm.device).remainder(3)
        apart = trunk(input_ids=ids.view(2, 3), use_cache=False).last_hidden_state.flatten(0, 1)
        together = trunk(input_ids=ids[None], position_ids=positions[None], use_cache=False).last_hidden_state[0]
        if torch.allclose(together, apart, rtol=1e-4, atol=1e-5 * float(apart.abs().max())):
            return
    raise ConfigError(
        f"sft.packing = true: in a {type(lm).__name__} a text would see those before it in the same row; set sft.packing = false"
    )


class Course(TrainerCallback):  # type: ignore[misc]
    """Hears what the Trainer does: records it, has the best model kept, and says when it is enough.

    Args:
        record: takes an optimiser step (0: before the first) and its metrics; see docs/metrics.md.
        keep: called after each evaluation that is the best so far; the first is that before the first step.
        progress: what is done of how much, and figures that are worth a line.
        stop: asked after each step.
        patience: evaluations in a row without a better one that end it; 0: none do.

    Attributes:
        initial, best, best_update: loss of the model before the first step; the best of all, and when that was (0: before it).
        updates: optimiser steps that were done.
        gave_up: whether patience came to its end.
    """

    def __init__(
        self, record: Callable[[int, Mapping[str, float]], None], keep: Callable[[], None],
        progress: Callable[[str, int, int, Mapping[str, float] | None], None], stop: Stop, patience: int,
    ) -> None:  # fmt: skip
        self._record, self._keep, self._progress = record, keep, progress
        self._stop, self._patience = stop, patience
        self._no_better, self._evaluated = 0, 0
        self.initial, self.best, self.best_update, self.updates, self.gave_up = math.inf, math.inf, 0, 0, False

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **_: Any) -> None:
        """An optimiser step was done, or an evaluation, or all of it."""
        if "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise RunError(
                f"update {state.global_step}: the loss is {logs['loss']}; lower sft.learning_rate, or give it a longer sft.warmup"
            )
        names = {"sft/loss": "loss", "sft/grad_norm": "grad_norm", "sft/learning_rate": "learning_rate", "sft/epoch": "epoch"}
        self._record(state.global_step, {name: logs[key] for name, key in names.items() if key in logs})

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """An optimiser step was done."""
        self.updates = state.global_step
        self._progress("training", state.global_step, state.max_steps, None)
        if self._stop.signal:
            control.should_training_stop, control.should_evaluate = True, False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """An epoch came to its end, or was left."""
        if self._stop.signal:
            control.should_evaluate = False

    def on_prediction_step(self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **_: Any) -> None:
        """A batch was evaluated."""
        self._evaluated += 1
        self._progress("evaluation", self._evaluated, len(eval_dataloader), None)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Mapping[str, float], **_: Any) -> None:
        """All that is held out was evaluated."""
        loss, self._evaluated = metrics["eval_token_loss"], 0
        if not math.isfinite(loss):
            raise RunError(
                f"update {state.global_step}: the evaluation loss is not finite; try a lower sft.learning_rate, or "
                'model.precision = "fp32"'
            )
        figures = {"eval/loss": loss, "eval/perplexity": perplexity(loss)}
        self._record(state.global_step, figures)
        self._progress("training", state.global_step, state.max_steps, figures)
        if state.global_step == 0:
            self.initial = loss
        if loss < self.best:
            self.best, self.best_update, self._no_better = loss, state.global_step, 0
            self._keep()
        else:
            self._no_better += 1
            if 0 < self._patience <= self._no_better and state.global_step < state.max_steps:
                control.should_training_stop = self.gave_up = True


class _Trainer(Trainer):  # type: ignore[misc]
    precision = "fp32"

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> AbstractContextManager[Any]:
        return autocast(self.args.device, self.precision)


def train(
    lm: PreTrainedModel, rows: Sequence[Row], held_out: Sequence[Row], collator: Collator, course: Course, sft: SFTConfig, *,
    seed: int, precision: str, directory: Path,
) -> None:  # fmt: skip
    """Train a language model in place; it ends as its last step left it, in eval mode. What is worth keeping, ``course`` keeps.

    Args:
        lm: what of it may be trained was said by `requires_grad`.
        rows, held_out: what is learned, and what is evaluated.
        collator: rows to batches.
        course: hears everything.
        sft: how.
        seed: of the order of rows.
        precision: of matrix products: fp32, bf16 or fp64.
        directory: where the Trainer believes that it writes; it writes nothing.

    Raises:
        RunError: the loss is not a number any more.
    """
    if precision == "fp64":
        lm.double()
    every = sft.evaluate_every
    arguments = TrainingArguments(
        output_dir=str(directory), num_train_epochs=sft.epochs, per_device_train_batch_size=sft.micro_batch_size,
        per_device_eval_batch_size=sft.micro_batch_size, gradient_accumulation_steps=sft.batch_size // sft.micro_batch_size,
        learning_rate=sft.learning_rate, lr_scheduler_type=_SCHEDULES[sft.schedule], warmup_steps=sft.warmup,
        weight_decay=sft.weight_decay, max_grad_norm=sft.max_grad_norm, eval_strategy="epoch" if every is None else "steps",
        eval_steps=every, eval_on_start=True, eval_do_concat_batches=False, save_strategy="no", logging_strategy="steps",
        logging_steps=1, logging_nan_inf_filter=False, report_to="none", disable_tqdm=True, remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(), seed=stream_seed(seed, "sft") % 2**32,
        data_seed=stream_seed(seed, "sft", "order") % 2**32,
    )  # fmt: skip
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one process, one device: no DataParallel
    trainer = _Trainer(
        TokenLoss(lm), arguments, collator, train_dataset=rows, eval_dataset=held_out, compute_metrics=_token_mean,
        callbacks=[course],
    )  # fmt: skip
    trainer.precision = precision
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.train()
    finally:
        lm.eval()
        # whoever trains next in this process has the same state: left in the middle of a batch, its optimiser would not step
        trainer.accelerator.gradient_state._set_sync_gradients(True)


def _token_mean(evaluated: Any) -> dict[str, float]:
    """The mean over all tokens that count: that of the Trainer is over batches."""
    total, count = np.concatenate(evaluated.predictions).sum(axis=0)
    return {"token_loss": float(total / count)}


def perplexity(loss: float) -> float:
    """``e^loss``: between how many tokens the model wavers, on average."""
    return math.exp(loss) if loss < 700 else math.inf
