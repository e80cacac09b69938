"""Direct preference optimisation, on transformers' Trainer.

Our own: the responses to a prompt are one element of a batch, their prompt is computed once, and each response once for all the
pairs that it is in; logits exist at response tokens only, in blocks; log-probabilities under the reference are computed before
the first step, and kept with the checkpoints.

Shape suffixes: N responses of a batch, P pairs of them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from konomi.config import DPOConfig
from konomi.data.tokens import length_batches
from konomi.engine.device import autocast, find_device, has_gpu, is_processor, score_tokens
from konomi.engine.forward import plan_pass, response_hidden, through_head
from konomi.engine.layout import scatter
from konomi.engine.recompute import recomputing
from konomi.engine.rollout import Rollout
from konomi.engine.shared_weights import cast_once, one_gradient
from konomi.files import writing
from konomi.models.load import quiet
from konomi.ops import dpo_loss, ipo_loss, log_ratios, smooth_labels
from konomi.runs import processes
from konomi.runs.signals import Stop
from konomi.seeds import stream_seed
from konomi.training.callback import Outcome, Progress, Record, TrainingCallback
from konomi.training.checkpoint_files import read_tensors, save_trained, set_values, trained
from konomi.training.loop import ElementTrainer, Saving, training_arguments
from konomi.training.preferences import Choices, rollout_of

_STEP = {"loss": "dpo/loss", "grad_norm": "dpo/grad_norm", "learning_rate": "dpo/learning_rate", "epoch": "dpo/epoch"}
_EVALUATION = {
    "eval/loss": "eval/loss", "eval/accuracy": "eval/accuracy", "eval/margin": "eval/margin", "eval/preferred": "eval/preferred",
    "eval/other": "eval/other",
}  # fmt: skip
BEST = "best.safetensors"
REFERENCE = "reference.safetensors"
"""Log-probabilities under the reference, beside the checkpoints; its key says what they are of."""

Context = Callable[[], AbstractContextManager[Any]]


class ResponseLogprobs(nn.Module):
    """A language model as the Trainer wants it: [N] log-probabilities of whole responses, nats, with gradients."""

    def __init__(self, lm: PreTrainedModel) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, rollout: Rollout) -> Tensor:
        """[N] of the responses of a rollout."""
        p = plan_pass(self.lm, rollout)
        with cast_once(self.lm), one_gradient(self.lm), recomputing(self.lm):
            logprobs_n, _ = through_head(self.lm, response_hidden(self.lm, p), p.targets, 1.0, with_entropy=False)
        return scatter([(p, logprobs_n[None])], len(rollout))[0].sum(1)


@torch.no_grad()
def response_logprobs(
    model: ResponseLogprobs, choices: Sequence[Choices], context: Context, progress: Callable[[int, int], None] = lambda *_: None
) -> list[Tensor]:  # fmt: skip
    """[K] log-probabilities (nats) of the K responses to each prompt, on the CPU. Several processes divide them.

    ``context``: what models are called in. ``progress`` gets how many of how many prompts this process has done.
    """

    def of(mine: Sequence[Choices]) -> list[Tensor]:
        lengths, most = [each.longest for each in mine], score_tokens(model.lm.device)[0]
        logprobs: list[Tensor] = [torch.empty(0)] * len(mine)
        done = 0

        def fits(some: list[int]) -> bool:
            """With its padding, which attention sees even where the rest of the model does not."""
            return sum(len(mine[i].responses) for i in some) * lengths[some[-1]] <= most

        for batch in length_batches(lengths, fits):
            chosen = [mine[i] for i in batch]
            with context():
                logprobs_N = model(rollout_of(chosen)).cpu()
            for i, part in zip(batch, logprobs_N.split([len(each.responses) for each in chosen]), strict=True):
                logprobs[i] = part.clone()
            done += len(batch)
            progress(done, len(mine))
        return logprobs

    return processes.divided(choices, of)


def reference_logprobs(
    model: ResponseLogprobs, sides: Sequence[Sequence[Choices]], file: Path, identity: str, context: Context,
    progress: Callable[[int, int], None],
) -> list[list[Tensor]]:  # fmt: skip
    """`response_logprobs` of the initial model for each side, in passes of its own as when it is evaluated, so that the model
    begins at its reference to the bit. Those in ``file``, if they are of these tokens and of this model; else they are computed,
    and kept there.

    ``identity``: says which model it is, and in which precision.
    """
    content = json.dumps([identity, [[[each.query, each.responses] for each in side] for side in sides]])
    key, counts = hashlib.sha256(content.encode()).hexdigest(), [len(each.responses) for side in sides for each in side]

    def kept() -> Tensor | None:
        try:
            with safe_open(file, framework="pt") as opened:
                stored: Tensor | None = opened.get_tensor("logprobs") if (opened.metadata() or {}).get("key") == key else None
            return stored
        except (OSError, SafetensorError):
            return None

    if (logprobs_N := processes.first(kept)) is None:
        logprobs_N = torch.cat([x for side in sides for x in response_logprobs(model, side, context, progress)])
        if processes.is_main():
            with writing(file):
                save_file({"logprobs": logprobs_N}, file, metadata={"key": key})
    each = iter(torch.split(logprobs_N, counts))
    return [list(itertools.islice(each, len(side))) for side in sides]


def collate(items: Sequence[tuple[Choices, Tensor]]) -> dict[str, Tensor]:
    """Elements, each with its responses' reference log-probabilities, as one batch."""
    rollout = rollout_of([choices for choices, _ in items])
    return {"ids": rollout.ids, "queries": rollout.query_lengths, **_judgements(items)}


def _judgements(items: Sequence[tuple[Choices, Tensor]]) -> dict[str, Tensor]:
    """What the loss of elements needs besides the model's log-probabilities."""
    choices, references = zip(*items, strict=True)
    judged, start = [], 0
    for each in choices:
        judged += [(start + j.better, start + j.worse, j.label, j.margin, j.weight) for j in each.judged]
        start += len(each.responses)
    better, worse, labels, margins, weights = zip(*judged, strict=True)
    reference_N = torch.cat(references)
    return {
        "responses": torch.tensor([len(row) for each in choices for row in each.responses]), "reference": reference_N,
        "better": torch.tensor(better), "worse": torch.tensor(worse),
        **{
            name: torch.tensor(x, dtype=reference_N.dtype)
            for name, x in (("labels", labels), ("margins", margins), ("weights", weights))
        },
    }  # fmt: skip


def batch_loss(logprobs_N: Tensor, batch: dict[str, Tensor], config: DPOConfig) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The loss of a batch, a sum over prompts; the log-ratio [N] of each response; and what the loss counts besides."""
    ratios_N = log_ratios(logprobs_N, batch["reference"], batch["responses"] if per_token(config) else None)
    better_P, worse_P, weights_P = (batch[name] for name in ("better", "worse", "weights"))
    labels_P = smooth_labels(batch["labels"], config.label_smoothing)
    if config.loss == "ipo":
        loss, sums = ipo_loss(ratios_N, better_P, worse_P, labels_P, weights_P, beta=config.beta)
    else:
        loss, sums = dpo_loss(ratios_N, better_P, worse_P, labels_P, batch["margins"], weights_P, beta=config.beta)
    return loss, ratios_N, sums


def per_token(config: DPOConfig) -> bool:
    """Whether log-ratios are divided by the tokens of their responses."""
    return config.loss == "ipo" if config.per_token == "auto" else config.per_token == "yes"


def figures(
    logprobs: Sequence[Tensor], references: Sequence[Tensor], choices: Sequence[Choices], config: DPOConfig
) -> dict[str, float]:
    """Loss and figures of an evaluation; see docs/metrics.md. One prompt counts as much as another."""
    batch = _judgements(list(zip(choices, references, strict=True)))
    loss, ratios_N, sums = batch_loss(torch.cat(list(logprobs)), batch, config)
    leaning_P = torch.sign(batch["labels"] - 0.5)
    weights_P = batch["weights"] * leaning_P.abs()
    preferred_P = torch.where(leaning_P > 0, batch["better"], batch["worse"])
    other_P = torch.where(leaning_P > 0, batch["worse"], batch["better"])
    weight = weights_P.sum().clamp(min=1e-9)
    preferred, other = (float((weights_P * ratios_N[side_P]).sum() / weight) for side_P in (preferred_P, other_P))
    return {
        "loss": float(loss) / len(choices), "accuracy": float(sums["right"] / sums["decided"].clamp(min=1e-9)),
        "margin": config.beta * (preferred - other), "preferred": preferred, "other": other,
    }  # fmt: skip


def train_dpo(
    lm: PreTrainedModel, train: Sequence[Choices], held_out: Sequence[Choices], config: DPOConfig, *, seed: int, precision: str,
    directory: Path, identity: str, record: Record, progress: Progress, stop: Stop, saving: Saving | None = None,
) -> tuple[Outcome, list[Tensor]]:  # fmt: skip
    """Train ``lm`` in place; it ends with the weights of its lowest evaluation loss.

    Args:
        lm: the initial model, which is the reference; what is trained requires a gradient.
        train, held_out: each element has a judgement.
        config: settings.
        seed: of the order of the data.
        precision: fp32, bf16 or fp64.
        directory: exists; gets `BEST`, the best weights so far, and `REFERENCE`.
        identity: see :func:`reference_logprobs`.
        record, progress, stop: see `TrainingCallback`.
        saving: None: there are no checkpoints.

    Returns:
        How it went, and the reference's log-probabilities of each held-out response.

    Raises:
        RunError: the loss is not finite.
    """
    if precision == "fp64":
        lm.double()
    model, best = ResponseLogprobs(lm.to(find_device())), directory / BEST
    learned, references = reference_logprobs(
        model, [train, held_out], directory / REFERENCE, f"{identity} {precision}", lambda: autocast(lm.device, precision),
        lambda done, total: progress("reference", done, total, None),
    )  # fmt: skip
    rows = list(zip(train, learned, strict=True))

    def keep() -> None:
        if processes.is_main():
            save_trained(model, best)

    callback = TrainingCallback(
        "dpo", _STEP, _EVALUATION, record, keep, progress, stop, each_step=True, patience=config.patience,
        save_every=saving.every if saving else None,
    )  # fmt: skip
    every = max(1, -(-len(train) // config.batch_size) // config.evaluations)
    arguments = training_arguments(
        config, "dpo", directory, eval_strategy="steps", eval_steps=every, logging_steps=1, use_cpu=is_processor(lm.device),
        dataloader_pin_memory=has_gpu(), seed=stream_seed(seed, "dpo") % 2**32,
        data_seed=stream_seed(seed, "dpo", "order") % 2**32,
    )  # fmt: skip
    trainer = _DPOTrainer(
        precision, callback, saving, model, arguments, collate, rows, list(zip(held_out, references, strict=True)),
    )  # fmt: skip
    trainer.config = config
    with quiet():
        outcome = trainer.fit()
    if not stop.signal:
        processes.wait()  # the main one has written it
        set_values(trained(model), read_tensors(best))
    lm.eval()
    return outcome, references


class _DPOTrainer(ElementTrainer):
    config: DPOConfig

    @staticmethod
    def count(batch: dict[str, Tensor]) -> int:
        return round(float(batch["weights"].sum()))

    @staticmethod
    def filler(row: tuple[Choices, Tensor]) -> tuple[Choices, Tensor]:
        choices, reference = row
        return replace(choices, judged=tuple(each._replace(weight=0.0) for each in choices.judged)), reference

    def total_loss(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        # the Trainer moves everything to the device; sizes and row numbers are for the host
        ids_BL, queries_B, responses_B = (batch[name].cpu() for name in ("ids", "queries", "responses"))
        logprobs_N = model(Rollout(ids_BL, queries_B, responses_B, torch.zeros(len(ids_BL), dtype=torch.bool)))
        return batch_loss(logprobs_N, batch, self.config)[0]

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        model: Any = self.model
        choices, references = zip(*self.eval_dataset, strict=True)
        logprobs = response_logprobs(
            model, choices, self.autocast_smart_context_manager,
            lambda done, total: self.callback.progress("evaluation", done, total, None),
        )  # fmt: skip
        metrics = figures(logprobs, references, choices, self.config)
        return self.evaluated({f"eval/{name}": value for name, value in metrics.items()})
