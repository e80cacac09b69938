"""A reward on texts of the initial model: its scale, what it distinguishes, what it may measure instead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from konomi.config import PPOJob
from konomi.errors import RunError
from konomi.jobs.doctor.lines import Line, broken, look
from konomi.text import number, percent, plural

MOSTLY = 0.9
"""Share of texts with one and the same score from which a reward is seldom anything else."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Drawn:
    """Responses of the initial model, ``each`` to a prompt, one prompt after another."""

    each: int
    responses: Sequence[str]
    tokens: Sequence[int]
    ended: Sequence[bool]
    scores: Floats
    """[n], raw."""
    cut: float = 0.0
    """Share of the texts that the reward reads only in part."""
    behind: bool = False
    """What it cuts is the end, where the response is."""


def failed_reward(error: RunError) -> Line:
    """A line on a reward that raised or returned something that is no score."""
    what = str(error).removesuffix(". The texts were not saved")
    return broken("reward", what, "mend the reward: the run would stop at its first batch")


def check_responses(job: PPOJob, drawn: Drawn, entropy: float) -> list[Line]:
    """Lines on what the model writes. ``entropy``: nats a token."""
    count, high = len(drawn.responses), job.rollout.response_tokens[1]
    empty = sum(not text.strip() for text in drawn.responses)
    cut = sum(not ended for ended in drawn.ended)
    alike = count - len(set(drawn.responses))
    seen = f"{np.mean(drawn.tokens):.0f} tokens on average, {count - cut} of {count} ended by themselves"
    if empty > 0.2 * count:
        do = "look at the prompts: does the model take them for finished? A chat model needs data.chat = true"
        return [look("responses", f"{empty} of {count} are empty", do)]
    if entropy < 0.1 or alike > 0.5 * count:
        seen = f"{entropy:.2f} nats a token; {alike} of {count} repeat another"
        return [look("responses", seen, "raise rollout.temperature: the model says one thing, and nothing can be told apart")]
    if job.rollout.stop == "eos" and cut > 0.5 * count:
        do = "raise rollout.response_tokens"
        if job.rollout.missing_eos != "keep":
            do += ", or lower missing_eos_score: the score is mostly that of being cut"
        return [look("responses", f"{cut} of {count} are cut at {high} tokens, before their end of text", do)]
    return [Line("responses", seen)]


def check_scores(drawn: Drawn, normalized: bool = True, compared: bool = True) -> list[Line]:
    """Lines on the scores; one line if there is nothing in them.

    Args:
        drawn: the texts and their scores.
        normalized: they are brought to one scale before they are used.
        compared: with those of other responses to the same prompt.
    """
    scores, count = drawn.scores, len(drawn.scores)
    value, often = Counter(scores.tolist()).most_common(1)[0]
    if often == count:
        do = "mend it: nothing can be learned from a score that is the same for all texts"
        return [broken("reward", f"{number(value)} for all of {plural(count, 'text')}", do), *_reading(drawn)]
    if often >= MOSTLY * count:
        seen = f"{number(value)} for {often} of {plural(count, 'text')}"
        do = "give a reward that tells more texts apart, or begin from a model that hits sooner (konomi sft)"
        return [look("reward", seen, do), *_reading(drawn)]
    return [_scale(scores, normalized), _spread(drawn, compared), _length(drawn), *_reading(drawn)]


def _scale(scores: Floats, normalized: bool) -> Line:
    mean, std = float(scores.mean()), float(scores.std(ddof=1))
    seen = f"mean {number(mean)}, deviation {number(std)} on {plural(len(scores), 'text')}"
    if not normalized and (not 0.1 <= std <= 10 or abs(mean) > 10 * std):
        return look("reward", seen, "set ppo.normalize_scores = true: on this scale ppo.kl_coef does not mean what it says")
    return Line("reward", seen)


def within_share(scores_PS: Floats) -> float:
    """The share of the variance that is between responses to one prompt; the rest is between prompts.

    >>> within_share(np.array([[0.0, 2.0], [0.0, 2.0]])), within_share(np.array([[1.0, 1.0], [3.0, 3.0]]))
    (1.0, 0.0)
    """
    within = float(scores_PS.var(axis=1, ddof=1).mean())
    between = max(0.0, float(scores_PS.mean(axis=1).var(ddof=1)) - within / scores_PS.shape[1]) if len(scores_PS) > 1 else 0.0
    return within / (within + between) if within + between else 0.0


def _spread(drawn: Drawn, compared: bool) -> Line:
    share, name = within_share(drawn.scores.reshape(-1, drawn.each)), "responses to one prompt"
    if share == 0:
        do = "mend the reward: it has to read the response, since nothing else can be learned"
        return broken(name, "all have the same score: it hangs on the prompt alone", do)
    seen = f"{percent(share)} of the scores' variance is between them, the rest between prompts"
    if share < 0.1 and not compared:
        do = "set ppo.responses_per_prompt = 4, so that they are compared with each other, or score the response alone"
        return look(name, seen, do)
    return Line(name, seen)


def _length(drawn: Drawn) -> Line:
    lengths, count, name = [len(text) for text in drawn.responses], len(drawn.responses), "score and length"
    if len(set(lengths)) == 1:
        return Line(name, "responses have one length")
    rho = float(stats.spearmanr(lengths, drawn.scores).statistic)
    limit = max(0.5, 3.3 / (count - 1) ** 0.5)  # the second: what chance gives once in a thousand
    seen = f"rank correlation {rho:+.2f} (to look at: from {limit:.2f})"
    if abs(rho) < limit:
        return Line(name, seen)
    longer = "longer" if rho > 0 else "shorter"
    do = f"the model will learn to make texts {longer}: take length out of the reward, or fix it (rollout.response_tokens)"
    return look(name, seen, do if abs(rho) < 0.9 else f"is the reward more than length? Else {do}")


def _reading(drawn: Drawn) -> list[Line]:
    """A line where the reward reads texts only in part."""
    if not drawn.cut:
        return []
    seen = f"{percent(drawn.cut)} of the texts are cut, at the {'end, where the response is' if drawn.behind else 'beginning'}"
    do = "raise reward.max_length as far as the model allows, or shorten prompts (data.query_tokens)"
    return [(broken if drawn.behind and drawn.cut > 0.5 else look)("what the reward reads", seen, do)]
