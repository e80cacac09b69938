"""Training of reward models in the tiny world: it learns, keeps the best, and what should not matter does not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from konomi.config import ModelConfig, RewardTraining
from konomi.data.messages import Answered
from konomi.errors import ConfigError, RunError
from konomi.models.reward import RewardModel
from konomi.models.reward_files import make_reward_model
from konomi.runs.signals import Stop
from konomi.training import reward as training
from konomi.training.callback import Outcome
from konomi.training.reward import Example, batch_loss, collate, targets, task_loss, train_reward_model
from tiny import ALPHABET, save_tiny, tiny_encoder, tiny_tokenizer
from tiny_run import weights


def words(seed: int, count: int) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    letters = torch.randint(26, (count, 6), generator=generator).tolist()
    return ["".join(ALPHABET[i % 4] for i in row) for row in letters]


def compared(seed: int, count: int, k: int = 4) -> list[Example]:
    """Responses to ``count`` prompts; the one with more letters "a" is better."""
    found = []
    for number in range(count):
        texts = list(dict.fromkeys(words(seed * 1000 + number, k)))
        counts = [text.count("a") for text in texts]
        places = range(len(texts))
        pairs = tuple((i, j, 1.0, 0.0) for i in places for j in places if counts[i] > counts[j])
        if pairs:
            found.append(Example(tuple(f"q {text}" for text in texts), pairs))
    return found


TRAIN, HELD_OUT = compared(1, 96), compared(2, 32)
CONFIG = RewardTraining(epochs=6, batch_size=8, learning_rate=3e-3, warmup=0.0)


def fresh(
    directory: Path, family: str = "llama", top_layers: int | None = None, outputs: int = 1, **more: Any
) -> RewardModel:  # fmt: skip
    tiny_encoder(directory) if family == "xlm-roberta" else save_tiny(directory, family)
    labels = tuple(map(str, range(outputs))) if outputs > 1 else ()
    config = ModelConfig(name=str(directory), top_layers=top_layers)
    return make_reward_model(config, outputs=outputs, labels=labels, seed=0, max_length=64, **more).model


def learn(
    model: RewardModel, train: list[Example], held_out: list[Example], config: RewardTraining, directory: Path, *,
    seed: int = 0, signal: str | None = None,
) -> tuple[Outcome, list[dict[str, float]]]:  # fmt: skip
    """Train; how it went, and what was recorded."""
    seen: list[dict[str, float]] = []
    stop = Stop(lambda: None)
    stop.signal = signal
    outcome = train_reward_model(
        model, train, held_out, config, seed=seed, precision="fp32", directory=directory,
        record=lambda step, figures: seen.append({"step": step, **figures}), progress=lambda *_: None, stop=stop,
    )  # fmt: skip
    return outcome, seen


def held_out_loss(model: RewardModel) -> float:
    with torch.no_grad():
        numbers = torch.cat(model.predict([example.texts for example in HELD_OUT]))
    return float(task_loss("preference", numbers, targets(HELD_OUT))[0])


@pytest.mark.parametrize(("family", "top_layers"), [("llama", None), ("gpt2", 1), ("xlm-roberta", None)])
def test_it_learns_what_is_preferred_and_the_best_is_kept(tmp_path: Path, family: str, top_layers: int | None) -> None:
    model = fresh(tmp_path / "m", family, top_layers)
    run = tmp_path / "run"
    run.mkdir()
    outcome, seen = learn(model, TRAIN, HELD_OUT, CONFIG, run)
    first, best = seen[0], min(seen, key=lambda line: line["eval/loss"])
    assert first["step"] == 0 and len(seen) == 1 + CONFIG.epochs
    assert first["eval/loss"] == pytest.approx(math.log(2), abs=0.15)
    assert best["eval/accuracy"] > 0.9 and best["eval/loss"] < 0.4
    assert (outcome.best_loss, outcome.best_step) == (best["eval/loss"], best["step"])
    assert held_out_loss(model) == pytest.approx(outcome.best_loss, abs=1e-5)
    assert [path.name for path in run.iterdir()] == ["best.safetensors"]


def test_patience_ends_it_and_the_best_is_not_the_last(tmp_path: Path) -> None:
    model = fresh(tmp_path / "m")
    wild = RewardTraining(epochs=40, batch_size=4, learning_rate=2e-2, schedule="constant", patience=2)
    outcome, seen = learn(model, TRAIN[:12], HELD_OUT, wild, tmp_path)
    assert outcome.early and outcome.epochs < 40
    losses = [line["eval/loss"] for line in seen]
    assert losses.index(min(losses)) == len(losses) - 3
    assert held_out_loss(model) == pytest.approx(min(losses), abs=1e-5)


def trained(directory: Path, train: list[Example], seed: int = 0, top_layers: int | None = None, **changes: Any) -> torch.Tensor:
    """The weights after one epoch."""
    model = fresh(directory, top_layers=top_layers)
    learn(model, train, HELD_OUT, CONFIG.model_copy(update={"epochs": 1, **changes}), directory, seed=seed)
    return weights(model)


def test_the_same_seed_gives_the_same_bits_and_another_another_order(tmp_path: Path) -> None:
    one, again, other = (trained(tmp_path / str(i), TRAIN, seed=seed) for i, seed in enumerate((0, 0, 1)))
    assert torch.equal(one, again) and not torch.allclose(one, other, atol=1e-6)


def test_micro_batches_change_nothing(tmp_path: Path) -> None:
    whole, parts = (trained(tmp_path / str(size), TRAIN[:61], micro_batch_size=size) for size in (None, 2))
    assert torch.allclose(whole, parts, atol=2e-4)


def test_kept_hidden_states_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = trained(tmp_path / "kept", TRAIN, top_layers=1)
    assert training._Rows(fresh(tmp_path / "kept", top_layers=1), TRAIN, "fp32").hidden is not None
    monkeypatch.setattr(training, "TRUNK_BYTES", 0)
    assert training._Rows(fresh(tmp_path / "kept", top_layers=1), TRAIN, "fp32").hidden is None
    assert torch.allclose(kept, trained(tmp_path / "again", TRAIN, top_layers=1), atol=2e-4)


def test_the_loss_of_a_batch_is_the_mean_of_its_prompts(tmp_path: Path) -> None:
    model = fresh(tmp_path)
    rows = training._Rows(model, TRAIN[:5], "fp32")
    whole = collate(model, [rows[i] for i in range(5)])

    def loss(batch: dict[str, torch.Tensor]) -> float:
        made = training.Batch(batch["ids"], batch["lengths"], batch["shared"])
        with torch.no_grad():
            return float(task_loss("preference", model(made), batch)[0])

    each = [loss(collate(model, [rows[i]])) for i in range(5)]
    assert len({len(example.pairs) for example in TRAIN[:5]}) > 1
    assert loss(whole) == pytest.approx(sum(each) / 5, abs=1e-6)


# the likelihood of the best response

CHOSEN = [
    Example(tuple(Answered("the ", word) for word in ("cat", "dog ran", "cow")), ((1, 0, 1.0, 0.0), (1, 2, 0.7, 0.0))),
    Example((Answered("b", "a"), Answered("b", "c")), ((0, 1, 0.2, 0.0),)),
    Example((Answered("x ", "y"), Answered("x ", "z")), ((0, 1, 0.5, 0.0),)),  # nobody is ahead
    Example((Answered("x ", "y"), Answered("x ", "z")), ((0, 1, 0.7, 0.0), (0, 1, 0.3, 0.0))),  # here neither
]
BEST = [("the ", "dog ran"), ("b", "c")]


def the_loss(model: RewardModel, lm_weight: float, examples: list[Example]) -> Tensor:
    rows = training._Rows(model, examples, "fp32")
    batch = collate(model, [rows[i] for i in range(len(examples))])
    return batch_loss(model, batch, CONFIG.model_copy(update={"lm_weight": lm_weight}))


def plain_nll(lm: Any) -> Tensor:
    """The sum over `BEST` of the mean over response tokens, by the shortest way."""
    total = torch.zeros(())
    for prompt, response in BEST:
        ids = torch.tensor([tiny_tokenizer()(prompt + response)["input_ids"]])
        logprobs = lm(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        total = total - logprobs[-len(response) :].mean()
    return total


@pytest.mark.parametrize(("family", "top_layers"), [("llama", None), ("gemma3", None), ("gpt2", 1)])
def test_the_likelihood_of_the_best_response_is_that_of_the_language_model(
    tmp_path: Path, family: str, top_layers: int | None
) -> None:
    model = fresh(tmp_path, family, top_layers, language=True)
    lm = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    for module in lm.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    alone, both = (the_loss(model, lm_weight, CHOSEN) for lm_weight in (0.0, 0.3))
    assert (both - alone).item() == pytest.approx(0.3 * plain_nll(lm).item(), abs=1e-5)
    # gradients reach the trunk, and through the head neither it nor the embeddings that it is tied to
    named = {name: p for name, p in model.model.base_model.named_parameters() if p.requires_grad}
    ours = dict(zip(named, torch.autograd.grad(both - alone, list(named.values()), allow_unused=True), strict=True))
    head = lm.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    plain_nll(lm).backward()
    slopes = {name: p.grad for name, p in lm.base_model.named_parameters()}
    assert named.keys() < slopes.keys() if top_layers else named.keys() == slopes.keys()
    for name, slope in ours.items():
        assert slope is not None and torch.allclose(slope, 0.3 * slopes[name], atol=1e-5), name
    # and the head is no part of what is trained or saved
    assert not [name for name, _ in model.named_parameters() if "lm_head" in name]
    model.save(tmp_path / "saved", {})
    assert not [name for name in load_file(tmp_path / "saved" / "model.safetensors") if "lm_head" in name]


def test_a_trunk_keeps_its_language(tmp_path: Path) -> None:
    config, kept = CONFIG.model_copy(update={"epochs": 3}), {}
    for lm_weight in (0.0, 0.1):
        model = fresh(tmp_path, language=True)
        _, seen = learn(model, TRAIN, HELD_OUT, config.model_copy(update={"lm_weight": lm_weight}), tmp_path)
        rows = training._Rows(model, HELD_OUT, "fp32")
        batch = collate(model, [rows[i] for i in range(len(HELD_OUT))])
        with torch.no_grad():
            numbers = model(training.Batch(**{name: batch[name] for name in ("ids", "lengths", "shared", "starts")}))
        kept[lm_weight] = float(numbers[:, 1].sum()) / len(HELD_OUT)
        assert max(line["eval/accuracy"] for line in seen) > 0.85
    assert kept[0.1] < kept[0.0] - 0.15  # the head of a random model allows little more


def test_what_has_no_language_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.lm_weight: .*xlm is no language model; remove it, or begin with another model"):
        fresh(tmp_path / "xlm", "xlm-roberta", language=True)
    fresh(tmp_path / "lm").save(tmp_path / "rm", {})
    with pytest.raises(ConfigError, match=r"train.lm_weight: .*rm is no language model"):
        make_reward_model(ModelConfig(name=str(tmp_path / "rm")), outputs=1, seed=0, max_length=64, language=True)
    for task in ("score", "classification"):
        with pytest.raises(ValueError, match=f'lm_weight is for task = "preference"; with task = "{task}" remove it'):
            RewardTraining(task=task, lm_weight=0.1)  # type: ignore[arg-type]


def test_scores_are_learned(tmp_path: Path) -> None:
    texts = words(5, 300)
    made = [Example((text,), target=(text.count("a") - 1.5)) for text in texts]
    model = fresh(tmp_path / "m")
    config = RewardTraining(task="score", epochs=8, batch_size=16, learning_rate=3e-3)
    learn(model, made[:240], made[240:], config, tmp_path)
    said = torch.cat(model.predict([e.texts for e in made[240:]]))[:, 0]
    truth = torch.tensor([e.target for e in made[240:]])
    assert float((said - truth).square().mean()) < 0.3 * float(truth.var())


def test_labels_are_learned(tmp_path: Path) -> None:
    made = [Example((text,), target=float("a" in text) + float("b" in text)) for text in words(6, 300)]
    model = fresh(tmp_path / "m", "xlm-roberta", outputs=3)
    config = RewardTraining(task="classification", epochs=12, batch_size=16, learning_rate=3e-3)
    _, seen = learn(model, made[:240], made[240:], config, tmp_path)
    assert max(line["eval/accuracy"] for line in seen) > 0.9


@pytest.mark.parametrize("weight", [float("inf"), float("nan")])
def test_a_loss_that_is_not_finite_ends_it(tmp_path: Path, weight: float) -> None:
    model = fresh(tmp_path / "m")
    with torch.no_grad():
        model.model.score.weight.fill_(weight)
    with pytest.raises(RunError, match=r"update 0: the evaluation loss is nan; lower train.learning_rate"):
        learn(model, TRAIN, HELD_OUT, CONFIG, tmp_path, seed=2**40)


def test_a_signal_stops_it(tmp_path: Path) -> None:
    outcome, seen = learn(fresh(tmp_path / "m"), TRAIN, HELD_OUT, CONFIG, tmp_path, signal="SIGINT")
    assert outcome.steps == 1 and [line["step"] for line in seen] == [0]
