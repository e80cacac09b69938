"""What the tests of the pages share."""

from __future__ import annotations

import pytest

from browsing import browser, visit  # noqa: F401  (fixtures)


@pytest.fixture
def figures_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of a project are found as fast as anything else: beside busy tests a nice process waits for minutes."""
    from konomi.web import figures

    monkeypatch.setattr(figures, "NICENESS", 0)
