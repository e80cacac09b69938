"""The callback of every training on transformers' Trainer: it records metrics, keeps the best model, saves and stops."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from konomi.errors import RunError
from konomi.runs.signals import Stop

Record = Callable[[int, Mapping[str, float]], None]
"""Takes the number of optimiser steps done and their metrics; see docs/metrics.md."""
Progress = Callable[[str, int, int, Mapping[str, float] | None], None]
"""Takes the phase, the steps done, their total, and figures to show."""


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
        save_every: optimiser steps between checkpoints; None: there are none.
    """

    def __init__(
        self, section: str, step_names: Mapping[str, str], evaluation_names: Mapping[str, str], record: Record,
        keep: Callable[[], None], progress: Progress, stop: Stop, *, each_step: bool, patience: int,
        save_every: int | None = None,
    ) -> None:  # fmt: skip
        self.section, self.each_step, self.patience = section, each_step, patience
        self.step_names, self.evaluation_names = step_names, evaluation_names
        self.record, self.keep, self.progress, self.stop = record, keep, progress, stop
        self.save_every = save_every
        self.outcome = Outcome()
        self._step_figures: dict[str, float] = {}
        self._losses: list[float] = []  # of the steps since the last record
        self._not_better, self._batches = 0, 0
        self._save_due = False

    def state_dict(self) -> dict[str, Any]:
        """All that a training needs to go on, as JSON holds it."""
        return {
            "outcome": asdict(self.outcome), "not_better": self._not_better, "losses": self._losses,
            "step_figures": self._step_figures,
        }  # fmt: skip

    @staticmethod
    def check(state: Mapping[str, Any]) -> None:
        """Raise KeyError, TypeError or ValueError if this is not what `state_dict` gives."""
        outcome, figures = Outcome(**state["outcome"]), dict(state["step_figures"])
        counts = outcome.steps, outcome.best_step, state["not_better"]
        numbers = outcome.epochs, outcome.initial_loss, outcome.best_loss, *state["losses"], *figures.values()
        if not all(type(count) is int and count >= 0 for count in counts) or not all(map(math.isfinite, numbers)):
            raise ValueError("not the state of a training")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.outcome, self._not_better = Outcome(**state["outcome"]), state["not_better"]
        self._losses, self._step_figures = list(state["losses"]), dict(state["step_figures"])

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        """Figures of an optimiser step; also called with those of an evaluation and of the end, which have no ``loss``."""
        if "loss" not in (logs or {}):
            return
        self._check_finite("loss", logs["loss"], state.global_step)
        self._losses.append(logs["loss"])
        mean = math.fsum(self._losses) / len(self._losses)
        self._step_figures = _named({**logs, "loss": mean, "epoch": _epochs(args, state)}, self.step_names)
        if self.each_step:
            self.record(state.global_step, self._taken_figures())

    def _taken_figures(self) -> dict[str, float]:
        figures, self._step_figures, self._losses = self._step_figures, {}, []
        return figures

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """An optimiser step is done."""
        self.outcome.steps, self.outcome.epochs = state.global_step, _epochs(args, state)
        self.progress("training", state.global_step, state.max_steps, None)
        self.stop.agree()
        if self.stop.signal:
            control.should_training_stop = True
        due = bool(self.stop.signal) or (state.global_step < state.max_steps and state.global_step % (self.save_every or 1) == 0)
        self._save_due = due and self.save_every is not None
        if not _at_epoch_end(state):  # where it is saved after the evaluation that may follow
            control.should_save = self._save_due

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """No evaluation follows an epoch that was left."""
        if not _at_epoch_end(state):
            control.should_evaluate = False
        control.should_save = self._save_due

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A checkpoint is written."""
        self._save_due = False

    def on_prediction_step(self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **_: Any) -> None:
        """A batch of an evaluation is done."""
        self._batches += 1
        self.progress("evaluation", self._batches, len(eval_dataloader), None)

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, metrics: Any = None, **_: Any) -> None:
        """An evaluation is done."""
        step, self._batches = state.global_step, 0
        figures = self._taken_figures() | _named({**metrics, "epoch": _epochs(args, state)}, self.evaluation_names)
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
        self.stop.agree()
        if self.stop.signal:
            control.should_training_stop = True
            control.should_save = step > 0 and self.save_every is not None

    def _check_finite(self, what: str, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            raise RunError(
                f"update {step}: the {what} is {loss}; lower {self.section}.learning_rate, lengthen {self.section}.warmup, or "
                'set model.precision = "fp32"'
            )


def _at_epoch_end(state: TrainerState) -> bool:
    return float(state.epoch or 0.0).is_integer()


def _epochs(args: Any, state: TrainerState) -> float:
    """Epochs done, by optimiser steps; the Trainer's own count is by micro-batches, of which a last step may have fewer."""
    return float(state.global_step * args.num_train_epochs / state.max_steps)


def _named(figures: Mapping[str, float], names: Mapping[str, str]) -> dict[str, float]:
    return {name: float(figures[key]) for key, name in names.items() if key in figures}


def perplexity(loss: float) -> float:
    """``e^loss``: the number of equally likely tokens that would be as hard to predict."""
    return math.exp(loss) if loss < 700 else math.inf
