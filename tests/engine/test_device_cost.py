"""What an update asks of a device besides arithmetic, as benchmarks/device_cost.py counts it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fake_device import fake_device
from tiny_run import CRITIC_FREE

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import device_cost

HEAD_OPERATORS = 12
"""Of the vocabulary head, forward and backward, for the response tokens of a micro-batch."""


def test_a_decoded_token_waits_for_nothing_between_two_looks() -> None:
    with fake_device():
        short, long = device_cost.decoding(16), device_cost.decoding(32)
        own = device_cost.a_token()
    assert long.waits == short.waits  # the host knows the lengths
    assert 0 < long.operators - short.operators <= 16 * 1.25 * own.operators
    assert long.launches - short.launches == 16  # each step is one captured call


@pytest.mark.parametrize("name", ["ppo", "rloo", "grpo"])
def test_an_update_waits_a_few_times_however_many_tokens_layers_and_micro_batches(name: str) -> None:
    """For responses, texts, KL and the metrics."""
    settings = {} if name == "ppo" else {"algorithm": CRITIC_FREE[name], "responses_per_prompt": 4}
    with fake_device():
        cost = device_cost.update(**settings)
        stopping = device_cost.update(epoch_kl_stop=1e3) if name == "ppo" else cost
    assert cost.waits <= 7
    assert stopping.waits <= cost.waits + 1  # of its two epochs the first
    assert cost.launches < cost.operators / 2


def test_the_head_of_a_micro_batch_is_no_more_operators_than_it_was() -> None:
    with fake_device():
        cost = device_cost.head()
    assert cost.waits == 0
    assert cost.operators <= HEAD_OPERATORS
