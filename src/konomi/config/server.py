"""The settings of rollouts on an inference server."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from konomi.config.section import Positive, Section, check_address


class ServerConfig(Section):
    """An inference server (vLLM) that draws the responses of training; before each update it gets the policy's weights."""

    url: str | None = None
    """Where it listens, such as http://127.0.0.1:8000; docs/server.md says how to start it. Not set: konomi draws the responses
    itself."""
    model: str | None = None
    """The name of the model that it serves. Not set: the only one that it lists."""
    directory: str | None = None
    """Where the weights are written for it: a directory that it sees under the same path. Not set: one in the run's own."""
    token_env: str | None = None
    """Name of an environment variable that holds its API key. It is sent as `Authorization: Bearer`, and written nowhere."""
    concurrency: Positive = 256
    """Requests at a time; each is one response."""
    timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds that a request may take: a response, or loading the weights."""
    retries: Annotated[int, Field(ge=0, le=1000)] = 30
    """Further tries of an update's responses, with the weights handed over anew, when the server cannot be reached, takes too
    long, or answers 429 or 5xx. Any other error stops at once."""
    backoff: Annotated[float, Field(ge=0)] = 1.0
    """Seconds before the first of them; doubled before each other, up to 30."""
    importance: Literal["token", "sequence"] = "token"
    """How its log-probabilities, which differ a little from the trainer's, are made up for. token: each token weighs as much more
    or less as it is likelier by the trainer, at most importance_cap. sequence: all tokens of a response weigh the product, and
    nothing where that is above importance_cap."""
    importance_cap: Annotated[float, Field(ge=1)] = 2.0
    """See importance. Higher: less bias, more noise. Usual 2, for sequences 2 to 3."""

    @model_validator(mode="after")
    def _on(self) -> ServerConfig:
        changed = [name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default]
        if self.url is not None:
            check_address(self.url)
        elif changed:
            raise ValueError(f"{changed[0]} is of no use without url, the server's address, such as http://127.0.0.1:8000")
        return self
