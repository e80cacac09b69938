"""What fine-tuning, DPO and reward models share: transformers' Trainer and its arguments.

The loop, the optimiser, the schedule, accumulation and clipping are the Trainer's. Its precision is our own autocast, of the run
and not of the process; so are its checkpoints, which hold no pickle.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from konomi.config import DPOConfig, RewardTraining, SFTConfig
from konomi.engine.device import autocast
from konomi.runs import processes
from konomi.training.batches import OwnBatches, OwnLoader, micro_batch_size
from konomi.training.callback import Outcome, TrainingCallback
from konomi.training.checkpoint_files import STATE_FILE, load_random_state, load_training, save_training
from konomi.training.checkpoints import Checkpoints


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
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, dict(figures))
        return dict(figures)


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
