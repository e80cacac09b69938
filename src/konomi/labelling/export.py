"""Export answers: files for ``konomi reward``, and one file with everything.

- rankings.jsonl: each person's ranking of each task; and each edit, as better than the text that it was made of.
- scores.jsonl: each response once: the mean over people of its normalised rank.
- edits.jsonl: each edit as an example for ``konomi sft``: a prompt with its completion, or a conversation.
- pairs.jsonl: each two responses that were ranked together, once: the label is the share of raters who prefer ``chosen``, a
  tie counting half for each; ``for``, ``against`` and ``ties`` count them.
- decisions.jsonl: the owner's decisions on tasks on which raters differ. With ``final`` they take the place of the raters'
  rankings of these tasks in the files above.
- answers.jsonl: all latest answers with everything that is known: sources, the order shown, flags, comments, repeats.
- other.jsonl: of these, what is in no ranking: ``all_bad``, ``skipped``, and repeats.
- manifest.json: names, hashes and counts.

Raters appear under pseudonyms. No answer is weighted or dropped because of its rater.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from konomi.data.formats import counts, encode_records, manifest_bytes
from konomi.data.messages import Answered
from konomi.data.parse import VERSION
from konomi.data.records import Pair, Ranking, Record
from konomi.errors import DataError
from konomi.files import json_line, write_atomic
from konomi.labelling.answers import NO_ANSWERS
from konomi.labelling.database import draft_of, look_up
from konomi.labelling.records import ANSWERS, Exported, Item, Judgement
from konomi.statistics.aggregation import PairVotes, count_votes, mean_scores, soft_pairs

SOURCE = "people"
"""The source that the records name."""
EDITS = "edits"
"""That of edits."""
DECISIONS = "decisions"
"""That of the owner's decisions."""


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
    texts = tuple(each.text for each in item.candidates)
    return Ranking(item.prompt, texts, own.ranks or (), own.rater, SOURCE, item.messages, own.strength)


def decided(exported: Exported) -> dict[int, Ranking]:
    """The owner's decisions as rankings, by task."""
    rankings_by_task = {}
    for each in exported.decisions:
        item = exported.items[each.task]
        texts = tuple(candidate.text for candidate in item.candidates)
        rankings_by_task[each.task] = Ranking(item.prompt, texts, each.ranks, each.person, DECISIONS, item.messages)
    return rankings_by_task


def edits(exported: Exported) -> list[Ranking]:
    """Each edited text as better than its original; of a repeated task only the first answer's."""
    improved = []
    for each in exported.judgements:
        item = exported.items[each.task]
        for candidate, edit in zip(item.candidates, each.edits, strict=False):
            if edit is not None and not each.repeat:
                improved.append(Ranking(item.prompt, (edit, candidate.text), (1, 2), each.rater, EDITS, item.messages))
    return improved


def examples(edits: Sequence[Ranking]) -> list[dict[str, Any]]:
    """Edits as rows that ``konomi sft`` reads: all conversations if one is."""
    if any(each.messages for each in edits):
        return [{"messages": Answered(each.prompt, each.responses[0], each.messages).conversation} for each in edits]
    return [{"prompt": each.prompt, "completion": each.responses[0]} for each in edits]


def counts_as_ranking(judgement: Judgement) -> bool:
    """Whether it is a ranking and the person's first answer to the task."""
    return judgement.kind == "ranked" and not judgement.repeat


def answer_row(item: Item, judgement: Judgement) -> dict[str, Any]:
    """One line of answers.jsonl."""
    edited = judgement.edits or (None,) * len(item.candidates)
    about = zip(item.candidates, item.langs, item.names_model, judgement.flags, edited, strict=True)
    return {
        "version": VERSION,
        "prompt": item.prompt,
        "candidates": [
            {**each.source, "text": each.text, "lang": lang, "names_model": named, "flags": list(flags)}
            | ({} if edit is None else {"edit": edit})
            for each, lang, named, flags, edit in about
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
        "strength": judgement.strength,
        "seconds": judgement.seconds,
        "at": judgement.at,
        "revision": judgement.revision,
        "columns": item.columns,
    }


def write_export(
    exported: Exported, out: Path, also: Mapping[str, Any] | None = None, *, final: bool = False, **about: Any
) -> dict[str, Any]:
    """Write all files into a new directory, in one step, and return the manifest.

    Args:
        out: the directory, which must not exist; only its owner can read it.
        also: further JSON files, by name.
        final: the owner's decisions take the place of the raters' rankings of the tasks that were decided.
        about: further entries of the manifest.

    Raises:
        DataError: nobody has answered anything yet; ``out`` exists.
        RunError: a file cannot be written. Nothing is left behind.
    """
    if not exported.judgements:
        raise DataError(NO_ANSWERS)
    check_out(out)
    entries, contents = {}, {name: manifest_bytes(content) for name, content in (also or {}).items()}
    for name, data, entry in _files(exported, final):
        contents[f"{name}.jsonl"], sha256 = data, hashlib.sha256(data).hexdigest()
        entries[name] = {"name": f"{name}.jsonl", "sha256": sha256, "version": VERSION, **entry}
    manifest = {"version": VERSION, "files": entries, "answers": _counts(exported.judgements), **about}
    with draft_of(out, out.absolute().parent) as draft:
        for name, data in {**contents, "manifest.json": manifest_bytes(manifest)}.items():
            write_atomic(draft / name, data)
            (draft / name).chmod(0o600)
        draft.rename(out.absolute())
    return manifest


def check_out(out: Path) -> None:
    """Check that ``out`` is free. Raises DataError: it exists; RunError: it cannot be looked up."""
    if look_up(out, lambda path: path.is_symlink() or path.exists()):
        raise DataError(f"{out}: already exists; give another name or remove it")


def _votes(pair: Pair, votes: PairVotes) -> dict[str, int]:
    sides = (votes.in_favour, votes.against) if pair.chosen == votes.a else (votes.against, votes.in_favour)
    return {"for": sides[0], "against": sides[1], "ties": votes.ties}


def _files(exported: Exported, final: bool) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """Name, content, and format and counts of each file; rankings, pairs and scores only if there are any."""
    ranked, edited, decisions = rankings(exported), edits(exported), decided(exported)
    if final:
        own = tuple(each for each in exported.judgements if each.task not in decisions)
        ranked = [*rankings(replace(exported, judgements=own)), *decisions.values()]
    votes = count_votes(ranked + edited)
    pairs, scores = soft_pairs(votes), mean_scores(ranked)
    records: dict[str, Sequence[Record]] = {"rankings": ranked + edited, "pairs": pairs, "scores": scores}
    for name, rows in records.items():
        if rows:
            data = encode_records(rows, f"{name}.jsonl")
            if name == "pairs":
                lines = zip(data.splitlines(), pairs, votes, strict=True)
                data = b"".join(json_line({**json.loads(line), **_votes(pair, of_pair)}) for line, pair, of_pair in lines)
            yield name, data, {"format": name, "counts": counts(rows)}
    if edited:
        data = b"".join(map(json_line, examples(edited)))
        yield "edits", data, {"format": "examples", "counts": {"records": len(edited)}}
    if decisions:
        data = encode_records([*decisions.values()], "decisions.jsonl")
        yield "decisions", data, {"format": "rankings", "counts": counts([*decisions.values()])}
    others = [each for each in exported.judgements if not counts_as_ranking(each)]
    for name, judgements in (("answers", exported.judgements), ("other", others)):
        data = b"".join(json_line(answer_row(exported.items[each.task], each)) for each in judgements)
        yield name, data, {"format": "answers", "counts": {"records": len(judgements)}}


def _counts(judgements: Sequence[Judgement]) -> dict[str, int]:
    """Raters, first answers of each kind, and repeats."""
    kinds = Counter("repeats" if each.repeat else each.kind for each in judgements)
    return {"raters": len({each.rater for each in judgements}), **{kind: kinds[kind] for kind in (*ANSWERS, "repeats")}}
