"""What a PPO run does after its last update: it lands at a KL, if that is asked for, and compares before and after."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from konomi.config.section import Positive, Section


class LandConfig(Section):
    """Bringing the trained model to a KL, along the straight line between the initial weights and its own."""

    kl: Annotated[float, Field(gt=0)] | None = None
    """In nats per response: after training the model is put at that place of the line where its KL is this, and the trained one
    is kept in RUN/end. Higher: further from the initial model. Usual 3 to 10. None: the model stays as it was trained."""
    most: Annotated[float, Field(ge=1, le=3)] = 1.5
    """How far the line is followed; 1 is the trained model, above it are weights that were never trained. Higher: a larger KL can
    be reached, with less certain texts. Usual 1 to 1.5."""
    prompts: Positive = 64
    """Prompts to measure a place of the line on, at most: held-out ones that the before/after leaves, then training ones."""
    samples: Positive = 2
    """Responses a prompt and place. Higher: nearer to kl, and slower."""


class CompareConfig(Section):
    """The before/after."""

    prompts: Positive = 128
    """Held-out prompts, at most."""
    extra: tuple[Annotated[str, Field(pattern=r"\S")], ...] = ()
    """Further prompts whose texts are shown but do not count."""
    samples: Positive = 1
    """Responses a prompt and model."""
    seed: Annotated[int, Field(ge=0)] = 20_000
    """Seed of the paired draws: prompt i has the same random stream under both models."""
    best_of: Annotated[int, Field(ge=0, le=1024)] = 0
    """Responses of the initial model to each held-out prompt, from which the best of 1, 2, 4, ... is taken by the reward: how far
    choosing alone gets, for the same KL. Usual 16. 0: not done."""
