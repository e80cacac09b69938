"""The protocol of rewards, and how they are called."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from konomi.data.messages import Answered, Conversation
from konomi.data.records import Prompt
from konomi.errors import ConfigError, NotFiniteError, RunError
from konomi.files import json_line, write_atomic
from konomi.runs import processes
from konomi.text import plural, shortened

if TYPE_CHECKING:
    from konomi.models.reader import Reader

Texts = Sequence[str]
Columns = Mapping[str, Sequence[Any]]
TokenRewards = list[tuple[int, float]]
"""Pairs (end, score): ``score`` is given after the first ``end`` characters of the response. A text's score is their sum."""
TextScore = float | TokenRewards


@runtime_checkable
class Reward(Protocol):
    """Gives each text a score: higher is better, any scale (PPO normalises).

    Optional attributes: ``reads``, the columns that it looks at; ``last_parts``, by name further figures of each text in
    the last call, as the scores of a sum's parts; ``readers`` of one that cuts long texts, which count how many; ``divisible``,
    true where several processes may each score a part of the texts; ``composite``, true of one that asks other rewards by
    :func:`ask`, in all processes. Any other is called in the main process alone, with all of them.
    """

    name: str

    def __call__(self, texts: Texts, *, prompts: Texts, responses: Texts, columns: Columns) -> Sequence[TextScore]:
        """Return one finite number a text, or :data:`TokenRewards`. ``texts[i]`` is ``prompts[i] + responses[i]``; where a prompt
        is a conversation, both as people read them, and its messages are in ``columns["messages"]``."""
        ...


@dataclass(frozen=True)
class Scores:
    """The scores of a batch of texts.

    totals: one a text.
    token_rewards: where in each response its score was given; empty for a text that has one number. None: for all of them.
    parts: of a sum, the score that each part gave each text, before its weight; of an ensemble, its ``spread``; of an ensemble
        in a sum, ``PART/spread``.
    """

    totals: list[float]
    token_rewards: list[TokenRewards] | None = None
    parts: dict[str, list[float]] = field(default_factory=dict)


def evaluate(reward: Reward, prompts: Texts, responses: Texts, columns: Columns, *, save_to: Path | None) -> Scores:
    """Score each prompt + response.

    Raises:
        RunError: the reward raised, or did not return one finite number (or pairs of them) a text. The texts are then in
            ``save_to`` (JSONL: index, prompt, response); a failure never becomes reward 0.
    """
    texts = list(map(str, answered(prompts, responses, columns)))
    try:
        scores = ask(reward, texts, prompts=prompts, responses=responses, columns=columns)
    except NotFiniteError as error:
        raise NotFiniteError(f"{error}. {_save(prompts, responses, save_to)}", error.what) from error
    except RunError as error:
        raise RunError(f"{error}. {_save(prompts, responses, save_to)}") from (error.__cause__ or error)
    placed = [[] if isinstance(each, float) else each for each in scores]
    parts = {name: list(map(total, part)) for name, part in getattr(reward, "last_parts", {}).items()}
    return Scores(list(map(total, scores)), placed if any(placed) else None, parts)


def answered(prompts: Texts, responses: Texts, columns: Columns) -> list[Answered]:
    """Each prompt with its response, and with its messages where it is a conversation."""
    messages = columns.get("messages") or [None] * len(prompts)
    rows = zip(prompts, responses, messages, strict=True)
    return [Answered(prompt, text, talk if isinstance(talk, Conversation) else None) for prompt, text, talk in rows]


def score(reward: Reward, prompts: Texts, responses: Texts, columns: Columns, *, save_to: Path | None) -> list[float]:
    """Return the score of each prompt + response, as :func:`evaluate` does."""
    return evaluate(reward, prompts, responses, columns, save_to=save_to).totals


def ask(reward: Reward, texts: Texts, *, prompts: Texts, responses: Texts, columns: Columns) -> list[TextScore]:
    """Call the reward and check its result; all processes get all scores. Raises RunError, naming the reward, for any failure
    in it."""

    def asked(rows: Sequence[int]) -> list[TextScore]:
        own = [[each[row] for row in rows] for each in (texts, prompts, responses)]
        return _ask(reward, own[0], own[1], own[2], {name: [each[row] for row in rows] for name, each in columns.items()})

    if getattr(reward, "composite", False) or not processes.several():
        return _ask(reward, texts, prompts, responses, columns)
    if getattr(reward, "divisible", False):
        return processes.divided(range(len(texts)), asked)
    scores, parts = processes.first(
        lambda: (_ask(reward, texts, prompts, responses, columns), getattr(reward, "last_parts", None))
    )
    if parts is not None:
        reward.last_parts = parts  # type: ignore[attr-defined]
    return scores


def _ask(reward: Reward, texts: Texts, prompts: Texts, responses: Texts, columns: Columns) -> list[TextScore]:
    try:
        result = reward(texts, prompts=prompts, responses=responses, columns=columns)
        return check_scores(result, responses, reward.name, texts)
    except RunError:
        raise
    except (Exception, SystemExit) as error:  # a user's function may raise anything, and may call sys.exit
        if getattr(reward, "composite", False) and processes.lost(error):  # its parts are exchanged within it
            raise
        raised = f"{type(error).__name__}: {error}".rstrip(": ")
        raise RunError(f"reward {reward.name}: {raised}") from error


def check_scores(result: Any, responses: Texts, name: str, texts: Texts) -> list[TextScore]:
    """Convert what a reward returned (a list, a numpy array, a tensor) to plain floats and pairs, or raise RunError."""
    values = _plain(result)
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise RunError(f"reward {name}: returned a {type(result).__name__}; a list of {len(responses)} numbers is needed")
    if len(values) != len(responses):
        raise RunError(f"reward {name}: returned {len(values)} numbers for {len(responses)} texts; one a text is needed")
    scores: list[TextScore] = []
    for index, (value, response) in enumerate(zip(map(_plain, values), responses, strict=True)):
        checked = _checked(value, len(response))
        if checked is None:
            needed = "a finite number is needed"
            if isinstance(value, (list, tuple)):
                needed += f", or pairs (end, score) with ends from 0 to the {plural(len(response), 'character')} of the response"
            wrong = f"reward {name}: returned {repr(value)[:200]} for text {index} ({shortened(texts[index])!r})"
            if isinstance(value, float) and not math.isfinite(value):
                raise NotFiniteError(f"{wrong}; {needed}", f"reward: {value} for text {index}")
            raise RunError(f"{wrong}; {needed}")
        scores.append(checked)
    return scores


def total(score: TextScore) -> float:
    """The number, or the sum of the pairs.

    >>> total(1.5), total([(3, 1.0), (7, -0.25)])
    (1.5, 0.75)
    """
    return score if isinstance(score, float) else float(sum(part for _, part in score))


def readers(*rewards: Reward) -> list[Reader]:
    """The readers of rewards that cut long texts."""
    return [reader for reward in rewards for reader in getattr(reward, "readers", ())]


class WeightedSum:
    """Adds up other rewards, each times its weight. Each part reads the texts in its own way, with its own tokenizer.
    ``last_parts`` has each part's scores, before its weight, and as ``PART/NAME`` what the part has itself.

    Where a part gives pairs for a text, so does the sum; the plain numbers of the others then stand at its end.
    """

    composite = True

    def __init__(self, parts: Mapping[str, Reward], weights: Mapping[str, float]) -> None:
        self._parts, self._weights = parts, [weights.get(name, 1.0) for name in parts]
        self.name = " ".join(f"{weight:+g} {name}" for weight, name in zip(self._weights, parts, strict=True))
        self.readers = readers(*parts.values())
        self.reads = columns_read(parts.values())
        self.last_parts: dict[str, list[TextScore]] = {}

    def __call__(self, texts: Texts, *, prompts: Texts, responses: Texts, columns: Columns) -> list[TextScore]:
        """Return the sum for each text. Raises RunError, with the part's own name, where a part failed."""
        scores = {
            name: ask(part, texts, prompts=prompts, responses=responses, columns=columns) for name, part in self._parts.items()
        }
        self.last_parts = dict(scores)
        for name, part in self._parts.items():
            self.last_parts |= {f"{name}/{figure}": values for figure, values in getattr(part, "last_parts", {}).items()}
        rows = zip(*scores.values(), strict=True)
        return [_added(row, self._weights, len(response)) for row, response in zip(rows, responses, strict=True)]


def _added(row: Sequence[TextScore], weights: Sequence[float], length: int) -> TextScore:
    """The sum for one text of ``length`` characters of response.

    >>> _added([1.0, 3.0], [1.0, -0.5], 9), _added([1.0, [(4, 3.0)]], [1.0, -0.5], 9)
    (-0.5, [(9, 1.0), (4, -1.5)])
    """
    placed = [[(length, each)] if isinstance(each, float) else each for each in row]
    pairs = [(end, weight * score) for weight, part in zip(weights, placed, strict=True) for end, score in part]
    return total(pairs) if all(isinstance(each, float) for each in row) else pairs


def check_without_columns(rewards: Iterable[Reward], extra: Sequence[Prompt], known: Prompt) -> None:
    """Try rewards on the prompts of ``compare.extra``, which have none of the data's other columns; a text is its own response.

    Raises:
        ConfigError: a reward fails, and would not fail with the columns of ``known``, a prompt of the data.
    """
    texts = [prompt.text for prompt in extra]
    own = columns_of(extra) if extra else {}
    without: dict[str, list[Any]] = {name: [None] * len(texts) for name in known.columns if name not in own}
    if not texts or not without:
        return
    twice = [text + text for text in texts]
    lacking, filled = list(without), own | {name: [known.columns[name]] * len(texts) for name in without}
    without |= own
    for reward in rewards:
        try:
            ask(reward, twice, prompts=texts, responses=texts, columns=without)
        except RunError as error:
            try:
                ask(reward, twice, prompts=texts, responses=texts, columns=filled)
            except RunError:  # not for the lack of a column: the run will report it
                continue
            raise ConfigError(
                f"compare.extra: its prompts have no column {', '.join(map(repr, lacking))}, and without that {error}. "
                "Leave compare.extra out, or let the reward take None"
            ) from error


def columns_of(prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
    """The other columns of prompts as lists; None where a prompt has none."""
    return {name: [prompt.columns.get(name) for prompt in prompts] for name in prompts[0].columns}


def columns_read(rewards: Iterable[Reward]) -> set[str] | None:
    """The columns that rewards use, as declared by ``reads``; None: possibly all."""
    names: set[str] = set()
    for reward in rewards:
        reads: Iterable[str] | None = getattr(reward, "reads", None)
        if reads is None:
            return None
        names |= set(reads)
    return names


def find_label(label: str | int, labels: Texts, name: str) -> int:
    """Return the index in ``labels`` of ``label``, an index or a name in any case."""
    if isinstance(label, int) and 0 <= label < len(labels):
        return label
    folded = [each.casefold() for each in labels]
    if isinstance(label, str) and folded.count(label.casefold()) == 1:
        return folded.index(label.casefold())
    known = ", ".join(f"{index} {each!r}" for index, each in enumerate(labels))
    raise ConfigError(f"reward.label: {name} has no label {label!r}; it has: {known}")


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value  # of numpy or torch


def _number(value: Any) -> float | None:
    """The value as a finite number, or None if it cannot be that."""
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:  # an int that no float can hold
        return None
    return number if math.isfinite(number) else None


def _checked(value: Any, length: int) -> TextScore | None:
    """The score of a response of ``length`` characters, or None if it cannot be that."""
    if not isinstance(value, (list, tuple)):
        return _number(value)
    pairs: TokenRewards = []
    for pair in map(_plain, value):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            return None
        end, score = map(_number, pair)
        # an array of numpy has ends that are floats
        if end is None or score is None or end != int(end) or not 0 <= end <= length:
            return None
        pairs.append((int(end), score))
    return pairs if math.isfinite(total(pairs)) else None


def _save(prompts: Texts, responses: Texts, path: Path | None) -> str:
    if path is None:
        return "The texts were not saved"
    pairs = zip(prompts, responses, strict=True)
    rows = [json_line({"index": i, "prompt": prompt, "response": response}) for i, (prompt, response) in enumerate(pairs)]
    try:
        if processes.is_main():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, b"".join(rows))
    except (RunError, OSError) as error:  # the reward's own failure is the one to report
        return f"The texts could not be saved: {error}"
    return f"The texts are in {path}"
