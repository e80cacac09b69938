"""Validate a rater's answer; each failure has an error code."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping

from konomi.data.records import MUCH_BETTER
from konomi.labelling.records import (
    ANSWERS,
    COMMENT_LIMIT,
    EDITS_LIMIT,
    FLAGS,
    REASON_LIMIT,
    SECONDS_LIMIT,
    Answer,
    LabelOptions,
    Refused,
)  # fmt: skip

_RANKS = {"ranked": "each needs one", "all_bad": "each needs one, or none has one", "skipped": "none may have one"}


def validated(answer: Answer, texts: Mapping[str, str], options: LabelOptions) -> Answer:
    """Validate an answer, and return it as it is stored, its ranks as ``1 2 2 4``.

    Args:
        texts: those that were shown, by key.
        options: of the project.

    Raises:
        Refused: a value is not as :class:`Answer` says, or the project does not ask for it.
    """
    if answer.kind not in ANSWERS:
        raise Refused("bad_kind", f"kind {answer.kind[:40]!r}: one of {', '.join(ANSWERS)} is needed")
    reason = (answer.reason or "").strip()
    for name, text, limit in (("comment", answer.comment, COMMENT_LIMIT), ("reason", reason, REASON_LIMIT)):
        if len(text) > limit:
            raise Refused("too_long", f"the {name} has {len(text):,} characters; {limit:,} are allowed")
    if answer.kind == "skipped" and not reason:
        raise Refused("bad_reason", "a skipped task needs a reason")
    for key, flags in answer.flags.items():
        if key not in texts or not set(flags) <= set(FLAGS):
            raise Refused("bad_flags", f"flags {flags} of {key!r}: one of {', '.join(FLAGS)} for one of {', '.join(texts)}")
    if answer.confidence not in (None, 1, 2, 3):
        raise Refused("bad_confidence", f"confidence {answer.confidence}: 1, 2 or 3 is needed, or none")
    if not math.isfinite(answer.seconds) or answer.seconds < 0:
        raise Refused("bad_seconds", f"seconds {answer.seconds}: a number from 0 is needed")
    changes = {
        "ranks": _ranks(answer, texts),
        "reason": reason or None,
        "flags": {key: sorted(set(flags)) for key, flags in answer.flags.items() if flags},
        "seconds": min(float(answer.seconds), SECONDS_LIMIT),
    }
    _check_strength(answer, options)
    _check_edits(answer, texts, options)
    return answer.model_copy(update=changes)


def as_seen(text: str) -> str:
    """Equal for texts that look the same to a reader."""
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n")).strip()


def _ranks(answer: Answer, texts: Mapping[str, str]) -> dict[str, int]:
    each, none = set(answer.ranks) == set(texts), not answer.ranks
    if not {"ranked": each, "all_bad": each or none, "skipped": none}[answer.kind]:
        given = f"ranks for {', '.join(answer.ranks) or 'none'} of {', '.join(texts)}"
        raise Refused("bad_ranks", f"{given}: {_RANKS[answer.kind]} when {answer.kind}")
    ranks = list(answer.ranks.values())
    for rank in ranks:
        if not 1 <= rank <= len(texts):
            raise Refused("bad_ranks", f"rank {rank}: whole numbers from 1, the best, to {len(texts)} are needed")
    return {key: 1 + sum(other < rank for other in ranks) for key, rank in answer.ranks.items()}


def _check_strength(answer: Answer, options: LabelOptions) -> None:
    strength, ranks = answer.strength, [*answer.ranks.values()]
    if strength is None:
        return
    if not options.strength:
        raise Refused("bad_strength", f"strength {strength}: this project does not ask for it")
    if strength not in range(1, MUCH_BETTER + 1):
        raise Refused("bad_strength", f"strength {strength}: 1 (slightly better), 2 or 3 (much better) is needed, or none")
    if answer.kind != "ranked" or len(ranks) != 2 or ranks[0] == ranks[1]:
        raise Refused("bad_strength", f"strength {strength}: it is of two ranked texts of which one is better")


def _check_edits(answer: Answer, texts: Mapping[str, str], options: LabelOptions) -> None:
    if not answer.edits:
        return
    if not options.edit:
        raise Refused("bad_edits", "edits: this project does not ask for them")
    if answer.kind == "skipped":
        raise Refused("bad_edits", "edits: none may be there when skipped")
    for key, text in answer.edits.items():
        if key not in texts:
            raise Refused("bad_edits", f"an edit of {key[:40]!r}: one of {', '.join(texts)} is needed")
        if as_seen(text) in ("", as_seen(texts[key])):
            what = "the text itself" if text.strip() else "blank"
            raise Refused("bad_edits", f"the edit of {key} is {what}: another text is needed")
    if (length := sum(map(len, answer.edits.values()))) > EDITS_LIMIT:
        raise Refused("too_long", f"the edits have {length:,} characters; {EDITS_LIMIT:,} are allowed")
