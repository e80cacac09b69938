"""What follows a training on transformers' Trainer: it tells how it goes, keeps the best weights, and ends it in time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from konomi.errors import RunError
from konomi.files import writing

_NOT_FINITE = 'step {}: the loss is not finite; try a lower learning rate, or model.precision = "fp32"'


class Hears:
    """Who is told how a training goes. This one ignores it."""

    def step(self, done: int, total: int) -> None:
        """So many optimiser steps are done."""

    def evaluated(self, step: int, figures: dict[str, float]) -> None:
        """An evaluation is done: ``train/...``, ``eval/...``, ``epoch``."""

    def stop(self) -> str | None:
        """Why training should stop now; None: it should not."""
        return None


@dataclass
class Outcome:
    """How a training went.

    steps, epochs: what was made. best_step: after so many the best model was found. best_loss: its evaluation loss.
    early: training ended before its last epoch because the loss fell no more.
    """

    steps: int = 0
    epochs: float = 0.0
    best_step: int = 0
    best_loss: float = math.inf
    early: bool = False
    history: list[dict[str, float]] = field(default_factory=list)


class Follower(TrainerCallback):  # type: ignore[misc]
    """A context around a training; as it ends well, the model has the weights of its lowest ``eval/loss``.

    Args:
        model: what is trained.
        best: file for the best weights; removed at the end.
        patience: end after so many evaluations without a lower loss; None: never.
        hears: is told.
    """

    def __init__(self, model: nn.Module, best: Path, patience: int | None, hears: Hears) -> None:
        self.model, self.best, self.patience, self.hears = model, best, patience, hears
        self.outcome = Outcome()
        self._train: dict[str, float] = {}
        self._since = 0

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None and self.best.exists():
            weights = load_file(self.best)
            with torch.no_grad():
                for name, parameter in _trained(self.model).items():
                    parameter.copy_(weights[name])
        self.best.unlink(missing_ok=True)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.outcome.steps, self.outcome.epochs = state.global_step, float(state.epoch or 0.0)
        self.hears.step(state.global_step, state.max_steps)
        self._stop(state)

    def _stop(self, state: TrainerState) -> None:
        if reason := self.hears.stop():
            raise KeyboardInterrupt(f"stopped by {reason} after step {state.global_step} of {state.max_steps}; nothing was kept")

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        names = {"loss": "train/loss", "grad_norm": "train/grad_norm", "learning_rate": "train/learning_rate"}
        self._train |= {names[key]: float(value) for key, value in (logs or {}).items() if key in names}
        if not math.isfinite(self._train.get("train/loss", 0.0)):
            raise RunError(_NOT_FINITE.format(state.global_step))

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, metrics: Any = None, **_: Any) -> None:
        figures = {"epoch": float(state.epoch or 0.0), **self._train, **(metrics or {})}
        self.outcome.history.append({"step": state.global_step, **figures})
        self.hears.evaluated(state.global_step, figures)
        self._stop(state)
        loss = figures["eval/loss"]
        if not math.isfinite(loss):
            raise RunError(_NOT_FINITE.format(state.global_step))
        if loss < self.outcome.best_loss:
            self.outcome.best_loss, self.outcome.best_step, self._since = loss, state.global_step, 0
            with writing(self.best):
                save_file({name: p.detach().contiguous() for name, p in _trained(self.model).items()}, self.best)
            return
        self._since += 1
        if self.patience is not None and self._since >= self.patience:
            self.outcome.early = control.should_training_stop = True


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
