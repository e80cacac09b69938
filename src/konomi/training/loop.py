"""What fine-tuning and reward models share: transformers' Trainer, its arguments, and a callback.

The loop, the optimiser, the schedule, accumulation and clipping are the Trainer's. Its precision is our own autocast, of the run
and not of the process; the callback records the training, has the best model kept, and ends it in time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from konomi.config import RewardTraining, SFTConfig
from konomi.engine.device import autocast
from konomi.errors import RunError
from konomi.runs.signals import Stop

Record = Callable[[int, Mapping[str, float]], None]
"""Takes the number of optimiser steps done and their metrics; see docs/metrics.md."""
Progress = Callable[[str, int, int, Mapping[str, float] | None], None]
"""Takes what is being done, how much of how much is done, and figures that are worth a line."""


class QuietTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer in the precision of a run, printing nothing."""

    def __init__(self, precision: str, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.precision = precision
        self.remove_callback(PrinterCallback)

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> AbstractContextManager[Any]:
        """The context in which the Trainer computes a loss."""
        return autocast(self.args.device, self.precision)


def training_arguments(config: SFTConfig | RewardTraining, directory: Path, **more: Any) -> TrainingArguments:
    """The Trainer's arguments for some settings. It saves, reports and prints nothing; ``directory`` stays as it is."""
    micro = config.micro_batch_size or config.batch_size
    arguments = TrainingArguments(
        output_dir=str(directory), num_train_epochs=config.epochs, per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro, gradient_accumulation_steps=config.batch_size // micro,
        learning_rate=config.learning_rate, weight_decay=config.weight_decay, max_grad_norm=config.max_grad_norm,
        lr_scheduler_type="constant_with_warmup" if config.schedule == "constant" else config.schedule,
        warmup_steps=config.warmup, save_strategy="no", report_to="none", disable_tqdm=True, logging_nan_inf_filter=False,
        remove_unused_columns=False, **more,
    )  # fmt: skip
    arguments._n_gpu = min(arguments.n_gpu, 1)  # more of them: by `accelerate launch`, not by copies in one process
    return arguments


@dataclass
class Outcome:
    """How a training went. Losses are those of evaluations."""

    steps: int = 0
    """Optimiser steps."""
    epochs: float = 0.0
    initial_loss: float = math.inf
    """Before the first step."""
    best_loss: float = math.inf
    best_step: int = 0
    """Steps after which the best model was found; 0: before the first."""
    early: bool = False
    """Training ended before its last step because the loss fell no more."""


class TrainingCallback(TrainerCallback):  # type: ignore[misc]
    """Records metrics, has the best model kept, and stops at a signal or when patience is exhausted.

    Args:
        section: of the settings, for messages.
        step_names, evaluation_names: key of the Trainer -> metric; other keys are not recorded.
        each_step: record the figures of each step; otherwise together with the next evaluation.
        record, progress: see `Record` and `Progress`.
        keep: called after each evaluation that is the best so far; the first is before the first step.
        stop: checked after each step and evaluation.
        patience: consecutive evaluations without a lower loss that end the training; 0: never.
    """

    def __init__(
        self, section: str, step_names: Mapping[str, str], evaluation_names: Mapping[str, str], record: Record,
        keep: Callable[[], None], progress: Progress, stop: Stop, *, each_step: bool, patience: int,
    ) -> None:  # fmt: skip
        self.section, self.each_step, self.patience = section, each_step, patience
        self.step_names, self.evaluation_names = step_names, evaluation_names
        self.record, self.keep, self.progress, self.stop = record, keep, progress, stop
        self.outcome = Outcome()
        self._step_figures: dict[str, float] = {}
        self._not_better, self._batches = 0, 0

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        """Figures of an optimiser step; also called with those of an evaluation and of the end, which have no ``loss``."""
        if "loss" not in (logs or {}):
            return
        self._check_finite("loss", logs["loss"], state.global_step)
        self._step_figures |= _named(logs, self.step_names)
        if self.each_step:
            self.record(state.global_step, self._step_figures)
            self._step_figures = {}

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """An optimiser step is done."""
        self.outcome.steps, self.outcome.epochs = state.global_step, float(state.epoch or 0.0)
        self.progress("training", state.global_step, state.max_steps, None)
        if self.stop.signal:
            control.should_training_stop, control.should_evaluate = True, False

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """No evaluation follows an epoch that was left."""
        if self.stop.signal:
            control.should_evaluate = False

    def on_prediction_step(self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **_: Any) -> None:
        """A batch of an evaluation is done."""
        self._batches += 1
        self.progress("evaluation", self._batches, len(eval_dataloader), None)

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, metrics: Any = None, **_: Any) -> None:
        """An evaluation is done."""
        step, self._batches = state.global_step, 0
        figures = self._step_figures | _named(metrics, self.evaluation_names)
        loss = figures["eval/loss"]
        self.record(step, figures)
        self._check_finite("evaluation loss", loss, step)
        self.progress("training", step, max(state.max_steps, step, 1), figures)
        if step == 0:
            self.outcome.initial_loss = loss
        if loss < self.outcome.best_loss:
            self.outcome.best_loss, self.outcome.best_step, self._not_better = loss, step, 0
            self.keep()
        else:
            self._not_better += 1
            if 0 < self.patience <= self._not_better and step < state.max_steps:
                self.outcome.early = control.should_training_stop = True
        if self.stop.signal:
            control.should_training_stop = True

    def _check_finite(self, what: str, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            raise RunError(
                f"update {step}: the {what} is {loss}; lower {self.section}.learning_rate, lengthen {self.section}.warmup, or "
                'set model.precision = "fp32"'
            )


def _named(figures: Mapping[str, float], names: Mapping[str, str]) -> dict[str, float]:
    return {name: float(figures[key]) for key, name in names.items() if key in figures}


def perplexity(loss: float) -> float:
    """``e^loss``: the number of equally likely tokens that would be as hard to predict."""
    return math.exp(loss) if loss < 700 else math.inf
