"""A pipeline's stage in which people rank: the page stays open until there are enough answers, which are then exported."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from konomi.config import LabelConfig, LabelJob
from konomi.errors import DataError
from konomi.files import content_sha256, local_path, utf8, write_atomic
from konomi.jobs.common import result_of, running
from konomi.labelling.answers import collect, comparisons
from konomi.labelling.assignments import complete, coverage
from konomi.labelling.database import Store
from konomi.labelling.export import write_export
from konomi.labelling.people import bring
from konomi.labelling.project import Project, is_project, open_project, provide, tasks_of
from konomi.labelling.queue import Settings
from konomi.labelling.records import LabelOptions
from konomi.labelling.summary import lines, statistics
from konomi.runs.observer import Observer
from konomi.text import plural
from konomi.web.network import check_host, public_of
from konomi.web.serve import PORT_FILE, serve


def run_label(job: LabelJob, root: str | Path, observer: Observer | None = None, *, parent: str | None = None) -> dict[str, Any]:
    """Let people rank all tasks of a file on a page; return what ``--json`` prints.

    The project lies outside the run directory and outlives it. The run directory gets ``said/``: what ``konomi export``
    writes. If there are enough answers already, no page opens.

    Raises:
        ConfigError: the page cannot be served at the address.
        DataError: the candidates or the project are not usable; nobody has ranked anything.
        RunError: the disk fails.
        KeyboardInterrupt: a signal stopped it; all answers are in the project.
    """
    observer, started, wanted = observer or Observer(), time.monotonic(), job.label
    check_host(wanted.host, wanted.allow_network)
    if wanted.public_url is not None:
        public_of(wanted.public_url)
    path, tasks = local_path(wanted.project), tasks_of(local_path(job.candidates))
    facts = {"candidates": f"{job.candidates}: {plural(len(tasks), 'task')}", "project": str(path)}
    digest = content_sha256(local_path(job.candidates))[:32]
    with running(job, root, observer, fields={"data_digest": digest}, parent=parent) as work:
        work.start(job.candidates, facts)
        fresh = not is_project(path)
        options = LabelOptions(strength=wanted.strength, edit=wanted.edit)
        project, imported = provide(path, tasks, Settings(overlap=wanted.overlap), options)
        for name, asked in options.model_dump().items():
            if asked and not getattr(project.label, name):
                there = f'{path} is there already and does not ask for it; set "{name}": true under "label" in its project.json'
                observer.warn(f"label.{name} = true: {there}")
        if wanted.people and is_project(local_path(wanted.people)):
            _let_in(project, open_project(local_path(wanted.people)), fresh)
        for note in imported.notes:
            observer.warn(note)
        _ask(project, wanted, observer)
        with project.store() as store:
            exported = collect(store)
        figures = statistics(exported)
        if not figures["comparisons"]:
            raise DataError(
                f"{path}: nobody has put two texts in order yet: there is nothing to learn from; let people go on: "
                f"konomi label {path}"
            )
        out = work.run.path / "said"
        answers = write_export(exported, out, {"statistics.json": figures}, project=project.title)["answers"]
        for line in lines(figures):
            observer.say(line)
        shares = {name: figures[name]["share"]["value"] for name in ("agreement", "oneself") if figures[name]}
        counts = {"comparisons": figures["comparisons"], "ties": figures["ties"], "raters": answers["raters"]}
        work.sinks.log(0, {f"people/{name}": float(value) for name, value in (counts | shares).items()})
        work.sinks.artifacts(out / "manifest.json", out / "statistics.json")
        return result_of(
            work, started, project=str(path), rankings=str(out / "rankings.jsonl"), comparisons=figures["comparisons"],
            answers=answers,
        )  # fmt: skip


def _let_in(project: Project, other: Project, fresh: bool) -> None:
    """Let the people of another project in; a fresh project gets its guidelines and its port too."""
    with other.store() as others, project.store() as store:
        bring(store, others)
    if fresh:
        write_atomic(project.path / "guidelines.md", utf8(other.guidelines()))
        if (port := other.path / PORT_FILE).is_file():
            write_atomic(project.path / PORT_FILE, port.read_bytes())


def _ask(project: Project, wanted: LabelConfig, observer: Observer) -> None:
    """Keep the page open until there are enough answers."""
    last = 0

    def enough(store: Store) -> bool:
        nonlocal last
        what, (done, target) = "answers", coverage(store)
        if wanted.comparisons is not None:
            what, done, target = "comparisons", comparisons(store) or 0, wanted.comparisons
        if done > last:
            last = done
            observer.progress(what, min(done, target), target)
        return done >= target or store.frozen or complete(store)

    with project.store() as store:
        if enough(store):
            return
    finished = serve(
        project, host=wanted.host, port=wanted.port, allow_network=wanted.allow_network, names=wanted.names, say=observer.say,
        public_url=wanted.public_url, invite=wanted.invite, until=lambda site: enough(site.opened()[1]),
    )  # fmt: skip
    if not finished:
        raise KeyboardInterrupt("stopped; all answers are saved")
