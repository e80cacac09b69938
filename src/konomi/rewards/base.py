"""What a reward is, and the one way in which it is called."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from konomi.data.records import Prompt
from konomi.errors import ConfigError, RunError
from konomi.files import line, write_atomic
from konomi.text import plural

if TYPE_CHECKING:
    from konomi.models.reading import Reader

Places = list[tuple[int, float]]
"""The per-token form of a score, (end, score): ``score`` is given after the first ``end`` characters of the response. Their
sum is the text's score."""
Given = float | Places
"""What a reward says of one text."""


@runtime_checkable
class Reward(Protocol):
    """Gives each text a score: higher is better, any scale (PPO normalises).

    A sum of rewards also has ``last_parts``: by name the scores that its parts gave in the last call. One that cuts long texts
    has ``readers``: what cuts them, and counts how many.
    """

    name: str

    def __call__(
        self,
        texts: Sequence[str],
        *,
        prompts: Sequence[str],
        responses: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
    ) -> Sequence[Given]:
        """Return one finite number a text, or the pairs of :data:`Places`. ``texts[i]`` is ``prompts[i] + responses[i]``; all
        are of equal length."""
        ...


@dataclass(frozen=True)
class Scores:
    """What a reward said of a batch of texts."""

    totals: list[float]
    """One a text."""
    places: list[Places] | None = None
    """Where in each response its score was given; empty for a text that has one number. None: for all of them."""
    parts: dict[str, list[float]] = field(default_factory=dict)
    """Of a sum: the score that each part gave each text, before its weight."""


def evaluate(
    reward: Reward,
    prompts: Sequence[str],
    responses: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    *,
    save_to: Path | None,
) -> Scores:
    """Return all that a reward says of each prompt + response.

    Raises:
        RunError: the reward raised, or did not return one finite number (or pairs of them) a text. The texts are then in
            ``save_to`` (JSONL: index, prompt, response), so that the reward can be tried on them; nothing ever becomes
            reward 0.
    """
    texts = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    try:
        given = ask(reward, texts, prompts=prompts, responses=responses, columns=columns)
    except RunError as error:
        raise RunError(f"{error}. {_save(prompts, responses, save_to)}") from (error.__cause__ or error)
    places = [[] if isinstance(each, float) else each for each in given]
    parts = {name: list(map(total, said)) for name, said in getattr(reward, "last_parts", {}).items()}
    return Scores(list(map(total, given)), places if any(places) else None, parts)


def score(
    reward: Reward,
    prompts: Sequence[str],
    responses: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    *,
    save_to: Path | None,
) -> list[float]:
    """Return the score of each prompt + response, as :func:`evaluate` does."""
    return evaluate(reward, prompts, responses, columns, save_to=save_to).totals


def ask(
    reward: Reward,
    texts: Sequence[str],
    *,
    prompts: Sequence[str],
    responses: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
) -> list[Given]:
    """Call the reward and check what it returns. Raises RunError, with the reward's name, whatever went wrong in it."""
    try:
        return as_given(reward(texts, prompts=prompts, responses=responses, columns=columns), responses, reward.name, texts)
    except RunError:
        raise
    except (Exception, SystemExit) as error:
        # a user's function may raise anything, and may call sys.exit; the run does not go on
        raised = f"{type(error).__name__}: {error}".rstrip(": ")
        raise RunError(f"reward {reward.name}: {raised}") from error


def as_given(result: Any, responses: Sequence[str], name: str, texts: Sequence[str] | None = None) -> list[Given]:
    """Return what a reward returned (a list, a numpy array, a tensor) as plain floats and pairs, or raise RunError.

    ``texts``: what to show of a text in a message; the response, if not given.
    """
    values = result.tolist() if hasattr(result, "tolist") else result
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise RunError(f"reward {name}: returned a {type(result).__name__}; a list of {len(responses)} numbers is needed")
    if len(values) != len(responses):
        raise RunError(f"reward {name}: returned {len(values)} numbers for {len(responses)} texts; one a text is needed")
    given: list[Given] = []
    for index, (value, response) in enumerate(zip(values, responses, strict=True)):
        value = _plain(value)
        checked = _checked(value, len(response))
        if checked is None:
            text = response if texts is None else texts[index]
            start = text if len(text) <= 30 else text[:30] + "..."
            needed = "a finite number is needed"
            if isinstance(value, (list, tuple)):
                needed += f", or pairs (end, score) with ends from 0 to the {plural(len(response), 'character')} of the response"
            raise RunError(f"reward {name}: returned {repr(value)[:200]} for text {index} ({start!r}); {needed}")
        given.append(checked)
    return given


def total(given: Given) -> float:
    """The score of a text: the number, or the sum of the pairs.

    >>> total(1.5), total([(3, 1.0), (7, -0.25)])
    (1.5, 0.75)
    """
    return given if isinstance(given, float) else float(sum(score for _, score in given))


def readers(*rewards: Reward) -> list[Reader]:
    """What cuts the texts that rewards read; nothing of those that read all of a text, or do not say."""
    return [reader for reward in rewards for reader in getattr(reward, "readers", ())]


def check_without_columns(rewards: Iterable[Reward], texts: Sequence[str], known: Prompt) -> None:
    """Try rewards on prompts that have none of the data's other columns, as ``compare.extra``; their response is their own text.

    Args:
        rewards: each is asked only where the data has other columns.
        texts: of the prompts.
        known: a prompt of the data.

    Raises:
        ConfigError: a reward fails, and would not fail with the columns of ``known``.
    """
    if not texts or not known.columns:
        return
    twice = [text + text for text in texts]
    without: dict[str, list[Any]] = {name: [None] * len(texts) for name in known.columns}
    filled = {name: [value] * len(texts) for name, value in known.columns.items()}
    for reward in rewards:
        try:
            ask(reward, twice, prompts=texts, responses=texts, columns=without)
        except RunError as error:
            try:
                ask(reward, twice, prompts=texts, responses=texts, columns=filled)
            except RunError:  # not for the lack of a column: the run will tell
                continue
            raise ConfigError(
                f"compare.extra: its prompts have no column {', '.join(map(repr, known.columns))}, and without that {error}. "
                "Leave compare.extra out, or let the reward take None"
            ) from error


def columns_of(prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
    """The other columns of prompts as lists; None where a prompt has none."""
    return {name: [prompt.columns.get(name) for prompt in prompts] for name in prompts[0].columns}


def columns_read(rewards: Iterable[Reward]) -> set[str] | None:
    """The columns that rewards look at, as far as they say so in ``reads``; None: perhaps all."""
    found: set[str] = set()
    for reward in rewards:
        reads: Iterable[str] | None = getattr(reward, "reads", None)
        if reads is None:
            return None
        found |= set(reads)
    return found


def find_label(label: str | int, labels: Sequence[str], name: str) -> int:
    """Return the index of ``label``, a name (upper and lower case are the same) or an index, in ``labels``."""
    if isinstance(label, int) and 0 <= label < len(labels):
        return label
    folded = [each.casefold() for each in labels]
    if isinstance(label, str) and folded.count(label.casefold()) == 1:
        return folded.index(label.casefold())
    known = ", ".join(f"{index} {each!r}" for index, each in enumerate(labels))
    raise ConfigError(f"reward.label: {name} has no label {label!r}; it has: {known}")


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value  # a scalar or an array of numpy, a tensor


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that no float can hold
        return False


def _checked(value: Any, length: int) -> Given | None:
    """What a reward says of a response of ``length`` characters, or None if it cannot be that."""
    if not isinstance(value, (list, tuple)):
        return float(value) if _is_number(value) else None
    places: Places = []
    for item in value:
        pair = _pair(item, length)
        if pair is None:
            return None
        places.append(pair)
    return places if math.isfinite(total(places)) else None


def _pair(item: Any, length: int) -> tuple[int, float] | None:
    """The pair (end, score) with an end of 0 to ``length``, or None if it is none."""
    item = _plain(item)
    if not isinstance(item, (list, tuple)) or len(item) != 2:
        return None
    end, score = map(_plain, item)
    # an array of numpy has ends that are floats
    if not _is_number(end) or not _is_number(score) or end != int(end) or not 0 <= end <= length:
        return None
    return int(end), float(score)


def _save(prompts: Sequence[str], responses: Sequence[str], path: Path | None) -> str:
    if path is None:
        return "The texts were not saved"
    pairs = zip(prompts, responses, strict=True)
    rows = (line({"index": i, "prompt": prompt, "response": response}) for i, (prompt, response) in enumerate(pairs))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, b"".join(rows))
    except (RunError, OSError) as error:  # the reward's own failure is the one to tell
        return f"The texts could not be saved: {error}"
    return f"The texts are in {path}"
