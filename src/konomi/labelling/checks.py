"""What a person may send: one check of an answer, with one code a mistake."""

from __future__ import annotations

import math
import re

from konomi.labelling.records import ANSWERS, COMMENT_LIMIT, FLAGS, REASON_LIMIT, SECONDS_LIMIT, Answer, Refused

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.I)


def checked(answer: Answer, keys: str) -> Answer:
    """``answer`` as it is stored: ranks as ``1 2 2 4``, texts that UTF-8 can hold.

    Args:
        keys: the keys of what was shown.

    Raises:
        Refused: something in it is not as :class:`Answer` says.
    """
    if answer.kind not in ANSWERS:
        raise Refused("bad_kind", f"kind {str(answer.kind)[:40]!r}: one of {', '.join(ANSWERS)} is needed")
    comment, reason = whole(answer.comment), whole(answer.reason or "").strip()
    for what, text, limit in (("comment", comment, COMMENT_LIMIT), ("reason", reason, REASON_LIMIT)):
        if len(text) > limit:
            raise Refused("too_long", f"the {what} has {len(text):,} characters; {limit:,} are allowed")
    if answer.kind == "skipped" and not reason:
        raise Refused("bad_reason", "a skipped task needs a reason")
    for key, flags in answer.flags.items():
        if key not in keys or len(key) != 1 or not set(flags) <= set(FLAGS):
            raise Refused("bad_flags", f"flags {flags} of {key!r}: one of {', '.join(FLAGS)} for one of {', '.join(keys)}")
    if answer.confidence not in (None, 1, 2, 3):
        raise Refused("bad_confidence", f"confidence {answer.confidence}: 1, 2 or 3 is needed, or none")
    if not math.isfinite(answer.seconds) or answer.seconds < 0:
        raise Refused("bad_seconds", f"seconds {answer.seconds}: a number from 0 is needed")
    return Answer(
        answer.id,
        answer.shown,
        answer.kind,
        _ranks(answer, keys),
        reason or None,
        {key: sorted(set(flags)) for key, flags in answer.flags.items() if flags},
        comment,
        answer.confidence,
        min(float(answer.seconds), SECONDS_LIMIT),
    )


def _ranks(answer: Answer, keys: str) -> dict[str, int]:
    needed: dict[str, list[set[str]]] = {"ranked": [set(keys)], "all_bad": [set(keys), set()], "skipped": [set()]}
    if set(answer.ranks) not in needed[answer.kind]:
        said = f"ranks for {', '.join(answer.ranks) or 'none'} of {', '.join(keys)}"
        wanted = {"ranked": "each needs one", "all_bad": "each needs one, or none has one", "skipped": "none may have one"}
        raise Refused("bad_ranks", f"{said}: {wanted[answer.kind]} when {answer.kind}")
    for rank in answer.ranks.values():
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= len(keys):
            raise Refused("bad_ranks", f"rank {rank!r}: whole numbers from 1, the best, to {len(keys)} are needed")
    ranks = list(answer.ranks.values())
    return {key: 1 + sum(other < rank for other in ranks) for key, rank in answer.ranks.items()}


def checked_id(id: str) -> str:
    """The id of an answer, in small letters. Raises Refused: it is not a UUID."""
    if not _UUID.fullmatch(id):
        raise Refused("bad_id", f"answer id {id[:40]!r}: a UUID is needed")
    return id.lower()


def whole(text: str) -> str:
    """``text`` with halves of characters (lone surrogates, which UTF-8 cannot hold) replaced by U+FFFD.

    >>> whole("a\\ud83d\\ude00b\\ud800") == "a\\U0001f600b\\ufffd"
    True
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
