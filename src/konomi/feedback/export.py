"""What people said, as files that ``konomi reward`` reads, and as one that keeps everything.

- rankings.jsonl: each person's ranking of each task.
- scores.jsonl: each text once: the mean over people of its normalised rank.
- pairs.jsonl: each two texts that were ranked together, once: the label is the share of raters who prefer ``chosen``,
  where a tie counts half for either.
- answers.jsonl: all latest answers with everything that is known: sources, the order shown, flags, comments, repeats.
- other.jsonl: of these, what is in no ranking: ``all_bad``, ``skipped``, and repeats.
- manifest.json: names, hashes and counts.

Further JSON files of what was found in the answers may stand beside them.

Whose answer it is stands there as a pseudonym. Nothing is weighted or dropped by whom it is from.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from konomi.data.formats import manifest_bytes, write_manifest, write_records
from konomi.data.parse import VERSION, Record
from konomi.data.records import Ranking
from konomi.errors import DataError, RunError
from konomi.feedback.ranking import counted, mean_scores, soft_pairs
from konomi.feedback.records import Exported, Item, Judgement
from konomi.files import line, write_atomic

SOURCE = "people"
"""What the records name as their source: not a model that judged."""


def rankings(exported: Exported, *, repeats: bool = False) -> list[Ranking]:
    """The rankings, by task and person; what is no ranking left out, and repeats unless they are wanted."""
    found = []
    for each in exported.judgements:
        if each.kind == "ranked" and each.ranks is not None and (repeats or not each.repeat):
            item = exported.items[each.task]
            texts = tuple(candidate.text for candidate in item.candidates)
            found.append(Ranking(item.prompt, texts, each.ranks, each.rater, SOURCE))
    return found


def counts_as_ranking(judgement: Judgement) -> bool:
    """Whether it is a person's first word on a task, and a ranking."""
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
        exported: what the store gave.
        out: the directory; it must not exist yet. It is made for its owner alone.
        also: further JSON files, by their names.
        about: what else the manifest is to say.

    Raises:
        DataError: nobody has answered anything yet; ``out`` exists.
        RunError: a file cannot be written. Nothing is then there.
    """
    if not exported.judgements:
        raise DataError("nobody has answered anything yet: there is nothing to export")
    if out.exists() or out.is_symlink():
        raise DataError(f"{out}: is there already and is not overwritten; give another name or remove it")
    half_done = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(half_done, ignore_errors=True)
    try:
        half_done.mkdir(mode=0o700, parents=True)
        for name, content in (also or {}).items():
            write_atomic(half_done / name, manifest_bytes(content))
        said = _write_files(exported, half_done, about)
        half_done.rename(out)
    except OSError as error:
        raise RunError(f"{out}: cannot be made: {error.strerror or error}") from error
    finally:
        shutil.rmtree(half_done, ignore_errors=True)
    return said


def _write_files(exported: Exported, out: Path, about: dict[str, Any]) -> dict[str, Any]:
    ranked = rankings(exported)
    pairs, scores = soft_pairs(counted(ranked)), mean_scores(ranked)
    records: dict[str, Sequence[Record]] = {"rankings": ranked, "pairs": pairs, "scores": scores}
    paths = {name: out / f"{name}.jsonl" for name, found in records.items() if found}
    for name, path in paths.items():
        write_records(path, records[name])
    every = exported.judgements
    others = [each for each in every if not counts_as_ranking(each)]
    described = {}
    for name, judgements in (("answers", every), ("other", others)):
        data = b"".join(line(answer_row(exported.items[each.task], each)) for each in judgements)
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
    said = write_manifest(out / "manifest.json", paths, answers=answers, **about)
    said["files"] |= described
    write_atomic(out / "manifest.json", manifest_bytes(said))
    return said
