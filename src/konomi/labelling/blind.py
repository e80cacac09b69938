"""A run's before/after as a blind comparison: tasks of two texts each, and the verdict of their answers.

The sources of the texts say which is from before training and which from after; raters never see them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from konomi.data.messages import identity, messages_of
from konomi.data.records import Candidate, Prompt
from konomi.data.rows import Row
from konomi.errors import DataError
from konomi.labelling.records import MESSAGES, Exported, Item, Judgement, NewTask
from konomi.statistics.power import enough_votes
from konomi.statistics.win_rate import Vote, evaluate_votes, one_vote_each, sign_test_by_prompt, win_rate
from konomi.text import interval_words, plural

SIDES = ("before", "after")


def tasks_of_comparison(comparison: Mapping[str, Any], run: str) -> list[NewTask]:
    """The held-out prompts of a ``compare.json`` as tasks.

    Where a prompt was answered several times, two different texts of the same model become a further task (A/A), which measures
    how raters vote when there is no difference. At most one such task for every ten others.

    ``run`` is the name of the run in the sources of the texts.

    Raises:
        DataError: no held-out prompt has two different texts; a row is damaged.
    """
    tasks: list[NewTask] = []
    texts: dict[tuple[str, str], tuple[NewTask, dict[str, dict[str, Candidate]]]] = {}
    for row in _rows(comparison):
        both = tuple(_candidate(row, side, run) for side in SIDES)
        talk = row.get("messages")
        task = NewTask(row["prompt"], both, kind="compare", columns={MESSAGES: talk} if talk else {})
        tasks.append(task)
        _, by_side = texts.setdefault((row["prompt"], identity(talk)), (task, {side: {} for side in SIDES}))
        for side, each in zip(SIDES, both, strict=True):
            for text in (each, *([_candidate(row["again"], side, run)] if "again" in row else [])):
                by_side[side].setdefault(text.text.strip(), text)
    if not any(len({each.text.strip() for each in task.candidates}) == 2 for task in tasks):
        raise DataError("compare.json has no held-out prompt with two different texts: there is nothing to compare blind")
    same = []
    for number, (task, by_side) in enumerate(texts.values()):
        own = list(by_side[SIDES[number % 2]].values())
        if len(own) > 1:
            same.append(replace(task, candidates=tuple(own[:2]), kind="same"))
    return tasks + same[: len(tasks) // 10]


def _rows(comparison: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows of the held-out prompts, checked."""
    rows = comparison.get("texts", [])
    mend = "compare.json is damaged; konomi compare RUN writes it again"
    if not isinstance(rows, list):
        raise DataError(f"texts is not a list: {mend}")
    for number, row in enumerate(rows, start=1):
        known = isinstance(row, dict) and isinstance(row.get("prompt"), str)
        for texts in (row, row.get("again", row)) if known else ():
            known = known and isinstance(texts, dict) and all(isinstance(texts.get(side), str) for side in SIDES)
        if not known:
            raise DataError(f"texts, row {number}: prompt, before and after have to be texts: {mend}")
        if row.get("messages") is not None:
            messages_of(Row(f"compare.json: texts, row {number}", row), "messages")
    return [row for row in rows if row.get("held_out")]


def _candidate(row: Mapping[str, Any], side: str, run: str) -> Candidate:
    return Candidate(row[side], {"model": side, "run": run, "score": row.get(f"score_{side}")})


def is_comparison(exported: Exported) -> bool:
    """Whether before and after are compared."""
    return any(item.kind == "compare" for item in exported.items.values())


def prompts_of(exported: Exported) -> int:
    """The number of prompts: several tasks of one prompt are not independent."""
    return len({Prompt(item.prompt).key for item in exported.items.values() if item.kind == "compare"})


def decided_prompts(exported: Exported) -> int:
    """Prompts that people have decided so far, for either side: what the sign test counts."""
    counts = sign_test_by_prompt(one_vote_each([vote for vote in votes_of(exported) if not vote.same]))
    return int(counts["for"] + counts["against"])


def votes_of(exported: Exported) -> list[Vote]:
    """All votes, repeats included. An answer that was skipped or called all bad is none."""
    votes = []
    for each in exported.judgements:
        item = exported.items[each.task]
        if item.kind in ("compare", "same") and each.kind == "ranked" and each.ranks is not None:
            votes.append(_vote(item, each, each.ranks))
    return votes


def _vote(item: Item, judgement: Judgement, ranks: tuple[int, ...]) -> Vote:
    same = item.kind == "same"
    before, after = (0, 1) if same else [[c.source["model"] for c in item.candidates].index(side) for side in SIDES]
    scores = [item.candidates[number].source.get("score") for number in (before, after)]
    known = [float(score) for score in scores if not same and isinstance(score, (int, float))]
    return Vote(
        item.prompt,
        item.candidates[before].text,
        item.candidates[after].text,
        (1 + (ranks[after] < ranks[before]) - (ranks[after] > ranks[before])) / 2,
        judgement.rater,
        after_first=judgement.order.index(after) < judgement.order.index(before),
        gap=known[1] - known[0] if len(known) == 2 else None,
        same=same,
    )


def with_unchanged(votes: Sequence[Vote], unchanged: int) -> list[Vote]:
    """One vote for each two texts, the mean over people; and a tie for each text that training did not change."""
    shares: dict[tuple[str, str, str], list[float]] = {}
    for vote in one_vote_each([vote for vote in votes if not vote.same]):
        shares.setdefault((vote.prompt, vote.before, vote.after), []).append(vote.share)
    means = [Vote(*texts, sum(own) / len(own)) for texts, own in shares.items()]
    return means + [Vote(f"unchanged {number}", "", "", 0.5) for number in range(unchanged if means else 0)]


def verdict(exported: Exported, seed: int = 0) -> dict[str, Any]:
    """Evaluate a blind comparison.

    Returns:
        All of :func:`konomi.statistics.win_rate.evaluate_votes`. ``unchanged``: ``texts`` that training did not change, which
        are shown to nobody; ``of``: these and those that were shown; ``win_rate`` with each of them as a tie.
        ``enough``: what so many prompts can show, see :func:`konomi.statistics.power.enough_votes`.
    """
    votes = votes_of(exported)
    shown = sum(item.kind == "compare" for item in exported.items.values())
    rate = win_rate(with_unchanged(votes, exported.unchanged))
    unchanged = {"texts": exported.unchanged, "of": shown + exported.unchanged, "win_rate": rate}
    return {**evaluate_votes(votes, seed), "unchanged": unchanged, "enough": enough_votes(prompts_of(exported))}


def line(result: Mapping[str, Any]) -> str:
    """The verdict as a line for a terminal."""
    if result["win_rate"]["value"] is None:
        return "nobody has compared before and after yet"
    counts = ", ".join(plural(result[key], one, key) for one, key in (("win", "wins"), ("tie", "ties"), ("loss", "losses")))
    text = f"after wins {_rate(result['win_rate'])}, for these raters: {counts} in {plural(result['votes'], 'vote')}"
    others = result["win_rate_over_raters"]
    if others["low"] is not None:
        text += f"; for people in general, of whom the {plural(result['people'], 'rater')} are a sample: {_range(others)}"
    else:
        text += f"; how far people in general agree with that cannot be said: {_missing(result)}"
    unchanged = result["unchanged"]
    if unchanged["texts"]:
        text += (
            f"; {unchanged['texts']:,} of {plural(unchanged['of'], 'text')} are the same before and after, "
            f"and nobody was shown them: with these as ties {_rate(unchanged['win_rate'])}"
        )
    return text


def _missing(result: Mapping[str, Any]) -> str:
    """The reason why there is no interval over raters."""
    if result["people"] < 2:
        return "it takes two raters, better ten"
    return "all votes are on one prompt" if result["prompts"] < 2 else "no difference between the raters shows in so few votes"


def _rate(rate: Mapping[str, float | None]) -> str:
    return f"{100 * (rate['value'] or 0.0):.1f} % ({_range(rate)})"


def _range(rate: Mapping[str, float | None]) -> str:
    return interval_words(rate, lambda end: f"{100 * end:.0f}", "{low} to {high} %")
