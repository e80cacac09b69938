"""Follow runs in progress: read their files as they grow, never write them."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from konomi.errors import DataError
from konomi.reading import check_regular, parse_json, written_by_konomi
from konomi.report.page import data_of, described
from konomi.runs.directory import RunDir
from konomi.text import visible


class Tail:
    """The lines of a growing JSONL file. Only new lines are read; a file that was cut or replaced is read again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._generation = 0
        self._rows: list[dict[str, Any]] = []
        self._offset, self._inode = 0, 0
        self._lock = threading.Lock()

    def rows(self) -> tuple[list[dict[str, Any]], int]:
        """All complete lines, without damaged ones, and a generation: it goes up each time that earlier lines may have gone."""
        with self._lock:
            try:
                check_regular(self.path)
                with open(self.path, "rb") as file:
                    self._follow(file)
            except OSError:
                self._reset(0)
            return list(self._rows), self._generation

    def _follow(self, file: Any) -> None:
        status = os.fstat(file.fileno())
        if status.st_ino != self._inode or status.st_size < self._offset:
            self._reset(status.st_ino)
        file.seek(self._offset)
        *complete, _ = file.read().split(b"\n")
        for line in complete:
            self._offset += len(line) + 1
            try:
                row = parse_json(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                self._rows.append(row)

    def _reset(self, inode: int) -> None:
        if self._rows:
            self._generation += 1
        self._rows, self._offset, self._inode = [], 0, inode


class FollowedRun:
    """A run whose files are read as they grow. Raises DataError: there is no run at ``path``."""

    def __init__(self, path: Path) -> None:
        self.run = RunDir.open(path)
        self.samples = Tail(self.run.samples)
        self._metrics = Tail(self.run.metrics)

    def metrics(self) -> tuple[list[dict[str, Any]], int]:
        """The lines of metrics.jsonl that name their update, and the generation: see :meth:`Tail.rows`."""
        rows, generation = self._metrics.rows()
        return [row for row in rows if type(row.get("update")) is int], generation

    def summary(self, number: int) -> dict[str, Any]:
        """The run's entry in the list of runs. What cannot be read at the moment is None."""
        info, config = (self._read(name) for name in ("run.json", "config.json"))
        rows, _ = self.metrics()
        shown = described(self.run, info, config)
        reason = visible(shown["reason"]) if shown["reason"] else None
        live = {"id": number, "reason": reason, "updates": rows[-1]["update"] if rows else 0, "results": self._changed(info)}
        return shown | live | {"name": visible(self.run.path.absolute().name)}

    def data(self) -> dict[str, Any] | None:
        """The run beside its metrics and texts, see :func:`konomi.report.page.data_of`; None while a file cannot be read."""
        try:
            with written_by_konomi(self.run.path):
                return data_of(self.run, self.metrics()[0])
        except DataError:
            return None

    def _changed(self, info: dict[str, Any]) -> list[float]:
        """When the results were written, and how many times a guard has fired: the page asks for the data again after each."""
        files = (self.run.path / name for name in ("compare.json", "eval.json", "evaluations.jsonl"))
        guards = info.get("guards")
        fired = [len(guards)] if isinstance(guards, list) and guards else []
        return [*(file.stat().st_mtime for file in files if file.exists()), *fired]

    def _read(self, name: str) -> dict[str, Any]:
        try:
            content = self.run.read_json(name)
        except DataError:
            return {}
        return content if isinstance(content, dict) else {}
