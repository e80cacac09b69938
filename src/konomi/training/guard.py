"""Guards: functions over the metrics of a PPO run that detect when it goes wrong.

A mark (`konomi.report.ranges.HEALTHY`) is about one figure of one update, by a rule of thumb that holds for every run, and does
nothing. A guard is about the way of a run: nearly all of them compare the last updates with the first one, whose texts the
initial model wrote, and beyond what chance does in batches of this size. A guard that fires warns, with a cause and a cure, once
until its figure is healthy again; `ROLLING_BACK` names those after which the run goes back to its last good checkpoint.

Guards read metrics that are those of all processes, and nothing else: every process decides the same, and a run that goes on
after a kill has the guards that it had, from the lines of its metrics.jsonl.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from konomi.report.advice import guard_words

ROLLING_BACK = frozenset({"not_finite", "kl_cap"})
LAST, OF_CRITIC = 3, 8
"""Updates that are looked at."""
RATIO = 10.0
"""How many times more or less probable the typical token may become in one update."""
ENTROPY, SHORTER, LONGER, SPREAD = 0.25, 0.5, 1.5, 0.05
"""Of the first update's: how far entropy may fall, length fall and rise, and the deviation of scores fall."""
REPETITION = 0.25
"""Share of token pairs that may be repeated more than in the first update."""
PERPLEXITY = math.e
"""Times that of the first update: 1 nat/token."""
EXPLAINED, CRITIC_AFTER = 1e-4, 10
"""Share of the returns' variance that a critic explains at least, from this update on."""
SIGMAS, STEP = 4.0, 0.5
"""A mean has moved if it moved by this many standard errors, and by this many deviations of single responses."""


@dataclass(frozen=True)
class Alarm:
    """A guard has fired."""

    update: int
    guard: str
    value: float
    threshold: float
    detail: str = ""
    """What the value is of, where the guard's name does not say it: a judge, a metric."""

    def event(self, action: str, **more: Any) -> dict[str, Any]:
        """The alarm as ``guards`` in run.json has it, with its sentences ``en`` and ``ja``."""
        event = {**asdict(self), "action": action, **more}
        return event | guard_words(event)


Finding = tuple[float, float, str] | None
"""Value, threshold and detail of what is wrong; None: nothing is."""


@dataclass(frozen=True)
class Course:
    """The metrics that guards look at."""

    first: Mapping[str, float]
    """The metrics of its first update."""
    lines: tuple[Mapping[str, float], ...]
    """Those of its last updates, this one included."""
    update: int
    responses: int
    """In the batch of an update."""
    kl_cap: float = math.inf

    def mean(self, name: str) -> float | None:
        """The mean of a metric over the last updates; None until there are enough that have it."""
        values = [line[name] for line in self.lines[-LAST:] if line.get(name) is not None]
        return sum(values) / LAST if len(values) == LAST else None

    def moved(self, name: str, deviation: str) -> tuple[float, float] | None:
        """How far the mean of a metric is from the first update's, and how far it has to be to have moved."""
        mean, spread, start = self.mean(name), self.mean(deviation), self.first.get(name)
        if mean is None or spread is None or start is None:
            return None
        error = math.sqrt((1 + 1 / LAST) / self.responses)  # of the difference of the two means, in deviations
        return mean - start, max(STEP, SIGMAS * error) * max(spread, self.first.get(deviation) or 0.0)


def not_finite(c: Course) -> Finding:
    """A metric is NaN or infinite. NaN spreads: whatever reads the weights after it is NaN too (Micikevicius et al. 2018,
    arXiv:1710.03740, on half precision)."""
    names = [name for name, value in c.lines[-1].items() if value is not None and not math.isfinite(value)]
    return (c.lines[-1][names[0]], 0.0, names[0]) if names else None


def kl_cap(c: Course) -> Finding:
    """The KL is over ``ppo.kl_cap``: a proxy reward is trusted only near the model that it was made for (Gao et al. 2022,
    arXiv:2210.10760); 2 of 4 seeds of a published replication collapsed without a limit (Huang et al. 2024, arXiv:2403.17031)."""
    kl = c.lines[-1].get("objective/kl")
    return (kl, c.kl_cap, "") if kl is not None and kl > c.kl_cap else None


def ratio(c: Course) -> Finding:
    """Ratios are far from 1, where the clipped objective holds no longer (Schulman et al. 2017, arXiv:1707.06347, section 3). TRL
    leaves out mini-batches whose mean ratio is over 10 (``ratio_threshold``). But the mean over tokens of the old policy is 1
    however far the new one is; so this is the typical size of the logarithm, the root of its mean square, which is 2 approxkl."""
    halves = c.lines[-1].get("ppo/policy/approxkl")
    value = 1.0 if halves is None else math.exp(min(700.0, math.sqrt(2 * max(0.0, halves))))
    return (value, RATIO, "") if value > RATIO else None


def negative_kl(c: Course) -> Finding:
    """The KL has been negative for some updates, each beyond noise. In expectation a KL is never negative: the texts are not
    drawn from the policy that is trained (trl#417, where 3 of 10 seeds ended so; trl#925, trl#1005)."""
    mean, worst = c.mean("objective/kl"), -math.inf
    if mean is None:
        return None
    for line in c.lines[-LAST:]:
        noise = SIGMAS * (line.get("objective/kl_std") or 0.0) / math.sqrt(c.responses)
        if not line["objective/kl"] < -noise:
            return None
        worst = max(worst, -noise)
    return mean, worst, ""


def entropy(c: Course) -> Finding:
    """Entropy has collapsed: little is left to explore, and reward is bought with entropy (Cui et al. 2025, arXiv:2505.22617)."""
    mean, limit = c.mean("ppo/policy/entropy"), ENTROPY * c.first.get("ppo/policy/entropy", 0.0)
    return (mean, limit, "") if mean is not None and mean < limit else None


def length(c: Course) -> Finding:
    """Responses have become much longer or shorter: many rewards follow length (Singhal et al. 2023, arXiv:2310.03716)."""
    mean, start = c.mean("tokens/responses_len_mean"), c.first.get("tokens/responses_len_mean", 0.0)
    if mean is None or SHORTER * start <= mean <= LONGER * start:
        return None
    return mean, start * (LONGER if mean > start else SHORTER), ""


def repetition(c: Course) -> Finding:
    """Responses repeat themselves, as text does that is made only likely (Holtzman et al. 2019, arXiv:1904.09751; Welleck et
    al. 2019, arXiv:1908.04319), or where a reward counts something."""
    mean, limit = c.mean("tokens/repetition"), REPETITION + c.first.get("tokens/repetition", 0.0)
    return (mean, limit, "") if mean is not None and mean > limit else None


def critic(c: Course) -> Finding:
    """The critic has explained nothing of the returns for some updates: advantages are as noisy as without it (explained
    variance, as in Andrychowicz et al. 2020, arXiv:2006.05990, and Huang et al. 2022, "The 37 implementation details of PPO")."""
    values = [line.get("ppo/val/var_explained") for line in c.lines]
    known = [value for value in values if value is not None]
    if c.update < CRITIC_AFTER or len(known) < OF_CRITIC or max(known) > EXPLAINED:
        return None
    return max(known), EXPLAINED, ""


def judge(c: Course) -> Finding:
    """The score has risen, and a judge that nothing is trained against has fallen: over-optimisation (Gao et al. 2022,
    arXiv:2210.10760; Stiennon et al. 2020, arXiv:2009.01325, figure 5)."""
    for name in sorted(name for name in c.first if name.startswith("judge/") and name.endswith("/mean")):
        change = c.moved(name, f"{name.removesuffix('mean')}std")
        if _risen(c) and change and change[0] < -change[1]:
            return c.first[name] + change[0], c.first[name] - change[1], name.split("/")[1]
    return None


def perplexity(c: Course) -> Finding:
    """The score has risen with texts that the initial model finds much less likely: text that it would not write is beyond what
    the reward was made for (Stiennon et al. 2020, arXiv:2009.01325; Ziegler et al. 2019, arXiv:1909.08593, section 2.2)."""
    mean, limit = c.mean("objective/perplexity"), PERPLEXITY * c.first.get("objective/perplexity", math.inf)
    return (mean, limit, "") if mean is not None and mean > limit and _risen(c) else None


def spread(c: Course) -> Finding:
    """All responses have (almost) the same score: there is nothing to learn from (Yu et al. 2025, arXiv:2503.14476)."""
    known = [value for line in c.lines[-2:] if (value := line.get("ppo/std_scores")) is not None]
    limit = SPREAD * c.first.get("ppo/std_scores", 0.0)
    return (max(known), limit, "") if len(known) == 2 and max(known) <= limit else None


def _risen(c: Course) -> bool:
    change = c.moved("ppo/mean_scores", "ppo/std_scores")
    return change is not None and change[0] > change[1]


GUARDS: Mapping[str, Callable[[Course], Finding]] = {
    guard.__name__: guard
    for guard in (not_finite, kl_cap, ratio, negative_kl, entropy, length, repetition, critic, judge, perplexity, spread)
}


class Watch:
    """The guards of a run: give it the metrics of each update, in order. One that has fired fires again after its figure was
    healthy for `LAST` updates."""

    def __init__(self, responses: int, kl_cap: float = math.inf, off: Iterable[str] = ()) -> None:
        self.responses, self.kl_cap, self.off = responses, kl_cap, frozenset(off)
        self.again([])

    def again(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Start over from the lines of metrics.jsonl."""
        self._first: Mapping[str, float] | None = None
        self._lines: deque[Mapping[str, float]] = deque(maxlen=OF_CRITIC)
        self._healthy: dict[str, int] = {}
        for line in lines:
            self.see(line["update"], line)

    def see(self, update: int, metrics: Mapping[str, Any]) -> list[Alarm]:
        """Take the metrics of an update; returns the alarms that are new."""
        numbers = {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
        self._first = numbers if self._first is None else self._first
        self._lines.append(numbers)
        course = Course(self._first, tuple(self._lines), update, self.responses, self.kl_cap)
        fired = {name: seen for name, guard in GUARDS.items() if name not in self.off and (seen := guard(course))}
        alarms = [Alarm(update, name, *seen) for name, seen in fired.items() if self._healthy.get(name, LAST) >= LAST]
        self._healthy = {name: 0 if name in fired else self._healthy.get(name, LAST) + 1 for name in GUARDS}
        return alarms
