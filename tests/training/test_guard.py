"""Guards over streams of metrics: each fires on a stream that goes wrong in its way, and is silent on a healthy one."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest

from konomi.config.monitoring import GuardName
from konomi.report.advice import locale
from konomi.training.guard import GUARDS, Watch

HEALTHY = {
    "objective/kl": 0.5, "objective/kl_std": 1.0, "objective/perplexity": 30.0, "ppo/mean_scores": 1.0, "ppo/std_scores": 2.0,
    "ppo/policy/entropy": 3.0, "ppo/policy/approxkl": 0.02, "ppo/val/var_explained": 0.1, "tokens/responses_len_mean": 16.0,
    "tokens/repetition": 0.1, "judge/sense/mean": 5.0, "judge/sense/std": 1.0,
}  # fmt: skip
RISEN = {"ppo/mean_scores": 3.0}
FAULTS: dict[str, tuple[dict[str, float], dict[str, float]]] = {
    # guard -> figures at which it fires, and figures just short of that; of an update with 64 responses
    "not_finite": ({"ppo/loss/value": math.nan}, {"ppo/loss/value": 1e300}),
    "kl_cap": ({"objective/kl": 30.01}, {"objective/kl": 29.99}),
    "ratio": ({"ppo/policy/approxkl": 2.66}, {"ppo/policy/approxkl": 2.64}),  # ln(10)^2 / 2 = 2.651
    "negative_kl": ({"objective/kl": -0.51}, {"objective/kl": -0.49}),  # 4 * 1.0 / 8
    "entropy": ({"ppo/policy/entropy": 0.74}, {"ppo/policy/entropy": 0.76}),
    "length": ({"tokens/responses_len_mean": 24.1}, {"tokens/responses_len_mean": 23.9}),
    "repetition": ({"tokens/repetition": 0.36}, {"tokens/repetition": 0.34}),
    "critic": ({"ppo/val/var_explained": 0.0}, {"ppo/val/var_explained": 0.001}),
    "judge": ({**RISEN, "judge/sense/mean": 4.42}, {**RISEN, "judge/sense/mean": 4.43}),  # 4 * sqrt(4 / 3 / 64) = 0.577
    "perplexity": ({**RISEN, "objective/perplexity": 82.0}, {**RISEN, "objective/perplexity": 81.0}),
    "spread": ({"ppo/std_scores": 0.1}, {"ppo/std_scores": 0.11}),
}


def fired(changed: dict[str, float], updates: int = 20, start: int = 6, **settings: Any) -> list[tuple[int, str]]:
    """Which guards fire in which update of a healthy run whose figures change after ``start`` updates."""
    watch = Watch(64, kl_cap=30.0, **settings)
    lines = [HEALTHY | (changed if update > start else {}) for update in range(1, updates + 1)]
    return [(alarm.update, alarm.guard) for update, line in enumerate(lines, 1) for alarm in watch.see(update, line)]


@pytest.mark.parametrize("name", FAULTS)
def test_each_guard_fires_once_and_not_short_of_it(name: str) -> None:
    wrong, short = FAULTS[name]
    [(update, guard)] = fired(wrong)
    assert guard == name and 7 <= update <= 14  # a mean of 3 updates, two or eight in a row
    assert fired(short) == [] == fired(wrong, off=[name])


def test_every_guard_is_tried_can_be_turned_off_and_has_words() -> None:
    assert list(FAULTS) == list(GUARDS) == list(get_args(GuardName))
    assert all(f"guard_{name}" in locale("advice")[lang] for name in GUARDS for lang in ("en", "ja"))
    assert all("arXiv" in (guard.__doc__ or "") or "trl#" in (guard.__doc__ or "") for guard in GUARDS.values())


def test_the_other_directions() -> None:
    assert fired({"ppo/policy/approxkl": 1e12}) == [(7, "ratio")]
    assert fired({"tokens/responses_len_mean": 7.0}) == [(9, "length")]
    assert fired({"judge/sense/mean": 0.0}) == []  # the score has not risen with it
    assert fired({"objective/perplexity": 999.0}) == []
    assert fired({**RISEN, "judge/sense/mean": 9.0}) == []
    assert fired({"ppo/val/var_explained": 0.0}, start=0) == [(10, "critic")]  # a critic has to begin somewhere


def test_chance_in_small_batches_is_no_alarm() -> None:
    lines = [HEALTHY | RISEN | {"judge/sense/mean": 4.0} for _ in range(6)]
    few, many = Watch(8), Watch(64)  # a mean of 8 responses is off by 1.6 deviations now and then
    for watch in (few, many):
        watch.see(1, HEALTHY)
    assert [alarm.guard for update, line in enumerate(lines, 2) for alarm in few.see(update, line)] == []
    assert [alarm.guard for update, line in enumerate(lines, 2) for alarm in many.see(update, line)] == ["judge"]


def test_a_guard_fires_again_after_it_was_healthy_and_a_resumed_run_has_the_same_guards() -> None:
    wrong = (3, 4, 6, 7, 11, 12)
    lines = [HEALTHY | ({"ppo/policy/approxkl": 4.5} if update in wrong else {}) for update in range(1, 13)]
    watch = Watch(64)
    alarms = [alarm for update, line in enumerate(lines, 1) for alarm in watch.see(update, line)]
    assert [(alarm.update, alarm.threshold) for alarm in alarms] == [(3, 10.0), (11, 10.0)]
    assert alarms[0].value == pytest.approx(math.e**3)
    for kept in range(12):
        resumed = Watch(64)
        resumed.again([{"update": update, "out_of_range": [], **line} for update, line in enumerate(lines[:kept], 1)])
        rest = [alarm for update, line in enumerate(lines[kept:], kept + 1) for alarm in resumed.see(update, line)]
        assert rest == [alarm for alarm in alarms if alarm.update > kept]


def test_lines_without_a_figure_are_no_alarm() -> None:
    watch = Watch(64)
    assert [watch.see(update, {"ppo/mean_scores": 1.0, "objective/kl": None}) for update in range(1, 20)] == [[]] * 19


def test_an_event_has_its_sentences() -> None:
    [alarm] = Watch(64, kl_cap=30.0).see(1, HEALTHY | {"objective/kl": 41.25})
    event = alarm.event("rolled_back", to=0, rate_factor=0.5, count=1, most=2)
    assert event["en"].startswith("The KL is 41.25 nats/response, over ppo.kl_cap = 30.00") and "Back to update 0" in event["en"]
    assert "41.25" in event["ja"] and "0.5 倍" in event["ja"]
    assert (event["update"], event["guard"], event["value"], event["threshold"]) == (1, "kl_cap", 41.25, 30.0)
