"""What a reward model learns from and is held against, by task."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from konomi.config import DPOData, RewardData, RewardJob
from konomi.data.examples import read_labelled
from konomi.data.formats import read_comparisons, read_scores
from konomi.data.messages import Answered, Text
from konomi.data.records import Group, LabelledText, Pair, Ranking, Score, groups, split_by_key
from konomi.data.rows import alike
from konomi.data.sources import sources_of
from konomi.errors import DataError
from konomi.jobs.inputs import digest_of
from konomi.statistics import evaluate_labels, evaluate_preferences, evaluate_scores, evaluate_truth
from konomi.statistics.regression import beyond_rounding
from konomi.text import plural
from konomi.training.reward import Example

Scores = Sequence[Sequence[float]]
"""One for each response of each group."""


@dataclass
class Learned:
    """The elements to train on and to evaluate on.

    described: in words. digest: changes with the data. labels: of task classification. Of the rest, what the task needs:
    groups held out and to train on, scores held out, texts held out; truth: (prompt key, response) -> score by a judge that is
    certain.
    """

    train: list[Example]
    held_out: list[Example]
    described: str
    digest: str
    labels: tuple[str, ...] = ()
    groups: list[Group] = field(default_factory=list)
    train_groups: list[Group] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    labelled: list[LabelledText] = field(default_factory=list)
    truth: dict[tuple[str, str], float] = field(default_factory=dict)
    comparisons: int = 0
    talks: bool = False
    """Prompts are conversations."""

    def texts(self) -> Sequence[Sequence[Text]]:
        """What the model is asked for: prompt and response of everything held out."""
        if self.groups:
            return [_texts(group) for group in self.groups]
        return [example.texts for example in self.held_out]

    def prompts(self) -> int:
        """Held-out prompts; of texts with labels, texts: they are taken as independent."""
        keys = [group.key for group in self.groups] or [score.key for score in self.scores]
        return len(set(keys)) or len(self.labelled)

    def evaluate(self, numbers: Sequence[Tensor], seed: int, baselines: Mapping[str, Scores] | None = None) -> dict[str, Any]:
        """Figures of what the model says of :meth:`texts`, [K, C] for each; ``baselines``: other scores of held-out groups."""
        if self.labels:
            probabilities = torch.cat(list(numbers)).double().softmax(-1).tolist()
            return {"held_out": evaluate_labels([each.label for each in self.labelled], probabilities, self.labels, seed=seed)}
        scores = [each[:, 0].double().tolist() for each in numbers]
        if self.groups:
            held_out = evaluate_preferences(
                self.groups, scores, seed=seed, train_comparisons=self.comparisons, baselines=baselines
            )
            return {"held_out": held_out} | self._against_truth(scores, seed, baselines or {})
        keys = [score.key for score in self.scores]
        truth = [example.target for example in self.held_out]
        return {"held_out": evaluate_scores(truth, [score for (score,) in scores], keys, seed=seed)}

    def shown(self, numbers: Sequence[Tensor]) -> list[dict[str, Any]]:
        """Texts with their raw scores, for the page."""
        answers = [text for of in self.groups or self.scores for text in _texts(of)]
        raw = torch.cat(list(numbers))[:, 0].tolist()
        return [{**answer.shown, "score": score} for answer, score in zip(answers, raw, strict=True)]

    def _against_truth(self, scores: Scores, seed: int, baselines: Mapping[str, Scores]) -> dict[str, Any]:
        if not self.truth:
            return {}
        rows: list[tuple[str, list[float], list[float]]] = []
        rivals: dict[str, list[list[float]]] = {name: [] for name in baselines}
        for number, group in enumerate(self.groups):
            truth = [self.truth.get((group.key, response)) for response in group.responses]
            known = [place for place, each in enumerate(truth) if each is not None]
            if len(known) > 1:
                own = [each for each in truth if each is not None]
                rows.append((group.key, own, [scores[number][place] for place in known]))
                for name, each in baselines.items():
                    rivals[name].append([each[number][place] for place in known])
        return {"truth": evaluate_truth(rows, seed=seed, baselines=rivals)}


def load(job: RewardJob, say: Callable[[str], None], warn: Callable[[str], None] = lambda _: None) -> Learned:
    """Read what a job learns from; ``say`` reports the format that was detected, ``warn`` what looks like a mistake.

    Raises:
        DataError: a file cannot be read, a row is wrong, or a side is empty.
        ConfigError: a setting for hub data sets is given with a file.
    """
    if job.train.task == "classification":
        return _labelled(job, say, warn)
    return _scored(job, say) if job.train.task == "score" else _compared(job, say, warn)


def _compared(job: RewardJob, say: Callable[[str], None], warn: Callable[[str], None]) -> Learned:
    data = job.data
    train, held_out, decided = split_groups(data, read_comparisons, say, warn, job.train.strength_margin)
    counts = [sum(len(group.comparisons) for group in side) for side in (train, held_out)]
    truth = {(s.key, s.response): s.score for s in read_scores(data.truth)} if data.truth else {}
    known = max((sum((group.key, r) in truth for r in group.responses) for group in held_out), default=0)
    if data.truth and known < 2:
        raise DataError(
            f"{data.truth}: it has no scores of the responses that are held out; give those of the same candidates (data.truth)"
        )
    return Learned(
        [_of_group(group) for group in train], [_of_group(group) for group in decided],
        f"{plural(counts[0], 'comparison')} of {plural(len(train), 'prompt')} to train on, "
        f"{counts[1]:,} of {len(held_out):,} held out",
        _digest([(g.prompt, g.responses, g.comparisons) for g in train + held_out]),
        groups=held_out, train_groups=train, truth=truth, comparisons=counts[0],
        talks=any(group.messages for group in train + held_out),
    )  # fmt: skip


def split_groups(
    data: RewardData | DPOData, read: Callable[..., list[Ranking | Pair]], say: Callable[[str], None],
    warn: Callable[[str], None], margin: float = 0.0,
) -> tuple[list[Group], list[Group], list[Group]]:  # fmt: skip
    """The groups of comparisons to train on; those held out; and of the latter those with a comparison.

    ``read``: `read_comparisons`, or what else reads a source as it does. ``margin``: see ``train.strength_margin``.

    Raises:
        DataError: a file cannot be read, a row is wrong, or a side is empty.
    """
    sources = [read(name, hub=hub, say=say)[: data.limit] for name, hub in sources_of(data)]
    for what in ("rater", "source"):
        if twins := alike(name for records in sources for each in records if (name := getattr(each, what))):
            warn(f"{data.file}: the {what}s {twins} are taken as different; if they are the same, write them alike")
    if margin and not any(each.strength for records in sources for each in records):
        warn(f"{data.file}: no comparison has a strength, so that train.strength_margin = {margin:g} has no effect")
    every, *evaluation = (groups(records, margin) for records in sources)
    train, held_out = split_by_key(every, data.held_out, *evaluation)
    train, decided = ([group for group in side if group.comparisons] for side in (train, held_out))
    for name, side in (("train on", train), ("evaluate on", decided)):
        if not side:
            raise DataError(
                f"{data.file}: no prompt is left to {name} that has a comparison; it has {plural(len(every), 'prompt')} in all. "
                f"Give more prompts, or change data.held_out = {data.held_out:g} or data.evaluation"
            )
    return train, held_out, decided


def _of_group(group: Group) -> Example:
    pairs = tuple((c.better, c.worse, c.label, c.margin) for c in group.comparisons)
    return Example(_texts(group), pairs)


def _texts(of: Group | Score) -> tuple[Answered, ...]:
    return tuple(Answered(of.prompt, response, of.messages) for response in of.responses)


def _scored(job: RewardJob, say: Callable[[str], None]) -> Learned:
    data = job.data
    every, *evaluation = [read_scores(name, hub=hub, say=say)[: data.limit] for name, hub in sources_of(data)]
    train, held_out = split_by_key(every, data.held_out, *evaluation)
    if len(train) < 2 or not held_out:
        raise DataError(
            f"{data.file}: {len(train)} scores to train on and {len(held_out)} held out; give more prompts, or set data.held_out"
        )
    mean, std = statistics.fmean(s.score for s in train), statistics.pstdev([s.score for s in train])
    if not beyond_rounding(std, max(abs(s.score) for s in train)):
        raise DataError(f"{data.file}: all scores are {mean:g}; there is nothing to learn")
    here, there = ([Example(_texts(s), target=(s.score - mean) / std) for s in side] for side in (train, held_out))
    return Learned(
        here, there, f"{plural(len(train), 'score')} to train on, {len(held_out):,} held out",
        _digest([(s.prompt, s.response, s.score) for s in train + held_out]), scores=held_out,
        talks=any(s.messages for s in every),
    )  # fmt: skip


def _labelled(job: RewardJob, say: Callable[[str], None], warn: Callable[[str], None]) -> Learned:
    train, held_out, labels = read_labelled(job.data, say, warn)
    here, there = ([Example((each.text,), target=float(each.label)) for each in side] for side in (train, held_out))
    return Learned(
        here, there, f"{plural(len(train), 'text')} to train on, {len(held_out):,} held out, labels {', '.join(labels)}",
        _digest([(each.text, each.label) for each in train + held_out]), labels=labels, labelled=held_out,
    )  # fmt: skip


def _digest(rows: Sequence[Any]) -> str:
    return digest_of(map(repr, rows), "\x1e")
