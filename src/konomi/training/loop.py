"""What fine-tuning, DPO and reward models share: transformers' Trainer, its arguments, and a callback.

The loop, the optimiser, the schedule, accumulation and clipping are the Trainer's. Its precision is our own autocast, of the run
and not of the process; so are its checkpoints, which hold no pickle. The callback records the training, has the best model kept,
and ends it in time.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from konomi.config import DPOConfig, RewardTraining, SFTConfig
from konomi.engine.device import autocast
from konomi.errors import RunError
from konomi.runs import processes
from konomi.runs.signals import Stop
from konomi.training.batches import OwnBatches, OwnLoader, micro_batch_size
from konomi.training.checkpoints import STATE_FILE, Checkpoints, load_random_state, load_training, save_training

Record = Callable[[int, Mapping[str, float]], None]
"""Takes the number of optimiser steps done and their metrics; see docs/metrics.md."""
Progress = Callable[[str, int, int, Mapping[str, float] | None], None]
"""Takes what is being done, how much of how much is done, and figures that are worth a line."""


@dataclass(frozen=True)
class Saving:
    """When and where a training is saved.

    Attributes:
        checkpoints: the newest is kept.
        every: optimiser steps between two; a stop saves too.
        resume: of a run that goes on: calls what it is given with the newest complete checkpoint, if there is one.
    """

    checkpoints: Checkpoints
    every: int
    resume: Callable[[Callable[[Path], None]], object] | None = None


class QuietTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer in the precision of a run, printing nothing, with checkpoints of our own.

    `fit` trains; what `train` does besides is the Trainer's.
    """

    def __init__(self, precision: str, callback: TrainingCallback, saving: Saving | None, *given: Any, **named: Any) -> None:
        super().__init__(*given, callbacks=[callback], **named)
        self.precision, self.callback, self.saving = precision, callback, saving
        self.remove_callback(PrinterCallback)
        self._resumed: Path | None = None

    def fit(self) -> Outcome:
        """Train from the beginning, where the initial model is evaluated first, or from the newest checkpoint on."""
        if self.saving and self.saving.resume:
            self.saving.resume(self.load)
        self.args.eval_on_start = self._resumed is None
        if not self.callback.outcome.early:  # else it had ended before the stop
            self.train(resume_from_checkpoint=str(self._resumed) if self._resumed else None)
        return self.callback.outcome

    def load(self, directory: Path) -> None:
        """Restore a checkpoint, from which `fit` goes on. Raises RunError, and changes nothing, if it is incomplete."""

        def check(state: dict[str, Any]) -> None:
            self.callback.check(state)
            if TrainerState.load_from_json(str(directory / TRAINER_STATE_NAME)).global_step != state["outcome"]["steps"]:
                raise ValueError(f"{TRAINER_STATE_NAME}: of another step")

        self.create_optimizer()
        self.callback.load_state_dict(load_training(directory, self.model, self.optimizer, check))
        self._resumed = directory

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> AbstractContextManager[Any]:
        """The context in which the Trainer computes a loss."""
        return autocast(self.args.device, self.precision)

    def get_train_dataloader(self) -> Any:
        """In several processes the batches are our own."""
        if not processes.several():
            return super().get_train_dataloader()
        args, rows, micro = self.args, len(self.train_dataset), self.args.per_device_train_batch_size
        step = micro * args.gradient_accumulation_steps * processes.count()
        return OwnLoader(
            self.train_dataset, OwnBatches(rows, step, micro, args.data_seed), self.data_collator, self.filler
        )  # fmt: skip

    @staticmethod
    def filler(row: Any) -> Any:
        """A row like this one that nothing is learned from."""
        raise NotImplementedError

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Called when the callback asks for it."""
        assert self.saving is not None
        if self.args.should_save:
            own = asdict(replace(self.state, log_history=[]))
            states = {STATE_FILE: self.callback.state_dict(), TRAINER_STATE_NAME: own}
            step, checkpoints = self.state.global_step, self.saving.checkpoints
            checkpoints.save(step, lambda path: save_training(path, self.model, self.optimizer, states))
            checkpoints.prune(measured=step + 1)

    def _load_from_checkpoint(self, *_: Any) -> None:
        """Nothing is left to do: `load` has set weights and moments."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The rate of a step is that of its number."""
        if checkpoint is not None:
            self.lr_scheduler.last_epoch = self.callback.outcome.steps - 1
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a scheduler that steps before the optimiser
                self.lr_scheduler.step()

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Called right before the first step, when the batches before it were skipped."""
        if checkpoint is not None:
            load_random_state(Path(checkpoint))


class ElementTrainer(QuietTrainer):
    """A step's loss is a mean over its elements, in whichever micro-batch and process they are."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.loss_is_scaled_for_ga = True  # the last micro-batch may be a smaller one

    @staticmethod
    def count(batch: Any) -> int:
        """Elements of a batch that count."""
        raise NotImplementedError

    def total_loss(self, model: Any, batch: Any) -> Tensor:
        """The sum of their losses."""
        raise NotImplementedError

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], int]:
        """The micro-batches of a step, and the elements of all processes."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return samples, sum(processes.gather(sum(map(self.count, samples))))

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """The part of a micro-batch in the step's loss."""
        return self.total_loss(model, inputs) / num_items_in_batch * processes.count()  # the mean is taken of all

    def evaluated(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Tell the callback the figures of an evaluation."""
        metrics = {"epoch": float(self.state.epoch or 0.0), **figures}
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def training_arguments(
    config: SFTConfig | RewardTraining | DPOConfig, section: str, directory: Path, **more: Any
) -> TrainingArguments:
    """The Trainer's arguments for some settings. It saves, reports and prints nothing; ``directory`` stays as it is."""
    micro = micro_batch_size(config, section)
    arguments = TrainingArguments(
        output_dir=str(directory), num_train_epochs=config.epochs, per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro, gradient_accumulation_steps=config.batch_size // (micro * processes.count()),
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
        self._step_figures = _named({**logs, "loss": mean}, self.step_names)
        if self.each_step:
            self.record(state.global_step, self._taken_figures())

    def _taken_figures(self) -> dict[str, float]:
        figures, self._step_figures, self._losses = self._step_figures, {}, []
        return figures

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """An optimiser step is done."""
        self.outcome.steps, self.outcome.epochs = state.global_step, float(state.epoch or 0.0)
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
        figures = self._taken_figures() | _named(metrics, self.evaluation_names)
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


def _named(figures: Mapping[str, float], names: Mapping[str, str]) -> dict[str, float]:
    return {name: float(figures[key]) for key, name in names.items() if key in figures}


def perplexity(loss: float) -> float:
    """``e^loss``: the number of equally likely tokens that would be as hard to predict."""
    return math.exp(loss) if loss < 700 else math.inf
