"""The settings of a pipeline's stage in which people rank."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from konomi.config.section import Positive, Section, StageConfig


class LabelConfig(Section):
    """Where people rank, and when it is enough."""

    project: str
    """Directory of the labelling project. It is made if it is not there, and it stays when the stage runs again: no answer is
    lost with a run."""
    comparisons: Positive | None = None
    """Go on once people have made so many comparisons: two texts, one person, no tie. Without it: when every task has its
    answers. Either way the owner can close the collection on the page."""
    overlap: Annotated[float, Field(ge=1, le=100)] = 1.0
    """People a task, for a project that is made now; 1.25: every fourth task goes to two."""
    invite: tuple[str, ...] = ()
    """People for whom an invite link is printed."""
    host: str = "127.0.0.1"
    """The address to listen on. Others than this machine's own need allow_network."""
    allow_network: bool = False
    """Let other machines reach the page. It is not encrypted."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """The port; without it the one of the last time, or a free one."""
    names: tuple[str, ...] = ()
    """Further host names that the page is opened by."""
    public_url: str | None = None
    """Where people open the page when a proxy with TLS stands before it: https://HOST."""


class LabelJob(Section):
    """A stage `label` of a pipeline file."""

    candidates: str
    """The file of candidates that are ranked, as `konomi sample` writes it."""
    label: LabelConfig
    run: StageConfig = StageConfig()
