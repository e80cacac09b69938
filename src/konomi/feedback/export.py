"""What people said, as files that ``konomi reward`` reads, and as one that keeps everything.

- rankings.jsonl: each person's ranking of each task; scores.jsonl: the same as normalised ranks.
- pairs.jsonl: each two texts that were ranked together, once: the label is the share of raters who prefer ``chosen``,
  where a tie counts half for either.
- answers.jsonl: all latest answers with everything that is known: sources, the order shown, flags, comments, repeats.
- other.jsonl: of these, what is in no ranking: ``all_bad``, ``skipped``, and repeats.
- manifest.json: names, hashes and counts.

Whose answer it is stands there as a pseudonym. Nothing is weighted or dropped by whom it is from.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from konomi.data.convert import scores_of
from konomi.data.formats import manifest_bytes, write_manifest, write_records
from konomi.data.parse import VERSION, Record
from konomi.data.records import Pair, Prompt, Ranking
from konomi.errors import DataError, RunError
from konomi.feedback.records import Exported, Item, Judgement
from konomi.files import line, write_atomic

SOURCE = "people"
"""What the records name as their source: not a model that judged."""


def rankings(exported: Exported) -> list[Ranking]:
    """The rankings, by task and person; repeats and what is no ranking left out."""
    found = []
    for each in exported.judgements:
        if counts_as_ranking(each) and each.ranks is not None:
            item = exported.items[each.task]
            texts = tuple(candidate.text for candidate in item.candidates)
            found.append(Ranking(item.prompt, texts, each.ranks, each.rater, SOURCE))
    return found


def counts_as_ranking(judgement: Judgement) -> bool:
    """Whether it is a person's first word on a task, and a ranking."""
    return judgement.kind == "ranked" and not judgement.repeat


def pairs(rankings: Sequence[Ranking]) -> list[Pair]:
    """Each two texts that were ranked together, once, in the order of first appearance.

    ``chosen`` is the one that more raters prefer, of equal ones the first; ``rater`` is named where there is only one.

    >>> both = Ranking("p", ("a", "b"), (1, 2), "x"), Ranking("p", ("a", "b"), (1, 1), "y")
    >>> [(pair.chosen, pair.label) for pair in pairs(both)]
    [('a', 0.75)]
    """
    votes: dict[tuple[str, str, str], list[float]] = {}
    raters: dict[tuple[str, str, str], set[str | None]] = {}
    prompts: dict[str, str] = {}
    for ranking in rankings:
        key = Prompt(ranking.prompt).key
        prompts.setdefault(key, ranking.prompt)
        for i, first in enumerate(ranking.responses):
            for j in range(i + 1, len(ranking.responses)):
                second = ranking.responses[j]
                for_first = (1 + (ranking.ranks[i] < ranking.ranks[j]) - (ranking.ranks[i] > ranking.ranks[j])) / 2
                both = (key, first, second)
                if (key, second, first) in votes:
                    both, for_first = (key, second, first), 1 - for_first
                votes.setdefault(both, []).append(for_first)
                raters.setdefault(both, set()).add(ranking.rater)
    found = []
    for both, given in votes.items():
        key, first, second = both
        share = sum(given) / len(given)
        chosen, rejected = (first, second) if share >= 0.5 else (second, first)
        rater = next(iter(raters[both])) if len(raters[both]) == 1 else None
        found.append(Pair(prompts[key], chosen, rejected, max(share, 1 - share), rater=rater, source=SOURCE))
    return found


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


def write_export(exported: Exported, out: Path, **about: Any) -> dict[str, Any]:
    """Write all files into a new directory, in one step, and return the manifest.

    Args:
        exported: what the store gave.
        out: the directory; it must not exist yet. It is made for its owner alone.
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
        said = _write_files(exported, half_done, about)
        half_done.rename(out)
    except OSError as error:
        raise RunError(f"{out}: cannot be made: {error.strerror or error}") from error
    finally:
        shutil.rmtree(half_done, ignore_errors=True)
    return said


def _write_files(exported: Exported, out: Path, about: dict[str, Any]) -> dict[str, Any]:
    ranked = rankings(exported)
    scores = [score for each in ranked for score in scores_of(each)]
    records: dict[str, Sequence[Record]] = {"rankings": ranked, "pairs": pairs(ranked), "scores": scores}
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
