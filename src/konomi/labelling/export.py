"""Answers as files that ``konomi reward`` reads, and as one that keeps everything.

- rankings.jsonl: each person's ranking of each task.
- scores.jsonl: each response once: the mean over people of its normalised rank.
- pairs.jsonl: each two responses that were ranked together, once: the label is the share of raters who prefer ``chosen``, a
  tie counting half for each; ``for``, ``against`` and ``ties`` count them.
- answers.jsonl: all latest answers with everything that is known: sources, the order shown, flags, comments, repeats.
- other.jsonl: of these, what is in no ranking: ``all_bad``, ``skipped``, and repeats.
- manifest.json: names, hashes and counts.

Raters are pseudonyms. No answer is weighted or dropped because of its rater.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from konomi.data.formats import encode_records, manifest_bytes, write_manifest
from konomi.data.parse import VERSION
from konomi.data.records import Pair, Ranking, Record
from konomi.errors import DataError
from konomi.files import json_line, write_atomic
from konomi.labelling.answers import NO_ANSWERS
from konomi.labelling.database import draft_of, look_up
from konomi.labelling.records import Exported, Item, Judgement
from konomi.statistics.aggregation import Counted, counted, mean_scores, soft_pairs

SOURCE = "people"
"""The source that the records name."""


def rankings(exported: Exported, kind: str | None = None) -> list[Ranking]:
    """The rankings, by task and person, without repeats; with ``kind`` those of such tasks alone."""
    return [
        _ranking(exported.items[each.task], each)
        for each in exported.judgements
        if counts_as_ranking(each) and kind in (None, exported.items[each.task].kind)
    ]


def repeated(exported: Exported) -> list[tuple[Ranking, Ranking]]:
    """A person's first ranking of a task and its repeat, where both are rankings."""
    first, pairs = {}, []
    for each in exported.judgements:
        if each.kind == "ranked":
            ranking = _ranking(exported.items[each.task], each)
            if not each.repeat:
                first[each.task, each.rater] = ranking
            elif (each.task, each.rater) in first:
                pairs.append((first[each.task, each.rater], ranking))
    return pairs


def _ranking(item: Item, own: Judgement) -> Ranking:
    return Ranking(item.prompt, tuple(each.text for each in item.candidates), own.ranks or (), own.rater, SOURCE)


def counts_as_ranking(judgement: Judgement) -> bool:
    """Whether it is a person's first answer to a task, and a ranking."""
    return judgement.kind == "ranked" and not judgement.repeat


def answer_row(item: Item, judgement: Judgement) -> dict[str, Any]:
    """One line of answers.jsonl."""
    return {
        "version": VERSION,
        "prompt": item.prompt,
        "candidates": [
            {**each.source, "text": each.text, "lang": lang, "names_model": named, "flags": list(flags)}
            for each, lang, named, flags in zip(item.candidates, item.langs, item.names_model, judgement.flags, strict=True)
        ],
        "lang": item.lang,
        "task": item.kind,
        "rater": judgement.rater,
        "answer": judgement.kind,
        "repeat": judgement.repeat,
        "ranks": None if judgement.ranks is None else list(judgement.ranks),
        "order": list(judgement.order),
        "reason": judgement.reason,
        "comment": judgement.comment,
        "confidence": judgement.confidence,
        "seconds": judgement.seconds,
        "at": judgement.at,
        "revision": judgement.revision,
        "columns": item.columns,
    }


def write_export(exported: Exported, out: Path, also: Mapping[str, Any] | None = None, **about: Any) -> dict[str, Any]:
    """Write all files into a new directory, in one step, and return the manifest.

    Args:
        out: the directory, which must not exist; only its owner can read it.
        also: further JSON files, by name.
        about: further entries of the manifest.

    Raises:
        DataError: nobody has answered anything yet; ``out`` exists.
        RunError: a file cannot be written. Nothing is left behind.
    """
    if not exported.judgements:
        raise DataError(NO_ANSWERS)
    check_out(out)
    with draft_of(out, out.absolute().parent) as draft:
        for name, content in (also or {}).items():
            write_atomic(draft / name, manifest_bytes(content))
        manifest = _write_files(exported, draft, about)
        for file in draft.iterdir():
            file.chmod(0o600)
        draft.rename(out.absolute())
    return manifest


def check_out(out: Path) -> None:
    """Check that ``out`` is free. Raises DataError: it exists; RunError: it cannot be looked up."""
    if look_up(out, lambda path: path.is_symlink() or path.exists()):
        raise DataError(f"{out}: already exists; give another name or remove it")


def _votes(pair: Pair, counts: Counted) -> dict[str, int]:
    sides = (counts.in_favour, counts.against) if pair.chosen == counts.a else (counts.against, counts.in_favour)
    return {"for": sides[0], "against": sides[1], "ties": counts.ties}


def _write_files(exported: Exported, out: Path, about: dict[str, Any]) -> dict[str, Any]:
    ranked = rankings(exported)
    counts = counted(ranked)
    pairs, scores = soft_pairs(counts), mean_scores(ranked)
    records: dict[str, Sequence[Record]] = {"rankings": ranked, "pairs": pairs, "scores": scores}
    paths = {name: out / f"{name}.jsonl" for name, rows in records.items() if rows}
    for name, path in paths.items():
        data = encode_records(records[name], path.name)
        if name == "pairs":
            rows = zip(data.splitlines(), pairs, counts, strict=True)
            data = b"".join(json_line({**json.loads(row), **_votes(pair, c)}) for row, pair, c in rows)
        write_atomic(path, data)
    every = exported.judgements
    others = [each for each in every if not counts_as_ranking(each)]
    described = {}
    for name, judgements in (("answers", every), ("other", others)):
        data = b"".join(json_line(answer_row(exported.items[each.task], each)) for each in judgements)
        write_atomic(out / f"{name}.jsonl", data)
        described[name] = {
            "name": f"{name}.jsonl",
            "sha256": hashlib.sha256(data).hexdigest(),
            "version": VERSION,
            "format": "answers",
            "counts": {"records": len(judgements)},
        }
    answers = {
        "raters": len({each.rater for each in every}),
        **{kind: sum(each.kind == kind and not each.repeat for each in every) for kind in ("ranked", "all_bad", "skipped")},
        "repeats": sum(each.repeat for each in every),
    }
    manifest = write_manifest(out / "manifest.json", paths, answers=answers, **about)
    manifest["files"] |= described
    write_atomic(out / "manifest.json", manifest_bytes(manifest))
    return manifest
