"""Convert between rankings, pairs, scores and tasks. Standard library only.

Information that the target form cannot represent (a soft label in a ranking, a tie in a pair) is refused or counted.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from konomi.data.formats import description, encode_records, format_of, manifest_bytes, read_records
from konomi.data.layouts import LAYOUTS
from konomi.data.messages import identity
from konomi.data.parse import VERSION
from konomi.data.records import Candidate, Pair, Ranking, Record, Score, Task, ranked_pairs
from konomi.data.sources import Hub
from konomi.errors import DataError, RunError
from konomi.files import file_sha256, local_path, write_atomic

KINDS = ("pairs", "rankings", "scores", "candidates")
FROM = ("auto", "pairs", "hh", "rankings", "scores", *LAYOUTS)
ALONE = "one response to the prompt"
_RANKS = {1.0: (1, 2), 0.5: (1, 1), 0.0: (2, 1)}


def convert_file(
    source: str,
    out: Path,
    to: str,
    format: str = "auto",
    *,
    drop_bad: bool = False,
    hub: Hub | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Convert a file or hub data set into a new .jsonl file, with ``OUT.manifest.json`` beside it, and return the manifest.

    Args:
        source: a file or hub data set of comparisons or scores.
        to: one of ``KINDS``.
        format: one of ``FROM``: what the source is.
        drop_bad: leave out and count unusable rows instead of refusing the file.
        hub: which part of a hub data set.
        say: gets the format and the columns that are not used.

    Raises:
        DataError: a format is unknown; ``out`` cannot be made; the source cannot be read or holds what ``to`` cannot; nothing is
            left.
        RunError: a file cannot be written; then neither is there.
    """
    for given, known, what in ((to, KINDS, "to"), (format, FROM, "from")):
        if given not in known:
            raise DataError(f"{given!r}: not a format to convert {what}; one of {', '.join(known)} is needed")
    beside = local_path(out.with_name(f"{out.name}.manifest.json"))
    _check_out(out, beside)
    dropped: Counter[str] = Counter()
    records, source_format = read_records(source, format, hub=hub, dropped=dropped if drop_bad else None, say=say)
    converted = convert(records, to, dropped)
    if not converted:
        left_out = ", ".join(f"{count} x {reason}" for reason, count in (+dropped).items())
        raise DataError(f"{source}: nothing is left to write as {to}: {left_out}")
    data = encode_records(converted, str(out))
    path = local_path(source)
    origin = description(source, file_sha256(path) if path.is_file() else None, source_format, records)
    if not path.is_file() and hub is not None:
        origin |= {"hub": asdict(hub)}
    written = description(out.name, hashlib.sha256(data).hexdigest(), to, converted)
    content = {"version": VERSION, "files": {to: written}, "sources": [origin], "dropped": dict(+dropped)}
    write_atomic(out, data)
    try:
        write_atomic(beside, manifest_bytes(content))
    except RunError:
        with contextlib.suppress(OSError):
            out.unlink()
        raise
    return content


def _check_out(out: Path, beside: Path) -> None:
    if out.suffix.lower() != ".jsonl":
        raise DataError(f"{out}: a name that ends in .jsonl is needed")
    for path in (out, beside):
        if path.exists() or path.is_symlink():
            raise DataError(f"{path}: already exists; give another name or remove it")
    if not out.absolute().parent.is_dir():
        raise DataError(f"{out}: there is no directory {out.absolute().parent}; make it first")


def convert(records: Sequence[Record], to: str, dropped: Counter[str]) -> list[Record]:
    """Convert records to another form. What it cannot represent (a tie among pairs) is counted in ``dropped``.

    Raises:
        DataError: unranked candidates are to become something else; a ranking cannot hold a pair's label or margin.
    """
    if format_of(records[0]) == to:
        return list(records)
    if to == "candidates":
        return [*_tasks(records, dropped)]
    rankings = _rankings(records, dropped)
    if to == "pairs":
        return [pair for ranking in rankings for pair in pairs_of(ranking, dropped)]
    if to == "scores":
        return [score for ranking in rankings for score in scores_of(ranking)]
    return [*rankings]


def pairs_of(ranking: Ranking, dropped: Counter[str]) -> list[Pair]:
    """All K(K-1)/2 pairs of a ranking of K responses, less the ties, which are counted as dropped."""
    ranked, texts = list(ranked_pairs(ranking.ranks)), ranking.responses
    dropped.update({"tie": sum(tied for _, _, tied in ranked)})
    return [
        Pair(
            ranking.prompt, texts[better], texts[worse], rater=ranking.rater, source=ranking.source, messages=ranking.messages,
            strength=ranking.strength,
        )
        for better, worse, tied in ranked if not tied
    ]  # fmt: skip


def scores_of(ranking: Ranking) -> list[Score]:
    """Each response with its normalised rank as its score."""
    both = zip(ranking.responses, normalised_ranks(ranking.ranks), strict=True)
    return [Score(ranking.prompt, text, score, ranking.rater, ranking.source, ranking.messages) for text, score in both]


def normalised_ranks(ranks: Sequence[int]) -> list[float]:
    """Ranks as evenly spaced scores from 1 (the best) to -1 (the worst), with mean 0; ties share the mean of their ranks.

    With m the mean rank, from 1, of K responses: 1 - 2 (m - 1) / (K - 1); 0 for K = 1.

    >>> normalised_ranks([1, 2, 2, 4])
    [1.0, 0.0, 0.0, -1.0]
    """
    if len(ranks) == 1:
        return [0.0]
    doubled = (2 * sum(other < rank for other in ranks) + ranks.count(rank) - 1 for rank in ranks)  # 2 (m - 1)
    return [1 - each / (len(ranks) - 1) for each in doubled]


def _rankings(records: Sequence[Record], dropped: Counter[str]) -> list[Ranking]:
    rankings: list[Ranking] = []
    scored: dict[tuple[str, str, str | None, str | None], list[Score]] = {}
    for number, record in enumerate(records, start=1):
        if isinstance(record, Ranking):
            rankings.append(record)
        elif isinstance(record, Pair):
            ranks = _RANKS.get(record.label)
            if ranks is None or record.margin:
                held = f"label {record.label:g} and margin {record.margin:g}"
                raise DataError(
                    f"pair {number}: {held}: ranks cannot hold them; keep pairs, or set label to 0, 0.5 or 1 and margin to 0"
                )
            about = record.rater, record.source, record.messages, record.strength
            rankings.append(Ranking(record.prompt, record.responses, ranks, *about))
        elif isinstance(record, Score):
            own = record.key, identity(record.messages), record.rater, record.source
            scored.setdefault(own, []).append(record)
        else:
            raise DataError("candidates that nobody has ranked yet cannot become anything else; rank them first")
    ranked = [_ranked(scores) for scores in scored.values()]
    dropped.update({ALONE: ranked.count(None)})
    return rankings + [each for each in ranked if each]


def _ranked(scores: Sequence[Score]) -> Ranking | None:
    """One rater's scores of the responses to a prompt as a ranking, by each response's mean score; None of one response."""
    by_text: dict[str, list[float]] = {}
    for each in scores:
        by_text.setdefault(each.response, []).append(each.score)
    means = [sum(each) / len(each) for each in by_text.values()]
    ranks = tuple(1 + sum(other > mean for other in means) for mean in means)
    first = scores[0]
    ranking = Ranking(first.prompt, tuple(by_text), ranks, first.rater, first.source, first.messages)
    return ranking if len(by_text) > 1 else None


def _tasks(records: Sequence[Record], dropped: Counter[str]) -> list[Task]:
    """The different responses to each prompt, to be ranked again, with their sources."""
    by_prompt: dict[tuple[str, str], tuple[Record, dict[str, Candidate]]] = {}
    for record in records:
        _, texts = by_prompt.setdefault((record.key, identity(record.messages)), (record, {}))
        source = None if isinstance(record, Task) else record.source
        for text in record.responses:
            texts.setdefault(text, Candidate(text, {} if source is None else {"source": source}))
    dropped.update({ALONE: sum(len(texts) < 2 for _, texts in by_prompt.values())})
    return [
        Task(first.prompt, tuple(texts.values()), {"messages": first.messages} if first.messages else {})
        for first, texts in by_prompt.values()
        if len(texts) > 1
    ]
