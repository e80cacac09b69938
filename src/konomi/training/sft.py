"""Supervised fine-tuning, on transformers' Trainer.

Our own: logits exist only at the tokens that count, in blocks; the evaluation is a mean over tokens, not over batches; the best
model is kept as one directory without a pickle.

Shape suffixes: B rows, L tokens, N tokens that count, D width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from konomi.config import SFTConfig
from konomi.engine.device import has_gpu
from konomi.engine.forward import through_head
from konomi.engine.packed import trunk_of
from konomi.engine.shared_weights import one_gradient
from konomi.errors import ConfigError
from konomi.runs.signals import Stop
from konomi.seeds import stream_seed
from konomi.training.callback import Outcome, Progress, Record, TrainingCallback, perplexity
from konomi.training.loop import QuietTrainer, Saving, training_arguments
from konomi.training.texts import IGNORED, Collator, Row

_STEP = {"loss": "sft/loss", "grad_norm": "sft/grad_norm", "learning_rate": "sft/learning_rate", "epoch": "sft/epoch"}
_EVALUATION = {"eval_token_loss": "eval/loss", "eval_perplexity": "eval/perplexity"}


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

        loss: cross-entropy in nats, summed over the tokens that count, divided by ``num_items_in_batch`` (None: their number).
        rows: [B, 2] float64, of each row the sum and the number of these tokens; without gradients.
        """
        positions = {} if position_ids is None else {"position_ids": position_ids}
        row_N, at_N = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        targets_N, counted = labels[row_N, at_N + 1], 1.0
        if not len(row_N):  # a filler: a gradient of 0 for every weight, since the other processes wait for it
            row_N, at_N, targets_N, counted = (*labels.new_zeros(3, 1), 0.0)
        with one_gradient(self.lm):
            hidden_BLD = trunk_of(self.lm)(input_ids=input_ids, use_cache=False, **positions).last_hidden_state
            hidden_ND = hidden_BLD.flatten(0, 1).index_select(0, row_N * labels.shape[1] + at_N)
            logprobs_N, _ = through_head(self.lm, hidden_ND, targets_N, 1.0)
        rows_B2 = torch.zeros(len(labels), 2, dtype=torch.float64, device=labels.device)
        each_N2 = torch.stack([-logprobs_N.detach().double(), torch.ones_like(logprobs_N, dtype=torch.float64)], dim=-1)
        rows_B2.index_add_(0, row_N, each_N2 * counted)
        count = len(row_N) if num_items_in_batch is None else num_items_in_batch
        return {"loss": -counted * logprobs_N.sum() / count, "rows": rows_B2}


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


def train(
    lm: PreTrainedModel, rows: Sequence[Row], held_out: Sequence[Row], collator: Collator, sft: SFTConfig, *,
    seed: int, precision: str, directory: Path, record: Record, keep: Callable[[], None], progress: Progress, stop: Stop,
    saving: Saving | None = None,
) -> Outcome:  # fmt: skip
    """Train a language model in place; it ends as its last step left it, in eval mode. ``keep`` saves the best one meanwhile.

    Args:
        lm: `requires_grad` says what of it is trained.
        rows, held_out: to learn from, and to evaluate on.
        collator: rows to batches.
        sft: settings.
        seed: of the order of rows.
        precision: of matrix products: fp32, bf16 or fp64.
        directory: an argument that the Trainer needs; nothing is written there.
        record, keep, progress, stop: see `TrainingCallback`.
        saving: None: there are no checkpoints.

    Raises:
        RunError: the loss is not finite.
    """
    callback = TrainingCallback(
        "sft", _STEP, _EVALUATION, record, keep, progress, stop, each_step=True, patience=sft.patience,
        save_every=saving.every if saving else None,
    )  # fmt: skip
    if precision == "fp64":
        lm.double()
    arguments = training_arguments(
        sft, "sft", directory, eval_strategy="steps" if sft.evaluate_every else "epoch", eval_steps=sft.evaluate_every,
        eval_do_concat_batches=False, logging_steps=1, dataloader_pin_memory=has_gpu(),
        seed=stream_seed(seed, "sft") % 2**32, data_seed=stream_seed(seed, "sft", "order") % 2**32,
    )  # fmt: skip
    trainer = _SFTTrainer(
        precision, callback, saving, TokenLoss(lm), arguments, collator, train_dataset=rows, eval_dataset=held_out,
        compute_metrics=_token_mean,
    )  # fmt: skip
    try:
        return trainer.fit()
    finally:
        lm.eval()
        # this state is global: left in the middle of a batch, the optimiser of the next training would not step
        trainer.accelerator.gradient_state._set_sync_gradients(True)


class _SFTTrainer(QuietTrainer):
    @staticmethod
    def filler(row: Row) -> Row:
        return replace(row, labels=[IGNORED] * len(row.ids))


def _token_mean(evaluated: Any) -> dict[str, float]:
    """The mean over all tokens that count; the Trainer's own is over batches."""
    total, count = np.concatenate(evaluated.predictions).sum(axis=0)
    loss = float(total / count)
    return {"token_loss": loss, "perplexity": perplexity(loss)}
