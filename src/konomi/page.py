"""What the pages of runs share: their frame, their words in every language, and what each says of its run.

Texts that a model or a data file wrote are never trusted: all are escaped, characters that reorder or hide text are
shown as their code, and a content security policy allows the page's own style and script by their hashes, nothing else.
The words are in templates/*.json, in every language at once; a switch on the page picks one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from konomi import charts, files
from konomi.errors import DataError
from konomi.markup import flat, number, percent, security_policy, signed, words
from konomi.runs import RunDir

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"
Labels = dict[str, dict[str, str]]
"""language -> key -> words"""


def read_labels(*names: str) -> Labels:
    """The words of a page, from files of templates/; a later file's go before an earlier one's."""
    found: Labels = {}
    for name in names:
        for language, texts in json.loads((TEMPLATES / name).read_text(encoding="utf-8")).items():
            found.setdefault(language, {}).update(texts)
    return found


def translator(labels: Labels) -> Callable[[str], Markup]:
    """From a key to its words in every language, of which the page's style shows one."""
    from markupsafe import Markup

    def t(key: str) -> Markup:
        span = Markup('<span class="{0}" lang="{0}">{1}</span>')
        return Markup("").join(span.format(lang, label[key]) for lang, label in labels.items())

    return t


def about(run: RunDir, rows: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """What every page says of its run. ``rows``: label and value, what the run worked with."""
    info, config = run.info, run.config
    machine, versions = info.get("machine", {}), info.get("versions", {})
    facts = [
        *rows,
        ("seed", str(info.get("seed", ""))),
        ("precision", str(info.get("precision") or config.get("model", {}).get("precision", ""))),
        ("machine", f"{machine.get('cpu', '')} × {machine.get('cpus', '')}, {machine.get('platform', '')}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("started", str(info.get("started", "")).replace("T", " ").replace("+00:00", " UTC")),
    ]
    return {
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
    page = environment.get_template(template).render(
        labels=labels,
        t=translator(labels),
        size=charts,
        style=Markup(style),
        script=Markup(script),
        policy=security_policy(style, script),
        **content,
    )
    files.write_atomic(run.report, page.encode("utf-8"))
    return run.report
