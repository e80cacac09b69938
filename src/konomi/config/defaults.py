"""A job's settings as a TOML file with their defaults and what they mean: what `konomi config` prints."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from konomi.config.section import Section

WIDTH = 110
EXAMPLES: dict[str, Any] = {
    "batch_size": 64, "cache_gb": 4.0, "chat_template": "chat.jinja", "comparisons": 1000,
    "directory": "/shared/weights", "epoch_kl_stop": 0.05, "evaluate_every": 50, "evaluation": "held_out.jsonl", "every": 10,
    "evaluation_split": "validation", "head_learning_rate": 1e-4, "kl": 6.0, "kl_horizon": 256,
    "initial": "embedded:gemma3-270m",
    "limit": 1000, "micro_batch_size": 4, "micro_batch_tokens": 4096, "model": "gemma3-270m-ja", "name": "my-run",
    "patience": 3, "people": "people-ja", "port": 8000, "prompts": "embedded:openings-ja",
    "public_url": "https://rank.example.org", "query_tokens": [4, 12], "rank": 16, "rankings": "rankings.jsonl",
    "revision": "main", "samples": "candidates.jsonl", "subset": "default", "system": "Be brief.",
    "token_env": "REWARD_TOKEN", "top_layers": 2, "truth": "truth.jsonl", "url": "http://127.0.0.1:8000",
}  # fmt: skip
"""Settings that may be left out -> what they could be: TOML has no null, and a line that is uncommented has to parse."""


def commented(kind: type[Section], title: str) -> str:
    """Return a TOML file that holds every setting of ``kind`` at its default, each under a comment that explains it.

    The file parses, and equals an empty one: a setting that is required or not set is a comment.
    """
    return "\n".join([*_comment(title), *_table(kind, None, "")]) + "\n"


def _table(kind: type[Section], default: Section | None, path: str) -> Iterator[str]:
    """The settings of a section, then those of the sections in it, as TOML allows."""
    later: list[tuple[str, FieldInfo]] = []
    for name, field in kind.model_fields.items():
        if _section(field) or _is_table(field):
            later.append((name, field))
            continue
        yield ""
        yield from _comment(field.description or "")
        value = getattr(default, name) if default is not None else field.get_default(call_default_factory=True)
        if field.is_required() and default is None:
            yield f'# {name} = ""    # required'
        elif value is None:
            yield f"# {name} = {_toml(EXAMPLES[name])}    # not set; an example"
        else:
            yield f"{name} = {_toml(value)}"
    for name, field in later:
        full, section = f"{path}{name}", _section(field)
        yield ""
        if section and not field.is_required() and field.get_default() is None:
            yield from _comment(field.description or "")
            yield f"# [{full}]    # not set; see docs/config.md"
            continue
        if section is None:  # a table whose names the user chooses
            yield from _comment(field.description or "")
            yield f"# [{full}.NAME]    # one table each; see docs/config.md"
            continue
        yield from _comment(section.__doc__ or "")
        if len(kinds := _kinds(field)) > 1:
            names = ", ".join(json.dumps(get_args(each.model_fields["kind"].annotation)[0]) for each in kinds)
            yield from _comment(f"kind is one of {names}; each has its own settings, see docs/config.md")
        yield f"[{full}]"
        value = None if field.is_required() else field.get_default(call_default_factory=True)
        yield from _table(section, value, f"{full}.")


def _kinds(field: FieldInfo) -> list[type[Section]]:
    """The sections that a setting may be: one, or each of a tagged union."""
    members = [field.annotation]
    while unions := [each for each in members if get_origin(each) in (Union, UnionType, Annotated)]:
        members = [part for each in members for part in (get_args(each) if each in unions else (each,))]
    return [each for each in members if isinstance(each, type) and issubclass(each, Section)]


def _section(field: FieldInfo) -> type[Section] | None:
    kinds = _kinds(field)
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    return type(default) if isinstance(default, Section) else next(iter(kinds), None)


def _is_table(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is dict


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(" ".join(text.split()), WIDTH, break_on_hyphens=False)]


def _toml(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)
