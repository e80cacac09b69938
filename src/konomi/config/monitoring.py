"""What watches a PPO run while it trains: guards, and answers to held-out prompts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from konomi.config.section import Positive, Section

GuardName = Literal[
    "not_finite", "kl_cap", "ratio", "negative_kl", "entropy", "length", "repetition", "critic", "judge", "perplexity", "spread"
]


class EvaluationConfig(Section):
    """Answers to held-out prompts while a run trains."""

    every: Annotated[int, Field(ge=0)] | None = None
    """Updates between two evaluations; the last update has one too. None: a fifth of the run, and no evaluation in a run of fewer
    than 10 updates. 0: none."""
    prompts: Positive = 32
    """Held-out prompts, at most: the first ones of the before/after. An evaluation costs about what drawing and scoring prompts *
    samples responses of an update do."""
    samples: Positive = 1
    """Responses a prompt."""

    def interval(self, updates: int) -> int:
        """Updates between two evaluations in a run of so many; 0: there are none."""
        if self.every is None:
            return -(-updates // 5) if updates >= 10 else 0
        return self.every


class GuardConfig(Section):
    """What happens when a run goes wrong."""

    retries: Annotated[int, Field(ge=0)] = 2
    """Times that a run goes back to its last good checkpoint, or to its beginning, after a number that is not finite or a KL over
    ppo.kl_cap. The next time it ends. 0: it ends the first time."""
    rate_factor: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Each time, the learning rates are multiplied by this for the rest of the run."""
    off: tuple[GuardName, ...] = ()
    """Guards that are not wanted."""
