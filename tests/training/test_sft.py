"""The loss, its normalisation, packing, evaluation, the best model and early stopping, on small real models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from konomi.config import SFTConfig
from konomi.errors import ConfigError, RunError
from konomi.models.policy import train_only
from konomi.runs.signals import Stop
from konomi.training.callback import perplexity
from konomi.training.sft import TokenLoss, _SFTTrainer, check_packing, train
from konomi.training.texts import IGNORED, Collator, Row, pack
from tiny import EOS_ID, FAMILIES, VOCAB
from tiny_run import weights, without_dropout


def some_rows(
    count: int, *, longest: int = 30, prompt: int = 0, seed: int = 0, letters: Sequence[int] = range(2, VOCAB)
) -> list[Row]:
    """Texts of 2 to ``longest`` random letters, of which ``prompt`` or fewer do not count."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for n in range(count):
        length = longest if n == 0 else int(torch.randint(2, longest + 1, (1,), generator=generator))
        ids = [letters[int(i)] for i in torch.randint(len(letters), (length,), generator=generator)]
        front = min(1 + prompt, length - 1)
        rows.append(Row(ids, [IGNORED] * front + ids[front:], list(range(length))))
    return rows


@torch.no_grad()
def slow_losses(lm: Any, rows: Sequence[Row]) -> list[float]:
    """Of each token that counts its cross-entropy, one text and one token at a time."""
    losses = []
    for row in rows:
        for n, label in enumerate(row.labels):
            if label != IGNORED:
                logits = lm(input_ids=torch.tensor([row.ids[:n]]), use_cache=False).logits[0, -1].double()
                losses.append(-float(logits.log_softmax(-1)[label]))
    return losses


def sharp(family: str, **changes: Any) -> Any:
    """A model whose next token depends much on all tokens before it."""
    return without_dropout(family, initializer_range=0.3, **changes)


class Trained:
    """Trains, and holds what the training recorded, said and kept."""

    def __init__(
        self, lm: Any, rows: Sequence[Row], held_out: Sequence[Row], directory: Path, *, seed: int = 0, precision: str = "fp32",
        stop_after: int = -1, packing: bool = False, **sft: Any,
    ) -> None:  # fmt: skip
        self.metrics: list[tuple[int, dict[str, float]]] = []
        self.kept: list[dict[str, torch.Tensor]] = []
        self.said: list[tuple[str, int, int]] = []
        stop, settings = Stop(lambda: None), {"batch_size": 8, "micro_batch_size": 4, "learning_rate": 3e-3, "warmup": 0.0}

        def record(update: int, metrics: Mapping[str, float]) -> None:
            self.metrics.append((update, dict(metrics)))
            stop.signal = "SIGINT" if update == stop_after else stop.signal

        self.outcome = train(
            lm, rows, held_out, Collator(EOS_ID, packing), SFTConfig(**{**settings, **sft}), seed=seed, precision=precision,
            directory=directory / "run", record=record, progress=lambda *said: self.said.append(said[:3]), stop=stop,
            keep=lambda: self.kept.append({name: tensor.clone() for name, tensor in lm.state_dict().items()}),
        )  # fmt: skip
        assert list((directory / "run").glob("**/*")) == []

    def of(self, name: str) -> dict[int, float]:
        """Update -> figure."""
        return {update: metrics[name] for update, metrics in self.metrics if name in metrics}


# -- the loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pad", [EOS_ID, 7])
def test_the_loss_is_that_of_a_slow_loop_whatever_the_padding(family: str, pad: int) -> None:
    lm, rows = sharp(family).requires_grad_(False), some_rows(5, prompt=3)
    out = TokenLoss(lm)(**Collator(pad, False)(rows))
    losses = slow_losses(lm, rows)
    assert float(out["loss"]) == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert out["rows"].sum(0).tolist() == pytest.approx([sum(losses), len(losses)], rel=1e-5)
    assert out["rows"][:, 1].tolist() == [row.learned for row in rows]
    assert float(TokenLoss(lm)(**Collator(pad, False)(rows), num_items_in_batch=1000)["loss"]) == pytest.approx(
        sum(losses) / 1000, abs=1e-6
    )


@pytest.mark.parametrize("family", ("gpt2", "gemma3"))
def test_of_a_filler_nothing_is_learned_and_every_weight_has_a_gradient(family: str) -> None:
    """What a process computes whose part of a step is empty."""
    lm, row = sharp(family), some_rows(1)[0]
    out = TokenLoss(lm)(**Collator(EOS_ID, False)([_SFTTrainer.filler(row)]), num_items_in_batch=3)
    assert (float(out["loss"].detach()), out["rows"].tolist()) == (0.0, [[0.0, 0.0]])
    out["loss"].backward()
    assert all(p.grad is not None and not p.grad.any() for p in lm.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_row_is_the_sum_of_its_texts(family: str) -> None:
    lm, rows = sharp(family), some_rows(9, prompt=2)
    check_packing(lm)
    packed = pack(rows, 60)
    assert len(packed) < 5
    together = TokenLoss(lm)(**Collator(EOS_ID, True)(packed))
    apart = [TokenLoss(lm)(**Collator(EOS_ID, False)([row])) for row in rows]
    total, count = torch.cat([out["rows"] for out in apart]).sum(0).tolist()
    assert float(together["loss"].detach()) == pytest.approx(total / count, abs=1e-5)
    assert together["rows"].sum(0).tolist() == pytest.approx([total, count], rel=1e-6)
    together["loss"].backward()
    of_packed = {name: p.grad.clone() for name, p in lm.named_parameters()}
    lm.zero_grad()
    TokenLoss(lm)(**Collator(EOS_ID, False)(rows))["loss"].backward()
    for name, p in lm.named_parameters():
        assert torch.allclose(p.grad, of_packed[name], atol=1e-5), name


def bloom(**changes: Any) -> Any:
    import transformers

    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4, "hidden_dropout": 0.0, "attention_dropout": 0.0}
    return transformers.AutoModelForCausalLM.from_config(transformers.BloomConfig(**sizes, **changes)).eval()


def test_a_model_whose_texts_would_see_each_other_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A family without positions, and one that ignores them."""
    with pytest.raises(ConfigError, match=r"sft.packing = true: in a BloomForCausalLM a text would see.*set sft.packing = false"):
        check_packing(bloom())
    lm = sharp("gpt2")
    forward = lm.base_model.forward
    without = lambda input_ids=None, position_ids=None, **rest: forward(input_ids=input_ids, **rest)  # noqa: E731
    monkeypatch.setattr(lm.base_model, "forward", without)
    with pytest.raises(ConfigError, match="in a GPT2LMHeadModel a text would see"):
        check_packing(lm)


def test_perplexity() -> None:
    assert perplexity(math.log(29)) == pytest.approx(29)
    assert perplexity(1e4) == math.inf


# -- training ----------------------------------------------------------------------------------------------------------


def test_micro_batches_change_nothing(tmp_path: Path) -> None:
    rows, held_out = some_rows(21, prompt=5), some_rows(6, seed=1)
    trained, losses = [], []
    for micro_batch_size in (8, 2, 1):
        lm = without_dropout("llama")
        run = Trained(lm, rows, held_out, tmp_path, precision="fp64", micro_batch_size=micro_batch_size, epochs=2)
        trained.append(weights(lm))
        losses.append(list(run.of("sft/loss").values()))
    assert len(losses[0]) == 6  # 21 rows are two whole batches and a rest
    for other in (1, 2):
        assert losses[other] == pytest.approx(losses[0], abs=1e-6)  # which the Trainer adds up in float32
        assert torch.allclose(trained[other], trained[0], atol=1e-9)


def test_the_first_loss_is_the_mean_over_the_tokens_of_the_batch(tmp_path: Path) -> None:
    rows = some_rows(8, prompt=4)
    losses = slow_losses(sharp("gpt2"), rows)
    run = Trained(sharp("gpt2"), rows, rows, tmp_path, epochs=1)
    assert run.of("sft/loss") == pytest.approx({1: sum(losses) / len(losses)}, abs=1e-5)


def test_the_evaluation_is_the_mean_over_tokens(tmp_path: Path) -> None:
    held_out = some_rows(7, prompt=2, seed=1)  # batches of 4 and 3 rows, of very different lengths
    losses = slow_losses(sharp("gemma3"), held_out)
    for packing in (False, True):
        rows = pack(held_out, 40) if packing else held_out
        run = Trained(sharp("gemma3"), some_rows(4), rows, tmp_path, packing=packing, epochs=1)
        assert run.of("eval/loss")[0] == pytest.approx(sum(losses) / len(losses), abs=1e-5)
        assert run.of("eval/perplexity")[0] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)


def test_the_loss_falls_and_all_is_recorded(tmp_path: Path) -> None:
    rows, held_out = some_rows(16, letters=range(2, 6)), some_rows(4, letters=range(2, 6), seed=1)
    run = Trained(without_dropout("gpt2"), rows, held_out, tmp_path, epochs=8, schedule="linear", learning_rate=1e-2)
    losses, rates = run.of("sft/loss"), run.of("sft/learning_rate")
    assert list(losses) == list(range(1, 17)) and run.outcome.steps == 16
    assert losses[16] < losses[1] - 0.5
    assert rates[1] == pytest.approx(1e-2) and rates[16] == pytest.approx(1e-2 / 16)
    assert run.of("sft/epoch")[16] == 8 and run.metrics[0][1].keys() == {"eval/loss", "eval/perplexity"}
    assert all(norm > 0 for norm in run.of("sft/grad_norm").values())
    assert list(run.of("eval/loss")) == list(range(0, 17, 2))
    assert run.outcome.initial_loss == run.of("eval/loss")[0]
    assert run.outcome.best_loss == min(run.of("eval/loss").values())
    assert ("training", 16, 16) in run.said and ("evaluation", 1, 1) in run.said


def test_schedules_warm_up_and_decay(tmp_path: Path) -> None:
    rows = some_rows(64, longest=4)
    rates = {
        schedule: list(Trained(without_dropout("gpt2"), rows, rows[:2], tmp_path, epochs=1, schedule=schedule, warmup=0.5)
                       .of("sft/learning_rate").values())
        for schedule in ("linear", "cosine", "constant")
    }  # fmt: skip
    for of in rates.values():
        assert of[:5] == pytest.approx([0, 3e-3 / 4, 3e-3 / 2, 3e-3 * 3 / 4, 3e-3])
    assert rates["constant"][-1] == pytest.approx(3e-3)
    assert rates["linear"][5] == pytest.approx(3e-3 * 3 / 4)
    assert rates["cosine"][6] == pytest.approx(3e-3 / 2)


def test_the_best_model_is_kept_and_patience_ends(tmp_path: Path) -> None:
    """The texts are of one letter, the held-out ones of two: what is learned first helps with both, and then harms."""
    rows, held_out = some_rows(8, letters=[2]), some_rows(8, letters=[2, 3], seed=1)
    lm = without_dropout("gpt2")
    run = Trained(lm, rows, held_out, tmp_path, epochs=40, learning_rate=1e-2, schedule="constant", patience=3)
    outcome, losses = run.outcome, run.of("eval/loss")
    assert 0 < outcome.best_step < outcome.steps < 40 and outcome.early
    assert outcome.steps == outcome.best_step + 3
    assert losses[outcome.best_step] == outcome.best_loss == min(losses.values()) < losses[0]
    assert losses[outcome.steps] > outcome.best_loss
    again = without_dropout("gpt2")
    again.load_state_dict(run.kept[-1])
    of_best = slow_losses(again, held_out)
    assert sum(of_best) / len(of_best) == pytest.approx(outcome.best_loss, abs=1e-5)
    of_last = slow_losses(lm, held_out)
    assert sum(of_last) / len(of_last) == pytest.approx(losses[outcome.steps], abs=1e-5)
    patient = Trained(without_dropout("gpt2"), rows, held_out, tmp_path, epochs=12, learning_rate=1e-2, patience=0)
    assert (patient.outcome.steps, patient.outcome.early) == (12, False)


def test_evaluations_between_epochs_and_at_the_end(tmp_path: Path) -> None:
    run = Trained(without_dropout("gpt2"), some_rows(40, longest=5), some_rows(3), tmp_path, epochs=1, evaluate_every=2)
    assert list(run.of("eval/loss")) == [0, 2, 4, 5]


def test_same_seed_same_bits(tmp_path: Path) -> None:
    rows, held_out = some_rows(20), some_rows(4, seed=1)

    def trained(seed: int) -> tuple[torch.Tensor, list[Any]]:
        torch.manual_seed(int(torch.randint(1000, (1,))))  # whatever was drawn before
        lm = without_dropout("gpt2")
        metrics = Trained(lm, rows, held_out, tmp_path, seed=seed, epochs=2).metrics
        return weights(lm), metrics

    first, again, other = trained(3), trained(3), trained(4)
    assert torch.equal(first[0], again[0]) and first[1] == again[1]
    assert not torch.equal(first[0], other[0])


def test_a_wish_to_stop_ends_after_the_update_without_an_evaluation(tmp_path: Path) -> None:
    run = Trained(without_dropout("gpt2"), some_rows(32), some_rows(3), tmp_path, epochs=3, stop_after=5)
    # the Trainer says what a step did after the step: the wish is seen in the next one
    assert run.outcome.steps == 6
    assert list(run.of("eval/loss")) == [0, 4]


def test_what_is_frozen_stays(tmp_path: Path) -> None:
    lm = without_dropout("llama")
    before = {name: tensor.clone() for name, tensor in lm.state_dict().items()}
    train_only(lm, freeze_embeddings=True, top_layers=1)
    Trained(lm, some_rows(8), some_rows(3), tmp_path, epochs=1)
    moved = {name for name, tensor in lm.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved and all(name.startswith(("model.layers.1.", "model.norm")) for name in moved)
    assert not lm.training


def test_weight_decay_and_clipping_are_used(tmp_path: Path) -> None:
    runs = {}
    for name, settings in {"plain": {}, "decay": {"weight_decay": 10.0}, "clip": {"max_grad_norm": 1e-9}}.items():
        lm = without_dropout("gpt2")
        Trained(lm, some_rows(8), some_rows(3), tmp_path, epochs=1, **settings)
        runs[name] = lm.state_dict()["transformer.h.0.mlp.c_fc.weight"]
    before = without_dropout("gpt2").state_dict()["transformer.h.0.mlp.c_fc.weight"]
    assert torch.allclose(runs["decay"], runs["plain"] - 3e-3 * 10 * before, atol=1e-6)
    assert (runs["clip"] - before).abs().max() < (runs["plain"] - before).abs().max() / 2


def test_bf16_is_of_this_run_alone(tmp_path: Path) -> None:
    rows, held_out = some_rows(8), some_rows(3, seed=1)
    rough = Trained(sharp("llama"), rows, held_out, tmp_path, precision="bf16", epochs=1)
    exact = Trained(sharp("llama"), rows, held_out, tmp_path, epochs=1)
    assert rough.of("eval/loss")[0] != exact.of("eval/loss")[0]
    assert rough.of("eval/loss")[0] == pytest.approx(exact.of("eval/loss")[0], rel=0.05)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    from accelerate.state import GradientState

    with pytest.raises(RunError, match=r"update \d+: the loss is (nan|inf); lower sft.learning_rate"):
        Trained(without_dropout("gpt2"), some_rows(32), some_rows(3), tmp_path, epochs=3, learning_rate=1e30)
    assert GradientState().sync_gradients
