"""Training of reward models, on transformers' Trainer: from rankings and pairs, from scores, from labels.

The loop, the optimiser and its schedule are the Trainer's. Our own are the batches (all responses to a prompt in one; hidden
states of frozen layers, computed once), the losses (`konomi.ops.preference`), the evaluation, and which model is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from konomi.config import RewardTraining
from konomi.data.messages import Text
from konomi.engine.device import autocast, is_processor
from konomi.models.load import quiet
from konomi.models.reward import Batch, RewardModel
from konomi.ops import label_loss, preference_loss, score_loss
from konomi.runs import processes
from konomi.runs.signals import Stop
from konomi.training.callback import Outcome, Progress, Record, TrainingCallback
from konomi.training.checkpoint_files import read_tensors, save_trained, set_values, trained
from konomi.training.loop import ElementTrainer, Saving, training_arguments

_STEP = {"loss": "train/loss", "grad_norm": "train/grad_norm", "learning_rate": "train/learning_rate"}
_EVALUATION = {"epoch": "epoch", "eval/loss": "eval/loss", "eval/accuracy": "eval/accuracy"}
BEST = "best.safetensors"
TRUNK_BYTES = 2e9
"""Memory that the kept hidden states of frozen layers may take; beyond it these layers run in each epoch."""


@dataclass(frozen=True)
class Example:
    """One element of a batch.

    texts: one text, or all responses to a prompt, each with the prompt.
    pairs: (better, worse, label, margin) of places in ``texts``. Task preference.
    target: a score or the number of a label. The other tasks.
    """

    texts: tuple[Text, ...]
    pairs: tuple[tuple[int, int, float, float], ...] = ()
    target: float = 0.0


class _Rows(Dataset[dict[str, Any]]):
    """Examples as token ids, with the input of the first trained layer where memory allows it."""

    def __init__(self, model: RewardModel, examples: Sequence[Example], precision: str) -> None:
        self.examples = examples
        self.rows = [model.encode(example.texts) for example in examples]
        self.hidden: list[Tensor] | None = None
        if model.packs and model.trunk_layer:
            width = model.model.config.get_text_config().hidden_size
            if 4 * width * sum(len(row) for rows in self.rows for row in rows) <= TRUNK_BYTES:
                self.hidden = [self._trunk(model, rows, precision) for rows in self.rows]
        self.starts = _starts(model, examples, self.rows) if model.language else None

    @staticmethod
    def _trunk(model: RewardModel, rows: list[list[int]], precision: str) -> Tensor:
        with autocast(model.device, precision):
            kept = model.trunk(model.batch(rows, [0] * len(rows)))
        assert kept is not None
        return kept.cpu()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        hidden, starts = (None if each is None else each[index] for each in (self.hidden, self.starts))
        return {"rows": self.rows[index], "example": self.examples[index], "hidden": hidden, "starts": starts}


def best_text(example: Example) -> int | None:
    """The place of the text that wins most comparisons, less those it loses; None if none is ahead."""
    ahead = [0.0] * len(example.texts)
    for better, worse, label, _ in example.pairs:
        ahead[better] += 2 * label - 1
        ahead[worse] -= 2 * label - 1
    return ahead.index(max(ahead)) if max(ahead) > 1e-6 else None  # shares of votes that cancel leave a rounding error


def _starts(model: RewardModel, examples: Sequence[Example], rows: Sequence[Sequence[Sequence[int]]]) -> list[list[int]]:
    """Where the likelihood of each text's tokens begins to count: of the best one with its response, of the others nowhere."""
    starts = [list(map(len, each)) for each in rows]
    best = [(number, place) for number, example in enumerate(examples) if (place := best_text(example)) is not None]
    counts = model.reader.response_lengths([examples[number].texts[place] for number, place in best])
    for (number, place), count in zip(best, counts, strict=True):
        starts[number][place] = max(1, starts[number][place] - count)
    return starts


def targets(examples: Sequence[Example]) -> dict[str, Tensor]:
    """What the losses compare the texts of all examples, one after another, with. A pair weighs 1 over those of its prompt."""
    starts = torch.tensor([0, *(len(example.texts) for example in examples)]).cumsum(0).tolist()
    pairs = [
        (start + better, start + worse, label, margin, 1 / len(example.pairs))
        for start, example in zip(starts, examples, strict=False)
        for better, worse, label, margin in example.pairs
    ]
    better, worse, *rest = zip(*pairs, strict=True) if pairs else [()] * 5
    return {
        "better": torch.tensor(better, dtype=torch.long),
        "worse": torch.tensor(worse, dtype=torch.long),
        **{name: torch.tensor(x) for name, x in zip(("pair_labels", "margins", "weights"), rest, strict=True)},
        "targets": torch.tensor([example.target for example in examples]),
    }


def collate(model: RewardModel, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Elements of a data set as one batch and its targets."""
    rows = [row for item in items for row in item["rows"]]
    batch = model.batch(rows, [i for i, item in enumerate(items) for _ in item["rows"]])
    tensors = {"ids": batch.ids, "lengths": batch.lengths, "shared": batch.shared}
    if items[0]["hidden"] is not None:
        width = batch.ids.shape[1]
        parts = [functional.pad(item["hidden"], (0, 0, 0, width - item["hidden"].shape[1])) for item in items]
        tensors["hidden"] = torch.cat(parts)
    if items[0]["starts"] is not None:
        tensors["starts"] = torch.tensor([start for item in items for start in item["starts"]])
    tensors |= targets([item["example"] for item in items])
    return tensors | ({"filler": torch.tensor(True)} if "filler" in items[0] else {})


def task_loss(
    task: str, numbers_NC: Tensor, targets: dict[str, Tensor], count: int | None = None
) -> tuple[Tensor, dict[str, float]]:
    """The loss of a batch over ``count`` elements (None: those of this batch), and figures of an evaluation."""
    count = len(targets["targets"]) if count is None else count
    if task == "classification":
        labels_N = targets["targets"].long()
        right = (numbers_NC.argmax(-1) == labels_N).float().mean()
        return label_loss(numbers_NC, labels_N) / count, {"accuracy": float(right)}
    if task == "score":
        return score_loss(numbers_NC[:, 0], targets["targets"].to(numbers_NC)) / count, {}
    pairs = [targets[name] for name in ("better", "worse", "pair_labels", "margins", "weights")]
    loss, sums = preference_loss(numbers_NC[:, 0], *pairs)
    return loss / count, {"accuracy": float(sums["right"] / sums["decided"].clamp(min=1e-9))}


def batch_loss(model: Any, batch: dict[str, Tensor], config: RewardTraining) -> Tensor:
    """The sum of the losses of a batch's elements, with ``lm_weight`` times what the language model's head says."""
    # the Trainer moves everything to the device; sizes and row numbers are for the host
    host = {name: batch[name].cpu() for name in ("ids", "lengths", "shared", "starts") if name in batch}
    numbers_NC: Tensor = model(Batch(**host, hidden=batch.get("hidden")))
    if "filler" in batch:
        return numbers_NC.sum() * 0.0
    loss, _ = task_loss(config.task, numbers_NC, batch, 1)
    return loss + config.lm_weight * numbers_NC[:, 1].sum() if "starts" in batch else loss


def train_reward_model(
    model: RewardModel, train: Sequence[Example], held_out: Sequence[Example], config: RewardTraining, *,
    seed: int, precision: str, directory: Path, record: Record, progress: Progress, stop: Stop, saving: Saving | None = None,
) -> Outcome:  # fmt: skip
    """Train ``model`` in place; it ends with the weights of its lowest evaluation loss.

    Args:
        model: on its device.
        train, held_out: in task preference each element has a pair.
        config: settings.
        seed: of the order of the data (and of dropout, where a model has it).
        precision: fp32 or bf16.
        directory: exists; gets `BEST`, the best weights so far. They stay there: a run that goes on may not find better ones.
        record, progress, stop: see `TrainingCallback`.
        saving: None: there are no checkpoints.

    Raises:
        RunError: the loss is not finite.
    """
    best = directory / BEST

    def keep() -> None:
        if processes.is_main():
            save_trained(model, best)

    with quiet():
        callback = TrainingCallback(
            "train", _STEP, _EVALUATION, record, keep, progress, stop, each_step=False,
            patience=config.patience or 0, save_every=saving.every if saving else None,
        )  # fmt: skip
        outcome = _RewardTrainer(model, train, held_out, config, seed, precision, directory, callback, saving).fit()
    if not stop.signal:
        processes.wait()  # the main one has written it
        set_values(trained(model), read_tensors(best))
    model.eval()
    return outcome


class _RewardTrainer(ElementTrainer):
    def __init__(
        self, model: RewardModel, train: Sequence[Example], held_out: Sequence[Example], config: RewardTraining, seed: int,
        precision: str, directory: Path, callback: TrainingCallback, saving: Saving | None,
    ) -> None:  # fmt: skip
        self.settings, self.held_out = config, held_out
        if model.language:
            model.language.to(model.device)
        every = max(1, -(-len(train) // config.batch_size) // config.evaluations)
        arguments = training_arguments(
            config, "train", directory, seed=seed % 2**32, data_seed=seed % 2**32, eval_strategy="steps", eval_steps=every,
            logging_steps=1, use_cpu=is_processor(model.device), dataloader_pin_memory=False,
        )  # fmt: skip
        super().__init__(
            precision, callback, saving, model, arguments, lambda items: collate(model, items), _Rows(model, train, precision),
            held_out, optimizers=(_optimizer(model, config), None),
        )  # fmt: skip

    @staticmethod
    def count(batch: dict[str, Tensor]) -> int:
        return 0 if "filler" in batch else len(batch["targets"])

    @staticmethod
    def filler(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "filler": True}

    def total_loss(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        return batch_loss(model, batch, self.settings)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        model: Any = self.model
        predict = partial(model.predict, autocast=self.autocast_smart_context_manager)
        numbers = processes.divided([e.texts for e in self.held_out], predict)
        with torch.no_grad():
            loss, figures = task_loss(self.settings.task, torch.cat(numbers), targets(self.held_out))
        return self.evaluated({"eval/loss": float(loss), **{f"eval/{name}": value for name, value in figures.items()}})


def _optimizer(model: RewardModel, config: RewardTraining) -> torch.optim.Optimizer:
    """AdamW; the head may have a rate of its own, and only matrices decay."""
    trunk = {id(p) for p in model.model.base_model.parameters()}
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            rate = config.learning_rate if id(parameter) in trunk else config.head_learning_rate or config.learning_rate
            decay = config.weight_decay if parameter.dim() > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()], fused=True
    )
