"""Read and write candidates, rankings, pairs and scores.

konomi writes JSONL, one record a line, each with its version. It also reads pairs as texts or chat messages (TRL's forms),
Anthropic-HH's dialogues, and the data sets in `layouts`, from JSONL, CSV, Parquet and the hub. A file with a wrong row is refused
(``file:line: what is wrong``). Rows that nothing can be learnt from (a blank prompt, equal answers) can be left out and counted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from konomi.data.layouts import LAYOUTS, RATINGS
from konomi.data.parse import COLUMNS, OPTIONAL, VERSION, csv_values, detect, parse, parse_all
from konomi.data.records import Candidate, Pair, Ranking, Record, Score, Task, groups
from konomi.data.row_files import LINE_LIMIT
from konomi.data.rows import Row, UnusableRow, near, repeating_rows, unused
from konomi.data.sources import Hub, open_rows
from konomi.errors import DataError
from konomi.files import file_sha256, json_line, plain, utf8, write_atomic


def read_tasks(path: str | Path, say: Callable[[str], None] | None = None) -> list[Task]:
    """Prompts with candidates to rank, from a file that ``konomi sample`` or :func:`write_records` wrote.

    Raises:
        DataError: the file cannot be read; a row is wrong; two rows are the same task.
    """
    return [record for record in read_records(path, "candidates", say=say)[0] if isinstance(record, Task)]


def read_comparisons(
    path: str | Path,
    format: str = "auto",
    *,
    hub: Hub | None = None,
    dropped: Counter[str] | None = None,
    say: Callable[[str], None] | None = None,
) -> list[Ranking | Pair]:
    """Rankings or pairs, from a file or a data set of the hub; the arguments are those of :func:`read_records`.

    Raises:
        DataError: the source or a row cannot be read; the rows are of another kind; all comparisons are ties.
    """
    records, format = read_records(path, format, hub=hub, dropped=dropped, say=say)
    return checked_comparisons(records, format, path)


def checked_comparisons(records: Sequence[Record], format: str, path: str | Path) -> list[Ranking | Pair]:
    """The comparisons among records of a format. Raises DataError as :func:`read_comparisons` does."""
    comparisons = [record for record in records if isinstance(record, (Ranking, Pair))]
    if not comparisons:
        scored = isinstance(records[0], Score)
        how = "konomi convert --to rankings makes rankings of them" if scored else "they have to be ranked first"
        raise DataError(f"{path}: {format}, not comparisons; {how}")
    if all(len(set(r.ranks)) == 1 if isinstance(r, Ranking) else r.label == 0.5 for r in comparisons):
        raise DataError(f"{path}: all {len(comparisons)} rows are ties: there is nothing to learn from; let some be ranked again")
    return comparisons


def read_scores(path: str | Path, *, hub: Hub | None = None, say: Callable[[str], None] | None = None) -> list[Score]:
    """Scored responses, from a file or hub data set with the columns prompt, response and score, or of thumbs (1 and -1).

    Raises:
        DataError: the source cannot be read; a row is wrong, or its score is not a finite number.
    """
    return [record for record in read_records(path, "scores", hub=hub, say=say)[0] if isinstance(record, Score)]


def read_records(
    path: str | Path,
    format: str = "auto",
    *,
    hub: Hub | None = None,
    dropped: Counter[str] | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[list[Record], str]:
    """All records of a source and the name of their format.

    Args:
        path: a .jsonl, .csv or .parquet file, or the name of a hub data set.
        format: ``candidates``, ``rankings``, ``pairs`` (texts or messages), ``hh``, ``scores``, the name of a layout, or
            ``auto``: by the columns of the first row.
        hub: which part of a hub data set.
        dropped: if given, unusable rows are left out and counted here by reason, instead of refused.
        say: gets the format and the columns that are not used.

    Raises:
        DataError: the source cannot be found or read, has no rows, or a row is wrong.
    """
    if format not in ("auto", *COLUMNS, *LAYOUTS):
        raise DataError(f"{format!r} is no format{near(format, COLUMNS)}; known: auto, {', '.join((*COLUMNS, *LAYOUTS))}")
    records: list[Record] = []
    unusable: list[UnusableRow] = []
    tasks: dict[tuple[str, frozenset[str]], str] = {}
    versioned = True
    for row in open_rows(str(path), hub=hub):
        if row.as_text:
            row = csv_values(row)
        if format == "auto":
            format = detect(row)
        elif format == "scores" and not records and "score" not in row.values:
            format = next((each for each in RATINGS if set(LAYOUTS[each].columns) <= row.values.keys()), format)
        if say is not None and not records and not unusable:
            say(f"{path}: read as {format}{unused(row.values, _columns_of(format))}")
        try:
            parsed = parse_all(row, format)
        except UnusableRow as error:
            unusable.append(error)
            continue
        _check_new(row.where, parsed, tasks)
        versioned = versioned and row.values.get("version") is not None
        records += parsed
    if unusable and dropped is None:
        first = unusable[0]
        way = f"`konomi convert --drop-bad` writes a file without such rows, of which {path} has {len(unusable):,}"
        raise UnusableRow(first.where, first.reason, f"{first.mend}. {way}")
    if dropped is not None:
        dropped.update(each.reason for each in unusable)
    if not records:
        left = f"; {sum(dropped.values())} were left out: {', '.join(dropped)}" if dropped else ""
        raise DataError(f"{path}: no rows in it; at least one is needed{left}")
    if not versioned:  # files written by konomi hold responses without their prompts
        pairs = [(record.prompt, record.responses) for record in records]
        for number in repeating_rows(pairs, lambda text: say and say(f"{path}: {text}")):
            records[number] = _without_prompt(records[number])
    return records, format


def _columns_of(format: str) -> tuple[str, ...]:
    layout = LAYOUTS.get(format)
    return layout.columns + layout.optional if layout else COLUMNS[format] + OPTIONAL[format]


def _check_new(where: str, records: Sequence[Record], tasks: dict[tuple[str, frozenset[str]], str]) -> None:
    """Refuse a task that is already in ``tasks`` (task -> where it was read), else add it."""
    for record in records:
        if isinstance(record, Task):
            first = tasks.setdefault((record.key, frozenset(record.responses)), where)
            if first != where:
                raise DataError(f"{where}: the same prompt and candidates as in {first}; remove one of them")


def _without_prompt(record: Record) -> Record:
    start = len(record.prompt)
    if isinstance(record, Task):
        return replace(record, candidates=tuple(Candidate(each.text[start:], each.source) for each in record.candidates))
    if isinstance(record, Ranking):
        return replace(record, responses=tuple(text[start:] for text in record.responses))
    if isinstance(record, Pair):
        return replace(record, chosen=record.chosen[start:], rejected=record.rejected[start:])
    return replace(record, response=record.response[start:])


def encode_records(records: Sequence[Record], where: str) -> bytes:
    """Records of one kind as JSONL.

    Raises:
        DataError: there are none, they are of several kinds, or :func:`read_records` would refuse one.
    """
    if not records:
        raise DataError(f"{where}: no records to write")
    format = format_of(records[0])
    lines = []
    for number, record in enumerate(records, start=1):
        place = f"{where}: record {number}"
        if format_of(record) != format:
            raise DataError(f"{place}: one of {format_of(record)} among {format}; a file holds one kind")
        values = {"version": VERSION, **asdict(record)}
        for name in ("messages", "strength"):
            if values.get(name) is None:
                values.pop(name, None)
        if isinstance(record, Task):
            values["candidates"] = [{**each.source, "text": each.text} for each in record.candidates]
            if record.messages:
                values["messages"] = values["columns"].pop("messages")
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        parse(Row(place, values), format)
        try:
            lines.append(json_line(values))
        except (TypeError, ValueError) as error:
            raise DataError(f"{place}: JSON cannot hold it: {error}") from error
        if len(lines[-1]) > LINE_LIMIT:
            raise DataError(f"{place}: {len(lines[-1]):,} bytes, more than the {LINE_LIMIT:,} that a line may have")
    return b"".join(lines)


def format_of(record: Record) -> str:
    """The format that a record is written in."""
    return {Task: "candidates", Ranking: "rankings", Pair: "pairs", Score: "scores"}[type(record)]


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Write records as :func:`encode_records` does, in one step. Raises RunError too, where the file cannot be written."""
    write_atomic(path, encode_records(records, str(path)))


def counts(records: Sequence[Record]) -> dict[str, int]:
    """How many records, different prompts and different responses; of rankings and pairs, how many comparisons and ties too."""
    responses = {(record.key, text) for record in records for text in record.responses}
    figures = {"records": len(records), "prompts": len({key for key, _ in responses}), "responses": len(responses)}
    if compared := [record for record in records if isinstance(record, (Ranking, Pair))]:
        decided = [label != 0.5 for group in groups(compared) for _, _, label, _ in group.judgements()]
        figures |= {"comparisons": sum(decided), "ties": len(decided) - sum(decided)}
    return figures


def manifest(files: Mapping[str, Path]) -> dict[str, Any]:
    """Name, SHA-256, version, format and counts of files of records. Raises DataError where one cannot be read."""
    described = {}
    for title, path in files.items():
        records, format = read_records(path)
        described[title] = description(path.name, file_sha256(path), format, records)
    return {"version": VERSION, "files": described}


def description(name: str, sha256: str | None, format: str, records: Sequence[Record]) -> dict[str, Any]:
    """The entry of one file in a manifest."""
    return {"name": name, "sha256": sha256, "version": VERSION, "format": format, "counts": counts(records)}


def manifest_bytes(content: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest."""
    return utf8(json.dumps(plain(content), ensure_ascii=False, allow_nan=False, indent=2) + "\n")
