"""How far people agree: with one another, and with themselves when a task comes a second time.

Only what has a rater's name is looked at. All intervals are over prompts, for these raters. A figure that cannot be
told (one person, nothing but ties) is None, never NaN. These figures are shown; nobody is left out because of them.
P prompts, R resamples, V different values.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array

from konomi.data.convert import normalised_ranks
from konomi.data.records import Pair, Prompt, Ranking, groups
from konomi.report.advice import FEW_COMPARISONS
from konomi.statistics.bootstrap import Array, Interval, draws, estimate, interval, prompt_places, resample, share
from konomi.statistics.bradley_terry import counted
from konomi.statistics.coefficients import alphas, coincidences, kendall_w, tau_b
from konomi.statistics.rank_agreement import agreement_columns, ceiling, with_the_others, words

ALPHA_RESAMPLES = 1_000

Couple = tuple[Ranking | Pair, Ranking | Pair]
Task = tuple[str, tuple[str, ...]]
"""A prompt's key and the responses to it that were ranked, sorted."""


def inter_rater(records: Sequence[Ranking | Pair], seed: int = 0) -> dict[str, Any] | None:
    """How often two people order the same two responses alike.

    A tie agrees by half with a word for one side: it is taken as a coin thrown between the two. Two ties are not counted.
    What one person said several times of a pair counts once, with its mean.

    Returns:
        ``share`` with its interval, 0.5 by chance; ``ceiling``: the accuracy of one person, and so of the best reward model,
        that this implies, (1 + sqrt(2 share - 1)) / 2; ``couples``: of people on a pair; ``prompts`` that these are from.
        None where no two people judged the same pair, or called all such pairs equal.
    """
    made, places = groups(records), _places(records)
    prompt = np.array([places[group.key] for group in made], dtype=np.int64)
    return _figures(agreement_columns(made, prompt, len(places)), seed)


def intra_rater(couples: Sequence[Couple], seed: int = 0) -> dict[str, Any] | None:
    """How often people order two responses as they did before, when a task comes again.

    The rule is that of :func:`inter_rater`, so that the two can stand side by side.

    Args:
        couples: what one person said of a task the first time, and when it came again.
        seed: of the resampling.

    Returns:
        As :func:`inter_rater`, without ``ceiling``; ``couples``: of the same person's words on a pair. None without repeats.
    """
    places = _places(first for first, _ in couples)
    columns = _empty(len(places))
    for couple in couples:  # as if each were another's: who agrees then agrees with themselves
        both = [replace(each, rater=str(number)) for number, each in enumerate(couple)]
        for (place, _, _), said in _words(both, places).items():
            agree, count = with_the_others(list(said.values()))[0]
            columns["agree"][place] += agree
            columns["agree_count"][place] += count
    found = _figures(columns, seed)
    return None if found is None else {name: value for name, value in found.items() if name != "ceiling"}


def people(records: Sequence[Ranking | Pair], couples: Sequence[Couple] = (), seed: int = 0) -> list[dict[str, Any]]:
    """What each person's word is like, to be shown and not acted on: in the order of their names.

    Args:
        records: what people said the first time.
        couples: as in :func:`intra_rater`.
        seed: of the resampling.

    Returns:
        ``rater``; ``records`` of theirs, first and again; ``others``: :func:`inter_rater` this person and everybody else;
        ``oneself``: :func:`intra_rater`; either may be None.
    """
    said = [*records, *(again for _, again in couples)]
    count = Counter(record.rater for record in said if record.rater is not None)
    others = _with_others(records, _places(records))
    return [
        {
            "rater": rater,
            "records": count[rater],
            "others": _figures(others[rater], seed) if rater in others else None,
            "oneself": intra_rater([couple for couple in couples if couple[0].rater == rater], seed),
        }
        for rater in sorted(count)
    ]


def concordance(rankings: Sequence[Ranking], seed: int = 0) -> dict[str, Any] | None:
    """How alike the orders are of people who ranked the same responses.

    Returns:
        ``tau_b``: mean over prompts' couples of people; ``w``: Kendall's W, mean over tasks; ``alpha``: ordinal alpha of
        the normalised ranks (-1 to 1) of all responses; each with its interval. ``tasks``: the same responses to a prompt,
        ranked by two people at least; ``prompts`` of these; ``people`` who ranked them. None if there is no such task.
    """
    tasks = [(key, by_rater) for (key, _), by_rater in _tables(rankings).items() if len(by_rater) > 1]
    if not tasks:
        return None
    prompt = prompt_places([key for key, _ in tasks])
    columns = {name: np.zeros(int(prompt.max()) + 1) for name in ("tau", "tau_count", "w", "w_count")}
    for place, (_, by_rater) in zip(prompt, tasks, strict=True):
        tables = list(by_rater.values())
        for name, values in (("tau", [tau_b(x, y) for x, y in combinations(tables, 2)]), ("w", [kendall_w(tables)])):
            known = [value for value in values if value is not None]
            columns[name][place] += sum(known)
            columns[f"{name}_count"][place] += len(known)
    sums = resample(columns, seed)
    means = {}
    for name, ends in (("tau", (-1.0, 1.0)), ("w", (0.0, 1.0))):
        count = f"{name}_count"
        means[name] = estimate(sums, partial(_mean, name, count), count, ends)
    return {
        "tasks": len(tasks),
        "prompts": len(columns["w"]),
        "people": len({rater for _, by_rater in tasks for rater in by_rater}),
        "tau_b": means["tau"],
        "w": means["w"],
        "alpha": _alpha_interval([by_rater for _, by_rater in tasks], prompt, seed),
    }


def enough_comparisons(records: Sequence[Ranking | Pair], seed: int = 0) -> dict[str, Any]:
    """How far the data goes for a reward model.

    Returns:
        ``comparisons``: one person, one pair, decided; ``ties``; ``needed``: about 2,000, below which a reward model barely
        beats chance; ``share`` of them that is there, at most 1; ``agreement``: see :func:`inter_rater`, None if unknown: its
        ``ceiling`` is the accuracy that more data cannot pass.
    """
    counts = counted(records)
    decided = sum(c.in_favour + c.against for c in counts)
    return {
        "comparisons": decided,
        "ties": sum(c.ties for c in counts),
        "needed": FEW_COMPARISONS,
        "share": min(1.0, decided / FEW_COMPARISONS),
        "agreement": inter_rater(records, seed),
    }


def _places(records: Iterable[Ranking | Pair]) -> dict[str, int]:
    places: dict[str, int] = {}
    for record in records:
        places.setdefault(Prompt(record.prompt).key, len(places))
    return places


def _words(records: Iterable[Ranking | Pair], places: Mapping[str, int]) -> dict[tuple[int, str, str], dict[str, float]]:
    made = groups(records)
    return words(made, np.array([places[group.key] for group in made], dtype=np.int64))


def _empty(prompts: int) -> dict[str, Array]:
    return {name: np.zeros(prompts) for name in ("agree", "agree_count")}


def _with_others(records: Iterable[Ranking | Pair], places: Mapping[str, int]) -> dict[str, dict[str, Array]]:
    """By rater: of the columns of ``agreement_columns`` the part that the rater is in. All raters in one pass."""
    columns: dict[str, dict[str, Array]] = defaultdict(lambda: _empty(len(places)))
    for (place, _, _), by_rater in _words(records, places).items():
        for rater, (agree, count) in zip(by_rater, with_the_others(list(by_rater.values())), strict=True):
            if count:
                columns[rater]["agree"][place] += agree
                columns[rater]["agree_count"][place] += count
    return columns


def _figures(columns: Mapping[str, Array], seed: int) -> dict[str, Any] | None:
    sums = resample(columns, seed)
    if not sums.whole["agree_count"]:
        return None
    agreed = share(sums, "agree", "agree_count")
    limit = {name: None if value is None else float(ceiling(value)) for name, value in agreed.items()}
    couples, prompts = int(sums.whole["agree_count"]), sums.prompts["agree_count"]
    return {"share": agreed, "ceiling": limit, "couples": couples, "prompts": prompts}


def _mean(name: str, count: str, sums: Mapping[str, Array]) -> Array:
    return np.asarray(sums[name] / sums[count])


def _tables(rankings: Iterable[Ranking]) -> dict[Task, dict[str, list[float]]]:
    """By task and rater: the normalised ranks of the task's responses, the mean of several times."""
    given: dict[Task, dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for ranking in rankings:
        if ranking.rater is not None:
            pairs = sorted(zip(ranking.responses, normalised_ranks(ranking.ranks), strict=True))
            task = (Prompt(ranking.prompt).key, tuple(text for text, _ in pairs))
            given[task][ranking.rater].append([score for _, score in pairs])
    # rounded, so that equal places stay ties
    return {
        task: {rater: [round(sum(values) / len(values), 9) for values in zip(*rows, strict=True)] for rater, rows in by.items()}
        for task, by in given.items()
    }


def _alpha_interval(tasks: Sequence[Mapping[str, list[float]]], prompt: npt.NDArray[np.int64], seed: int) -> Interval:
    """Ordinal alpha of all tasks, with a unit for each response, and what resamples of prompts give."""
    values = sorted({value for by_rater in tasks for row in by_rater.values() for value in row})
    place = {value: i for i, value in enumerate(values)}
    met: list[tuple[int, int, float]] = []
    for number, by_rater in zip(prompt, tasks, strict=True):
        for unit in zip(*by_rater.values(), strict=True):
            for (one, other), count in coincidences(unit).items():
                met.append((int(number), place[one] * len(values) + place[other], count))
    rows, cells, counts = zip(*met, strict=True)
    prompts, size = int(prompt.max()) + 1, len(values)
    # [V V, P]: few of the values meet on one prompt
    table = coo_array((np.array(counts), (np.array(cells), np.array(rows))), shape=(size * size, prompts)).tocsr()

    def alpha(times_RP: Array) -> Array:
        return alphas((table @ times_RP.T).T.reshape(-1, size, size))

    drawn = np.concatenate([alpha(times_RP) for times_RP in draws(prompts, ALPHA_RESAMPLES, seed)])
    return interval(float(alpha(np.ones((1, prompts)))[0]), drawn, prompts, (-1.0, 1.0))
