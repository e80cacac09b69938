"""How often konomi's 95 % intervals hold the truth: the intervals of the before/after, of people's verdicts and of accuracies.

Data are made from distributions whose truth is known, as often as --runs says; the intervals are those that konomi shows.
Prints the table of docs/results.md; with --write it puts it there, between the marks. Ten minutes on one core.

    python benchmarks/coverage.py --write
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from demo_seeds import put
from scipy import stats
from scipy.special import expit

from konomi.jobs.compare import paired_difference
from konomi.statistics.bootstrap import TAIL, Interval, share_interval
from konomi.statistics.win_rate import Vote, win_rate, win_rate_over_raters

LOW, HIGH = 0.93, 0.97
RNG = np.random.Generator


@dataclass(frozen=True)
class Cell:
    """One kind of data and a size. ``draw`` makes data and returns the intervals to be judged and the truth."""

    figure: str
    what: str
    size: int
    """Prompts."""
    draw: Callable[[RNG, int], tuple[list[Interval], float]]
    exact: Callable[[int], float] | None = None
    """From the size to the share that holds the truth, where it can be counted instead of drawn."""
    vote: tuple[float, ...] | None = None
    """Probabilities of loss, tie and win, where each prompt has one vote."""

    @property
    def least(self) -> float:
        """What any interval covers at least that errs in at most 2.5 % to each side: few votes allow few outcomes.

        Without ties it can err in a tail of the sums, with ties in up to 2.5 % unless the farthest sum alone is more probable.
        """
        if self.vote is None:
            return 0.0
        loss, tie, win = self.vote
        if tie:
            return 1 - TAIL * sum(each**self.size <= TAIL for each in (loss, win))
        sums = stats.binom.pmf(np.arange(self.size + 1), self.size, win)
        tails = np.cumsum(sums), np.cumsum(sums[::-1])
        return 1 - sum(float(tail[tail <= TAIL].max(initial=0)) for tail in tails)


@dataclass(frozen=True)
class Coverage:
    """Shares of the runs."""

    held: float
    """Intervals that hold the truth, of those that there are."""
    none: float
    """Runs without an interval."""
    prompts_only: float | None
    """As ``held``, of an interval that takes the raters as all there are; None where there are none."""


# -- paired differences ------------------------------------------------------------------------------------------------

DIFFERENCES: dict[str, tuple[Callable[[RNG, int], np.ndarray], float]] = {
    "normal": (lambda rng, n: rng.normal(0.3, 1.0, n), 0.3),
    "skewed (gamma, skewness 1)": (lambda rng, n: rng.gamma(4.0, size=n), 4.0),
    "very skewed (exponential, skewness 2)": (lambda rng, n: rng.exponential(size=n), 1.0),
    "heavy tails (Student's t, 3 degrees)": (lambda rng, n: rng.standard_t(3, size=n), 0.0),
}


def difference(name: str) -> Callable[[RNG, int], tuple[list[Interval], float]]:
    def draw(rng: RNG, prompts: int) -> tuple[list[Interval], float]:
        make, truth = DIFFERENCES[name]
        return [paired_difference(np.zeros(prompts).tolist(), make(rng, prompts).tolist(), 1)], truth

    return draw


def clustered(rng: RNG, prompts: int) -> tuple[list[Interval], float]:
    """Four draws a prompt that share half of their variance, skewed over prompts."""
    own = rng.gamma(4.0, size=(prompts, 1)) / 2 - 2 + rng.normal(size=(prompts, 4))
    return [paired_difference(np.zeros(4 * prompts).tolist(), own.ravel().tolist(), 4)], 0.0


# -- shares ------------------------------------------------------------------------------------------------------------


def wins(vote: tuple[float, ...]) -> Callable[[RNG, int], tuple[list[Interval], float]]:
    """One vote a prompt, by the probabilities of loss, tie and win."""

    def draw(rng: RNG, prompts: int) -> tuple[list[Interval], float]:
        votes = rng.choice([0.0, 0.5, 1.0], size=prompts, p=vote)
        return [share_interval(votes, np.ones(prompts))], vote[2] + vote[1] / 2

    return draw


def exact_wins(rate: float) -> Callable[[int], float]:
    """One win or loss a prompt: the sum over all outcomes whose interval holds the rate."""

    def held(prompts: int) -> float:
        votes = [(np.arange(prompts) < won).astype(float) for won in range(prompts + 1)]
        found = [share_interval(each, np.ones(prompts)) for each in votes]
        inside = [each["low"] <= rate <= each["high"] for each in found]  # type: ignore[operator]
        return float(stats.binom.pmf(np.arange(prompts + 1), prompts, rate)[inside].sum())

    return held


def pairs(rate: float) -> Callable[[RNG, int], tuple[list[Interval], float]]:
    """Two independent comparisons a prompt."""

    def draw(rng: RNG, prompts: int) -> tuple[list[Interval], float]:
        return [share_interval(rng.binomial(2, rate, size=prompts).astype(float), np.full(prompts, 2.0))], rate

    return draw


def accuracy(rate: float) -> Callable[[RNG, int], tuple[list[Interval], float]]:
    """1 to 10 comparisons a prompt, of which a reward model gets ``rate`` right; prompts differ (intra-class correlation 0.2)."""

    def draw(rng: RNG, prompts: int) -> tuple[list[Interval], float]:
        of_prompt, count = rng.beta(4 * rate, 4 * (1 - rate), size=prompts), rng.integers(1, 11, size=prompts)
        return [share_interval(rng.binomial(count, of_prompt).astype(float), count.astype(float))], rate

    return draw


@cache
def mean_rate(base: float, spread: float) -> float:
    """The mean of a logistic of a normal variable."""
    points, weights = np.polynomial.hermite_e.hermegauss(60)
    return float(weights @ expit(base + spread * points) / weights.sum())


def raters(count: int, each: int, spread: float, base: float) -> Callable[[RNG, int], tuple[list[Interval], float]]:
    """``each`` of ``count`` raters judge a prompt. Raters differ by ``spread`` logits (deviation), prompts by 0.7."""

    def draw(rng: RNG, prompts: int) -> tuple[list[Interval], float]:
        chance = expit(base + spread * rng.normal(size=count) + 0.7 * rng.normal(size=(prompts, 1)))
        said = rng.random((prompts, count)) < chance
        votes = [
            Vote(f"{prompt}", "", "", float(said[prompt, rater]), f"{rater}")
            for prompt in range(prompts)
            for rater in rng.permutation(count)[:each]
        ]
        return [win_rate_over_raters(votes), win_rate(votes)], mean_rate(base, float(np.hypot(spread, 0.7)))

    return draw


def cells() -> Iterator[Cell]:
    paired, rate, right, verdict = "paired difference", "win rate", "accuracy", "verdict of people in general"
    for name in DIFFERENCES:
        yield from (Cell(paired, name, n, difference(name)) for n in (5, 10, 20, 50))
    yield from (Cell(paired, "four draws a prompt, skewed", n, clustered) for n in (5, 10, 20, 50))
    for ties in (0.0, 0.1):
        for true in (0.5, 0.7, 0.9):
            words = f"true {true}, {ties:.0%} ties" if ties else f"true {true} (exact)"
            exact = None if ties else exact_wins(true)
            vote = (1 - true - ties / 2, ties, true - ties / 2)
            yield from (Cell(rate, words, n, wins(vote), exact, vote) for n in (5, 10, 20, 50))
    for true in (0.6, 0.7, 0.8):
        yield from (Cell(right, f"true {true}, 1 to 10 comparisons a prompt", n, accuracy(true)) for n in (5, 10, 20, 50))
    for true in (0.6, 0.8):
        yield from (Cell(right, f"true {true}, 2 comparisons a prompt", n, pairs(true)) for n in (5, 10, 20, 50))
    for people, each, spread, base in (
        (5, 5, 0.5, 0.0),
        (5, 5, 1.0, 0.0),
        (10, 3, 1.0, 0.0),
        (10, 3, 1.0, 1.0),
        (20, 3, 1.0, 1.0),
    ):
        words = (
            f"{people} raters who differ by {spread:g} logits, {each} a prompt, true {mean_rate(base, np.hypot(spread, 0.7)):.2f}"
        )
        yield from (Cell(verdict, words, n, raters(people, each, spread, base)) for n in (20, 50))


CELLS = list(cells())


def measure(cell: Cell, runs: int, seed: int = 0) -> Coverage:
    """Make the data of a cell so often and count."""
    if cell.exact is not None:
        return Coverage(cell.exact(cell.size), 0.0, None)
    rng = np.random.default_rng([seed, *cell.what.encode(), cell.size])
    held: list[list[bool]] = []
    for _ in range(runs):
        found, truth = cell.draw(rng, cell.size)
        ends = [(each["low"], each["high"]) for each in found]
        if all(low is not None and high is not None for low, high in ends):
            held.append([low <= truth <= high for low, high in ends])  # type: ignore[operator]
    shares = np.mean(held, axis=0).tolist() if held else [0.0]
    return Coverage(shares[0], 1 - len(held) / runs, shares[1] if len(shares) > 1 else None)


def table(found: dict[Cell, Coverage]) -> str:
    """Markdown: a line for each kind of data, a column for each size."""
    rows: dict[tuple[str, str], dict[int, str]] = {}
    for cell, each in found.items():
        text = f"{100 * each.held:.1f}"
        if not LOW <= each.held <= HIGH:
            text = f"{text} †" if each.held > HIGH and cell.least > HIGH else f"**{text}**"
        if each.prompts_only is not None:
            text += f" ({100 * each.prompts_only:.0f})"
        rows.setdefault((cell.figure, cell.what), {})[cell.size] = text
    sizes = sorted({cell.size for cell in found})
    lines = [f"| interval of | data | {' | '.join(f'{n} prompts' for n in sizes)} |", f"|---|---|{'---|' * len(sizes)}"]
    lines += [f"| {figure} | {what} | {' | '.join(row.get(n, '') for n in sizes)} |" for (figure, what), row in rows.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--write", action="store_true", help="put the table into docs/results.md")
    given = parser.parse_args()
    found = {cell: measure(cell, given.runs) for cell in CELLS}
    none = max(each.none for each in found.values())
    text = f"{given.runs:,} runs a cell; at most {none:.1%} of a cell's runs have no interval.\n\n{table(found)}"
    print(text)
    if given.write:
        put("coverage", text)


if __name__ == "__main__":
    main()
