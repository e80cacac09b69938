"""What the pages of runs share: their frame, their words in every language, and what each says of its run.

Texts that a model or a data file wrote are never trusted: all are escaped, characters that reorder or hide text are
shown as their code, and a content security policy allows the page's own style and script by their hashes, nothing else.
The words are in templates/*.json, in every language at once; a switch on the page picks one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from konomi import files
from konomi.errors import DataError
from konomi.report import charts
from konomi.report.charts import Chart
from konomi.runs.directory import RunDir
from konomi.text import flat, number, percent, security_policy, signed, words

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"
LANGUAGES = ("en", "ja")
SAMPLE_UPDATES = 12
"""Updates whose texts are shown, spread over the run."""
Labels = dict[str, dict[str, str]]
"""language -> key -> words"""


def read_labels(*names: str) -> Labels:
    """The words of a page, from files of templates/; a later file's go before an earlier one's."""
    found: Labels = {}
    for name in names:
        for language, texts in json.loads((TEMPLATES / name).read_text(encoding="utf-8")).items():
            found.setdefault(language, {}).update(texts)
    return found


def translator(labels: Labels) -> Callable[..., Markup]:
    """From a key to its words in every language, of which the page's style shows one; ``name=`` fills in its ``{name}``."""
    from markupsafe import Markup, escape

    def t(key: str, **values: Any) -> Markup:
        span = Markup('<span class="{0}" lang="{0}">{1}</span>')
        texts = ((lang, escape(label[key])) for lang, label in labels.items())
        return Markup("").join(span.format(lang, text.format(**values) if values else text) for lang, text in texts)

    return t


def sentence(said: Mapping[str, str]) -> Markup:
    """A sentence that is there in every language, as :func:`translator` writes one."""
    from markupsafe import Markup

    span = Markup('<span class="{0}" lang="{0}">{1}</span>')
    return Markup("").join(span.format(lang, words(said[lang])) for lang in LANGUAGES if lang in said)


@dataclass
class Curves:
    """The charts of a page. A series that does not change is no chart: it is one of ``constant`` (title, name, value)."""

    drawn: list[dict[str, Any]] = field(default_factory=list)
    constant: list[tuple[str, str, str]] = field(default_factory=list)

    def add(
        self, key: str, chart: Chart | None, *, unit: str | None = None, about: str | None = None,
        x: tuple[str, str | None] = ("update", None), title: str | None = None, name: str = "",
    ) -> None:  # fmt: skip
        """Add a chart, if there is one. ``x``: label and unit of its horizontal axis."""
        if chart is not None:
            each = {"key": key, "title": title or key, "name": name, "unit": unit, "about": about, "chart": chart}
            self.drawn.append(each | {"x_key": x[0], "x_unit": x[1]})

    def over_updates(
        self, key: str, metrics: Sequence[Mapping[str, Any]], metric: str, *, spread: str | None = None,
        target: float | None = None, zero: bool = False, x: tuple[str, str | None] = ("update", None), **more: Any,
    ) -> None:  # fmt: skip
        """Add the curve of a metric over updates or epochs (``x``), from the lines that have it."""
        lines = [line for line in metrics if metric in line]
        values = [line[metric] for line in lines]
        known = [value for value in values if value is not None]
        widths = [line.get(spread) for line in lines] if spread else None
        if len(known) > 1 and len(set(known)) == 1:
            self.constant.append((more.get("title", key), more.get("name", ""), number(known[0])))
            return
        at = [line[x[0]] for line in lines]
        chart = charts.over_updates(at, values, spread=widths, target=target, zero=zero, whole=x[0] == "update")
        self.add(key, chart, x=x, **more)


def machine_line(machine: Mapping[str, Any]) -> str:
    """GPU, processor and system of a run, as its run.json has them.

    >>> machine_line({"gpu": "NVIDIA H100", "cpu": "Xeon", "cpus": 2, "platform": "Linux"})
    'NVIDIA H100, Xeon × 2, Linux'
    """
    processor = f"{machine['cpu']} × {machine.get('cpus', '')}" if "cpu" in machine else ""
    return ", ".join(str(part) for part in (machine.get("gpu"), processor, machine.get("platform")) if part)


def about(run: RunDir, title: tuple[str, Mapping[str, str]], rows: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """What every page says of its run.

    Args:
        run: the run.
        title: key of the page's title, and what is filled in.
        rows: label and value, what the run worked with.
    """
    info, config = run.info, run.config
    machine, versions = info.get("machine", {}), info.get("versions", {})
    facts = [
        *rows,
        ("seed", str(info.get("seed", ""))),
        ("precision", str(info.get("precision") or config.get("model", {}).get("precision", ""))),
        ("machine", machine_line(machine)),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("started", str(info.get("started", "")).replace("T", " ").replace("+00:00", " UTC")),
    ]
    return {
        "title": title,
        "name": info.get("name") or run.path.name,
        "status": info.get("status") if info.get("status") in ("finished", "failed", "stopped") else "running",
        "reason": info.get("reason"),
        "git": info.get("git"),
        "facts": [(key, value) for key, value in facts if value.strip()],
        "config": json.dumps(config, ensure_ascii=False, indent=2),
        "info": json.dumps(info, ensure_ascii=False, indent=2),
    }


def model_name(config: Mapping[str, Any]) -> str:
    """The model of a run and its revision."""
    model = config.get("model", {})
    return " ".join(str(model[key]) for key in ("name", "revision") if model.get(key))


def read_result(run: RunDir, name: str, version: int, again: str) -> dict[str, Any] | None:
    """The content of a versioned JSON file of the run; None if there is none.

    Raises:
        DataError: it is damaged or of another version; ``again`` says how to make it anew.
    """
    found = run.read_json(name)
    if found is not None and (not isinstance(found, dict) or found.get("version") != version):
        other = found.get("version") if isinstance(found, dict) else None
        raise DataError(f"{run.path / name}: format {other!r}, this konomi reads {version}; update konomi, or {again}")
    return found


def samples(run: RunDir) -> list[tuple[int, list[dict[str, Any]]]]:
    """Updates of the run, some of many, with their sample texts."""
    by_update: dict[int, list[dict[str, Any]]] = {}
    for line in run.read_samples():
        keys = ("prompt", "response", "score", "kl")
        by_update.setdefault(line["update"], []).append({key: line.get(key, "") for key in keys})
    updates = sorted(by_update)
    if len(updates) > SAMPLE_UPDATES:
        updates = [updates[round(i * (len(updates) - 1) / (SAMPLE_UPDATES - 1))] for i in range(SAMPLE_UPDATES)]
    return [(update, by_update[update]) for update in updates]


def write_page(run: RunDir, template: str, labels: Labels, content: Mapping[str, Any]) -> Path:
    """Fill in a template and write it as ``report.html`` of the run; return the path. Raises RunError if it cannot."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"words": words, "number": number, "percent": percent, "signed": signed, "flat": flat}
    key, values = content["title"]
    page = environment.get_template(template).render(
        labels=labels,
        t=translator(labels),
        heading=translator(labels)(key, **{name: words(value) for name, value in values.items()}),
        plain_title=flat(labels["en"][key].format(**values)),
        sentence=sentence,
        size=charts,
        style=Markup(style),
        script=Markup(script),
        policy=security_policy(style, script),
        **content,
    )
    files.write_atomic(run.report, page.encode("utf-8"))
    return run.report
