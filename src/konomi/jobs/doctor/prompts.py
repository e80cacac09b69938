"""Prompts as texts: what is held out and learned all the same, repetitions, odd lengths, how often each is asked."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

from konomi.config import PPOJob
from konomi.data.records import Prompt
from konomi.jobs.doctor.lines import Line, broken, look
from konomi.report.advice import too_few
from konomi.text import percent, plural, shortened

GRAM = 5
"""Characters of the pieces that texts are compared by."""
LONG = 15
"""Letters and digits from which texts are compared by pieces: shorter ones share most of them by chance."""
NEAR = 0.8
"""Share of common pieces (Jaccard) from which two texts are nearly the same."""
MOST = 20_000
"""Prompts to train on that are compared by pieces."""
COMMON = 50
"""Texts with the same piece, from which it tells nothing: a template has it."""


def check_prompts(job: PPOJob, train: Sequence[Prompt], held_out: Sequence[Prompt]) -> list[Line]:
    """Lines on the prompts of a job, without those of the before/after that are shown only."""
    asked = sorted(held_out, key=lambda prompt: prompt.key)[: job.compare.prompts]
    lines = [_held_out(len(asked), len(held_out)), _leaks([p.text for p in train], [p.text for p in asked]), _again(train)]
    return [*lines, _passes(job, len(train))]


def _held_out(asked: int, all_: int) -> Line:
    seen = f"{asked} for the before/after" + (f", of {all_}" if all_ > asked else "")
    if few := too_few(asked):
        return look("held-out prompts", few, "give more prompts, or raise data.held_out or compare.prompts")
    return Line("held-out prompts", seen)


def _leaks(train: Sequence[str], held_out: Sequence[str]) -> Line:
    same, near = leaked(train, held_out)
    name, do = "leaks", "remove these prompts, or set data.held_out anew once they are gone: the before/after would flatter"
    if same:
        first = next(iter(same.items()))
        seen = f"{len(same)} of {plural(len(held_out), 'held-out prompt')} also learned, but for case, spaces and punctuation: "
        seen += f"{shortened(first[0])!r} and {shortened(first[1])!r}"
        return (broken if len(same) > 0.2 * len(held_out) else look)(name, seen, do)
    if len(near) > 0.05 * len(held_out):
        first = next(iter(near.items()))
        seen = f"{len(near)} of {plural(len(held_out), 'held-out prompt')} nearly the same as one that is learned: "
        return look(name, f"{seen}{shortened(first[0])!r} and {shortened(first[1])!r}", do)
    return Line(name, f"none of {plural(len(held_out), 'held-out prompt')} is learned too")


def leaked(train: Sequence[str], held_out: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Held-out texts, each with the one that is learned: the same but for case, width, spaces and punctuation; nearly the same,
    by their pieces of `GRAM` characters.

    >>> leaked(["Hello, world"], ["hello world!", "good bye"])
    ({'hello world!': 'Hello, world'}, {})
    """
    learned = {letters(text): text for text in train}
    same = {text: learned[letters(text)] for text in held_out if letters(text) in learned}
    pieces = {text: _pieces(text) for text in held_out if text not in same}
    places: dict[str, list[str]] = {}
    for text, own in pieces.items():
        for piece in own:
            places.setdefault(piece, []).append(text)
    near: dict[str, str] = {}
    for text in train[:MOST]:
        near |= {other: text for other in _near(_pieces(text), pieces, places) if other not in near}
    return same, near


def _near(own: set[str], pieces: Mapping[str, set[str]], places: Mapping[str, Sequence[str]]) -> list[str]:
    """The texts that share nearly all pieces with ``own``."""
    shared = Counter(text for piece in own if len(places.get(piece, ())) < COMMON for text in places.get(piece, ()))
    return [text for text, _ in shared.most_common(3) if len(own & pieces[text]) >= NEAR * len(own | pieces[text])]


def letters(text: str) -> str:
    """The letters and digits of a text, without case and width; the text itself if it has none.

    >>> letters("Ｈello, World!")
    'helloworld'
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(filter(str.isalnum, folded)) or folded.strip()


def _pieces(text: str) -> set[str]:
    own = letters(text)
    return {own[i : i + GRAM] for i in range(len(own) - GRAM + 1)} if len(own) >= LONG else set()


def _again(train: Sequence[Prompt]) -> Line:
    texts = [prompt.text for prompt in train if prompt.copy == 0]  # others differ in a column that a reward reads
    again = len(texts) - len(set(map(letters, texts)))
    if again > 0.05 * len(texts):
        seen = f"{again} of {plural(len(texts), 'prompt')} repeat another but for case, spaces and punctuation"
        return look("prompts to train on", seen, "remove them: what is asked more often counts more")
    return Line("prompts to train on", f"{plural(len(texts), 'different text')}")


def _passes(job: PPOJob, count: int) -> Line:
    passes = job.ppo.episodes / job.ppo.responses_per_prompt / count
    seen = f"about {passes:.1f} in the run" if passes >= 1 else f"{percent(passes)} of them are asked in the run"
    if passes > 50:
        return look("passes over the prompts", seen, "give more prompts, or lower ppo.episodes: the model learns them by heart")
    return Line("passes over the prompts", seen)


def check_queries(lengths: Sequence[int]) -> Line:
    """A line on the lengths of queries, in tokens, without the special ones in front."""
    middle, longest, short = median(lengths), max(lengths), sum(length <= 1 for length in lengths)
    seen = f"{min(lengths)} to {longest} tokens, half of them up to {middle:g}"
    if short > 0.2 * len(lengths):
        return look("queries", f"{short} of {len(lengths)} are of one token", "give longer prompts, or raise data.query_tokens")
    if longest > 200 and longest > 10 * middle:
        do = "one such prompt costs as much as all others of its batch: shorten it, or lower data.max_query_tokens"
        return look("queries", seen, do)
    return Line("queries", seen)
