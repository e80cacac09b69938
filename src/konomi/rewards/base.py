"""What a reward is, and the one way in which it is called."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from konomi.errors import ConfigError, RunError
from konomi.files import line, write_atomic


class Reward(Protocol):
    """Gives each text a score: higher is better, any scale (PPO normalises)."""

    name: str

    def __call__(
        self,
        texts: Sequence[str],
        *,
        prompts: Sequence[str],
        responses: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[float]:
        """Return one finite number a text. ``texts[i]`` is ``prompts[i] + responses[i]``; all are of equal length."""
        ...


def score(
    reward: Reward,
    prompts: Sequence[str],
    responses: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    *,
    save_to: Path | None,
) -> list[float]:
    """Return the score of each prompt + response.

    Raises:
        RunError: the reward raised, or did not return one finite number a text. The texts are then in ``save_to``
            (JSONL: index, prompt, response), so that the reward can be tried on them; nothing ever becomes reward 0.
    """
    texts = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    try:
        return as_floats(reward(texts, prompts=prompts, responses=responses, columns=columns), texts, reward.name)
    except RunError as error:
        raise RunError(f"{error}. {_save(prompts, responses, save_to)}") from error
    except Exception as error:
        # a user's function may raise anything: the only broad catch in the package, and it does not go on
        raised = f"{type(error).__name__}: {error}".rstrip(": ")
        raise RunError(f"reward {reward.name}: {raised}. {_save(prompts, responses, save_to)}") from error


def as_floats(result: Any, texts: Sequence[str], name: str) -> list[float]:
    """Return what a reward returned for ``texts`` (a list, a numpy array, a tensor) as floats, or raise RunError."""
    values = result.tolist() if hasattr(result, "tolist") else result
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise RunError(f"reward {name}: returned a {type(result).__name__}; a list of {len(texts)} numbers is needed")
    if len(values) != len(texts):
        raise RunError(f"reward {name}: returned {len(values)} numbers for {len(texts)} texts; one a text is needed")
    numbers = []
    for index, (value, text) in enumerate(zip(values, texts, strict=True)):
        if hasattr(value, "tolist"):  # a scalar of numpy, a tensor with one element
            value = value.tolist()
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not _finite(value):
            start = text if len(text) <= 30 else text[:30] + "..."
            raise RunError(f"reward {name}: returned {value!r} for text {index} ({start!r}); a finite number is needed")
        numbers.append(float(value))
    return numbers


def find_label(label: str | int, labels: Sequence[str], name: str) -> int:
    """Return the index of ``label``, a name (upper and lower case are the same) or an index, in ``labels``."""
    if isinstance(label, int) and 0 <= label < len(labels):
        return label
    folded = [each.casefold() for each in labels]
    if isinstance(label, str) and folded.count(label.casefold()) == 1:
        return folded.index(label.casefold())
    known = ", ".join(f"{index} {each!r}" for index, each in enumerate(labels))
    raise ConfigError(f"reward.label: {name} has no label {label!r}; it has: {known}")


def _finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that no float can hold
        return False


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
