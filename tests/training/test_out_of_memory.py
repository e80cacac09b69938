"""Memory that does not suffice for a micro-batch: it begins again in smaller ones, and the gradient is the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import konomi
from fake_device import fake_device, no_memory_over
from konomi.engine.device import is_out_of_memory
from konomi.errors import RunError
from tiny_run import facts, tiny_trainer, weights

SETTINGS: dict[str, Any] = {"episodes": 16, "batch_size": 16, "mini_batch_size": 8, "epochs": 2, "micro_batch_tokens": 40}


def exhaust() -> None:
    """Ask for more memory than any machine has."""
    torch.empty(2**55)


def at_call(number: int, backward: bool) -> Callable[[Any], None]:
    """Makes the memory end at the n-th training pass of a model: on its way there, or on the way back."""
    calls = [0]

    def count(*_: Any) -> None:
        calls[0] += 1
        if calls[0] == number:
            exhaust()

    def hook(module: Any, args: Any, output: Any) -> None:
        if torch.is_grad_enabled() and output.requires_grad:
            output.register_hook(count) if backward else count()

    return lambda trainer: trainer.policy.lm.transformer.h[0].mlp.register_forward_hook(hook)


def trained(prepare: Callable[[Any], Any] = lambda _: None, **settings: Any) -> tuple[dict[str, float], torch.Tensor, Any]:
    trainer = tiny_trainer(**{"precision": "fp64", **SETTINGS, **settings})
    prepare(trainer)
    return facts(trainer.step().metrics), weights(trainer.policy), trainer


def test_errors_of_memory_are_told_from_others() -> None:
    for use in (exhaust, lambda: bytearray(2**62)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            use()
        assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as other:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(other.value)


def test_the_gradient_is_the_same_wherever_memory_ends() -> None:
    """In the first micro-batch of a mini-batch and in later ones, forward and backward: nothing is added twice or left out."""
    expected, end, whole = trained()
    assert whole.models.micro_batch_tokens == 40
    for number, backward in ((1, False), (2, True), (4, False), (7, True)):
        with pytest.warns(RuntimeWarning, match=r"out of memory in a micro-batch of \d+ tokens.* ppo\.micro_batch_tokens = \d+"):
            found, after, trainer = trained(at_call(number, backward))
        assert trainer.models.micro_batch_tokens <= 20
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12), (number, backward)
        assert torch.allclose(after, end, rtol=0, atol=1e-9), (number, backward)


def test_a_device_whose_memory_ends() -> None:
    """Scoring and training, captured too; with the figures that they have otherwise."""
    settings = {
        **SETTINGS,
        "episodes": 16,
        "batch_size": 8,
        "baseline_samples": 8,
        "micro_batch_tokens": 400,
        "precision": "fp32",
    }
    settings["rollout"] = {"response_tokens": (14, 18)}
    with fake_device():
        expected = [facts(result.metrics) for result in tiny_trainer(**settings)]
        trainer = tiny_trainer(**settings)
        with no_memory_over(75_000), pytest.warns(RuntimeWarning, match="out of memory in a micro-batch"):
            found = [facts(result.metrics) for result in trainer]
    assert trainer.models.micro_batch_tokens < 400 and trainer.engine.graphs.refused is None
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)


def test_memory_that_does_not_suffice_for_one_sequence_ends_the_run() -> None:
    def always(trainer: Any) -> None:
        for number in range(1, 40):
            at_call(number, backward=False)(trainer)

    with pytest.warns(RuntimeWarning), pytest.raises(RunError, match=r"single sequence of \d+ tokens.*gradient_checkpointing"):
        trained(always)


def test_where_nothing_can_be_halved_it_is_one_message(world: Path) -> None:
    with fake_device(), no_memory_over(3000):
        result = konomi("sft", "sft.toml", "--set", "run.name=large", code=1)
    assert result.stderr.splitlines()[-1].startswith("konomi: out of memory: fake out of memory. Tried to allocate"), (
        result.stderr
    )
    assert "Traceback" not in result.stderr and '"failed"' in (world / "runs" / "large" / "run.json").read_text("utf-8")
