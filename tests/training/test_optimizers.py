"""Adam with states of 8 bits: steps as of Adam, weights in bfloat16, checkpoints, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from konomi.errors import ConfigError, RunError
from konomi.training.checkpoint_files import OPTIMIZER_FILE
from konomi.training.optimizers import make_optimizer, round_at_random
from tiny_run import facts, tiny_trainer, weights, without_dropout

pytest.importorskip("bitsandbytes")


def moved(kind: str, dtype: torch.dtype, steps: int = 30) -> torch.Tensor:
    """How far steps of about 1e-4 with the same random gradients move a matrix of deviation 1."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(64, 128, generator=generator).to(dtype)
    weight = torch.nn.Parameter(start.clone())
    optimizer = make_optimizer(kind, [{"params": [weight], "lr": 1e-4}], 1e-5)
    for _ in range(steps):
        weight.grad = torch.randn(64, 128, generator=generator).to(dtype)
        optimizer.step()
    return (weight.detach().float() - start.float()).flatten()


def test_its_steps_are_those_of_adam_but_for_the_rounding_of_its_moments() -> None:
    exact, rounded = moved("adam", torch.float32), moved("adam8", torch.float32)
    assert float(torch.corrcoef(torch.stack([exact, rounded]))[0, 1]) > 0.999
    assert float(rounded.std() / exact.std()) == pytest.approx(1.0, abs=0.01)


def test_small_steps_of_bfloat16_weights_are_not_lost_but_rounded_at_random() -> None:
    exact, rounded = moved("adam", torch.float32), moved("adam8", torch.bfloat16)
    # the mean over the weights of those that gained and of those that lost: rounding to the nearest leaves a tenth of it
    for side in (exact > 0, exact < 0):
        assert float(rounded[side].mean()) == pytest.approx(float(exact[side].mean()), rel=0.2)
    number = torch.full((100_000,), 1.0 + 2**-10)  # an eighth of the way from 1 to the next bfloat16
    seen = round_at_random(number, 0)
    assert set(seen.tolist()) == {1.0, 1.0 + 2**-7} and float(seen.double().mean()) == pytest.approx(1 + 2**-10, abs=2**-14)
    assert torch.equal(seen, round_at_random(number, 0)) and not torch.equal(seen, round_at_random(number, 1))
    exactly = torch.randn(1000).bfloat16()
    assert torch.equal(round_at_random(exactly.float(), 3), exactly)


def trainer(weights: str, **more: Any) -> Any:
    model = without_dropout("llama", hidden_size=64, intermediate_size=128)  # matrices of 4,096 numbers and more
    if weights == "bf16":
        model.bfloat16()
    precision = "bf16" if weights == "bf16" else "fp32"
    return tiny_trainer(model=model, precision=precision, optimizer="adam8", weights=weights, episodes=48, **more)


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_a_run_goes_on_from_a_checkpoint_to_the_bit(kind: str, tmp_path: Path) -> None:
    whole, first, second = trainer(kind), trainer(kind), trainer(kind)
    steps = list(whole)
    state = whole.engine.optimizer.state
    assert {x.dtype for p in whole.policy.lm.parameters() for x in (state[p]["state1"],)} >= {torch.uint8}
    assert {p.dtype for p in whole.policy.lm.parameters()} == {torch.bfloat16 if kind == "bf16" else torch.float32}
    assert whole.policy.value_head.weight.dtype == torch.float32
    assert facts(first.step().metrics) == facts(steps[0].metrics)
    first.save(tmp_path / "c")
    second.load(tmp_path / "c")
    assert [facts(step.metrics) for step in second] == [facts(step.metrics) for step in steps[1:]]
    assert torch.equal(weights(second.policy), weights(whole.policy))
    assert not torch.equal(weights(whole.policy), weights(trainer(kind).policy))


def test_moments_of_another_optimiser_are_refused(tmp_path: Path) -> None:
    run = trainer("fp32")
    run.step()
    run.save(tmp_path / "c")
    plain = tiny_trainer(model=without_dropout("llama", hidden_size=64, intermediate_size=128), episodes=48)
    before = weights(plain.policy)
    with pytest.raises(RunError, match=OPTIMIZER_FILE):
        plain.load(tmp_path / "c")
    assert torch.equal(before, weights(plain.policy))


def test_a_step_of_a_gradient_that_is_not_finite_is_left_out() -> None:
    weight = torch.nn.Parameter(torch.ones(64, 128))
    optimizer: Any = make_optimizer("adam8", [{"params": [weight], "lr": 1e-2}], 1e-5)
    weight.grad = torch.full_like(weight, torch.nan)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert torch.equal(weight, torch.ones(64, 128)) and not optimizer.state[weight]


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    half = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    with pytest.raises(ConfigError, match=r'ppo.optimizer = "adam": the trained weights are bfloat16'):
        make_optimizer("adam", [{"params": [half], "lr": 1e-2}], 1e-5)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr("konomi.training.optimizers.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "konomi\[adam8\]"'):
        make_optimizer("adam8", [{"params": [half], "lr": 1e-2}], 1e-5)
