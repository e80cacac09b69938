"""Runs, to be looked at while they go on: their files are read as they grow, and never written."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request

from konomi.errors import DataError
from konomi.reading import check_regular, parse_json
from konomi.runs.directory import RunDir
from konomi.text import visible
from konomi.web.refusals import Json, Refusal
from konomi.web.session import Site, admin_of

SAMPLES = 2000
"""Lines of sample texts that are sent at once."""


class Tail:
    """The lines of a JSONL file that grows. Only what is new is read; a file that was cut or replaced is read anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._generation = 0
        self._rows: list[dict[str, Any]] = []
        self._offset, self._inode = 0, 0
        self._lock = threading.Lock()

    def rows(self) -> tuple[list[dict[str, Any]], int]:
        """All whole lines that are there now; a damaged one is left out, and so is the last one while it is written.

        The number beside them goes up each time that lines which were there may have gone.
        """
        with self._lock:
            try:
                check_regular(self.path)
                with open(self.path, "rb") as file:
                    self._follow(file)
            except OSError:
                self._begin(0)
            return list(self._rows), self._generation

    def _follow(self, file: Any) -> None:
        found = os.fstat(file.fileno())
        if found.st_ino != self._inode or found.st_size < self._offset:
            self._begin(found.st_ino)
        file.seek(self._offset)
        *whole, _ = file.read().split(b"\n")
        for line in whole:
            self._offset += len(line) + 1
            try:
                row = parse_json(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                self._rows.append(row)

    def _begin(self, inode: int) -> None:
        if self._rows:
            self._generation += 1
        self._rows, self._offset, self._inode = [], 0, inode


class Watched:
    """A run that is watched."""

    def __init__(self, path: Path) -> None:
        """Raises DataError: there is no run at ``path``."""
        self.run = RunDir.open(path)
        self.metrics = Tail(self.run.metrics)
        self.samples = Tail(self.run.samples)

    def described(self, number: int) -> dict[str, Any]:
        """What the pages say of it. What cannot be read at the moment is None."""
        info, config = (self._read(name) for name in ("run.json", "config.json"))
        settings = config.get("ppo")
        settings = settings if isinstance(settings, dict) else {}
        rows = updates(self.metrics)[0]
        return {
            "id": number,
            "name": visible(self.run.path.absolute().name),
            **{name: info.get(name) for name in ("verb", "status", "started", "ended")},
            "reason": visible(info["reason"]) if info.get("reason") else None,
            "kl_target": settings.get("kl_target") if settings.get("kl_controller", "adaptive") == "adaptive" else None,
            "kl_cap": settings.get("kl_cap"),
            "updates": rows[-1]["update"] if rows else 0,
        }

    def compare(self) -> dict[str, Any]:
        """compare.json; empty while there is none."""
        return self._read("compare.json")

    def _read(self, name: str) -> dict[str, Any]:
        try:
            found = self.run.read_json(name)
        except DataError:
            return {}
        return found if isinstance(found, dict) else {}


def updates(metrics: Tail) -> tuple[list[dict[str, Any]], int]:
    """The lines that say of which update they are, and the generation."""
    rows, generation = metrics.rows()
    return [row for row in rows if type(row.get("update")) is int], generation


router = APIRouter(prefix="/api/runs")


def _watched(request: Request, number: str) -> Watched:
    site: Site = request.app.state.site
    admin_of(request)
    if not re.fullmatch("[0-9]{1,9}", number) or int(number) >= len(site.runs):
        raise Refusal("unknown_run")
    found: Watched = site.runs[int(number)]
    return found


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not re.fullmatch(r"-?[0-9]{1,12}", text):
        raise Refusal("bad_request")
    return int(text)


@router.get("")
def runs(request: Request) -> Json:
    """All runs."""
    admin_of(request)
    watched: Sequence[Watched] = request.app.state.site.runs
    return Json({"runs": [each.described(number) for number, each in enumerate(watched)]})


@router.get("/{number}/metrics")
def metrics(request: Request, number: str) -> Json:
    """The lines of updates after ``?after=``. With ``?generation=`` of an older answer: all, if lines have gone since."""
    rows, generation = updates(_watched(request, number).metrics)
    after = _number(request, "after", -1)
    if _number(request, "generation", generation) != generation:
        after = -1
    new = [_numbers(row) for row in rows if row["update"] > after]
    return Json({"rows": new, "generation": generation})


@router.get("/{number}/samples")
def samples(request: Request, number: str) -> Json:
    """Lines of sample texts from the ``?from=``-th on, some at once, and where to go on; from 0 if lines have gone since."""
    rows, generation = _watched(request, number).samples.rows()
    first = max(0, _number(request, "from", 0))
    if _number(request, "generation", generation) != generation:
        first = 0
    new = rows[first : first + SAMPLES]
    return Json({"samples": new, "from": first, "next": first + len(new), "generation": generation})


@router.get("/{number}/compare")
def compare(request: Request, number: str) -> Json:
    """The before/after, or null while there is none."""
    return Json({"compare": _watched(request, number).compare() or None})


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is None or isinstance(value, (int, float))}
