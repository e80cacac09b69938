"""A service over HTTP as a reward.

It gets a batch of texts at a time by ``POST``, in JSON::

    {"version": 1, "texts": [...], "prompts": [...], "responses": [...], "columns": {"name": [...]}}

and answers ``{"scores": [...]}``, or the list alone: a number a text, or for a text a list of pairs ``[end, score]``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from konomi import config as configuration
from konomi.errors import ModelError, RunError
from konomi.rewards.base import Columns, Texts, TextScore, ask, check_scores
from konomi.service import SHOWN, Service
from konomi.text import plural

VERSION = 1  # of what is posted


class HttpReward:
    """Posts the texts to ``url`` and takes the scores from the answer.

    Retries, with waits that double, when the service cannot be reached, takes longer than ``timeout``, or answers 429 or 5xx.
    """

    def __init__(self, config: configuration.HttpReward) -> None:
        self._service = Service(
            "reward", "reward", config.url, timeout=config.timeout, retries=config.retries, backoff=config.backoff,
            token_env=config.token_env,
        )  # fmt: skip
        self.name, self._batch_size = self._service.name, config.batch_size

    def probe(self, columns: Iterable[str]) -> None:
        """Ask for the score of one text, before a model is loaded; ``columns`` as in :func:`konomi.rewards.build_reward`.

        Raises:
            ModelError: it does not answer, or not with a score.
        """
        row: Mapping[str, Any] = columns if isinstance(columns, Mapping) else dict.fromkeys(columns)
        try:
            ask(self, ["ab"], prompts=["a"], responses=["b"], columns={name: [value] for name, value in row.items()})
        except RunError as error:
            raise ModelError(f"reward.url: {error}") from error

    def __call__(self, texts: Texts, *, prompts: Texts, responses: Texts, columns: Columns) -> list[TextScore]:
        """Return the service's score of each text.

        Raises:
            RunError: it does not answer, or not with one finite number (or pairs) a text.
        """
        result: list[Any] = []
        for start in range(0, len(texts), self._batch_size):
            part = slice(start, start + self._batch_size)
            body: dict[str, Any] = {
                "version": VERSION,
                "texts": list(texts[part]),
                "prompts": list(prompts[part]),
                "responses": list(responses[part]),
                "columns": {name: [_jsonable(value) for value in column[part]] for name, column in columns.items()},
            }
            answer = self._service.ask(body)
            scores = answer.get("scores") if isinstance(answer, dict) else answer
            if not isinstance(scores, list) or len(scores) != len(body["texts"]):
                what = plural(len(scores), "score") if isinstance(scores, list) else f"no list of scores: {str(answer)[:SHOWN]}"
                raise RunError(f"reward {self.name}: answered with {what}, for {len(body['texts'])} texts")
            result += scores
        return check_scores(result, responses, self.name, texts)


def _jsonable(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
