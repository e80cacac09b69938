"""What the tests of the pages share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from browsing import browser, ranking, visit  # noqa: F401  (fixtures)
from label_site import Site, make_project


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """The app of a project of 8 tasks."""
    with Site(make_project(tmp_path / "P")) as made:
        yield made


@pytest.fixture
def figures_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of a project are found as fast as anything else: beside busy tests a nice process waits for minutes."""
    from konomi.web import figures

    monkeypatch.setattr(figures, "NICENESS", 0)
