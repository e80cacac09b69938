"""Rankings and pairs as the comparisons that a reward model learns from, by prompt. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from konomi.data.records import Pair, Prompt, Ranking, is_held_out
from konomi.errors import DataError


@dataclass(frozen=True)
class Comparison:
    """One response against another.

    Attributes:
        better, worse: their places among the group's responses.
        label: probability that ``better`` is the better one, 0 to 1.
        margin: by how much at least its score should be higher.
        rater: who said so, or None.
    """

    better: int
    worse: int
    label: float = 1.0
    margin: float = 0.0
    rater: str | None = None


@dataclass(frozen=True)
class Group:
    """All that is known of the responses to one prompt: one element of a batch.

    Attributes:
        prompt: the text that the responses go on from.
        responses: no two the same.
        comparisons: may be empty: ties give none.
        ties: pairs of places that a rater called equal, and the rater.
        source: where the data came from, or None.
    """

    prompt: str
    responses: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    ties: tuple[tuple[int, int, str | None], ...] = ()
    source: str | None = None

    @property
    def key(self) -> str:
        """The prompt's key: what a split goes by."""
        return Prompt(self.prompt).key

    def words(self) -> Iterator[tuple[int, int, float, str | None]]:
        """All that was said of two responses: their places, the probability that the first is better (a tie: 0.5), the rater."""
        for c in self.comparisons:
            yield c.better, c.worse, c.label, c.rater
        for one, other, rater in self.ties:
            yield one, other, 0.5, rater


def groups(records: Iterable[Ranking | Pair]) -> list[Group]:
    """Bring together what is said of the same prompt (by key) and source, in the order of first appearance.

    A ranking of K responses without ties gives K(K-1)/2 comparisons; two of equal rank give none.

    >>> ranking = Ranking("p", ("a", "b", "c"), (1, 2, 2))
    >>> [(c.better, c.worse) for c in groups([ranking])[0].comparisons]
    [(0, 1), (0, 2)]
    """
    found: dict[tuple[str, str | None], list[Ranking | Pair]] = {}
    for record in records:
        found.setdefault((Prompt(record.prompt).key, record.source), []).append(record)
    return [_group(each) for each in found.values()]


def split_groups(groups: Sequence[Group], share: float) -> tuple[list[Group], list[Group]]:
    """Return (train, held out), by prompt: all that is said of one is on one side, from whatever source.

    As :func:`konomi.data.sources.split_held_out`, by the key alone: a prompt that PPO holds out with the same share is
    held out here too.

    Raises:
        DataError: a side has nothing in it; with share 0 nothing is held out, and that is right.
    """
    train: list[Group] = []
    held_out: list[Group] = []
    for group in groups:
        (held_out if is_held_out(group.key, share) else train).append(group)
    prompts = len({group.key for group in groups})
    if not train:
        raise DataError(
            f"data.held_out = {share}: the comparisons of all {prompts} prompts are held out and none is left for training; "
            "lower it or add prompts"
        )
    if share > 0 and not held_out:
        raise DataError(
            f"data.held_out = {share}: of {prompts} prompts none is held out, so that the model could not be judged; raise it "
            "or add prompts (0: do not judge)"
        )
    return train, held_out


def _group(records: Sequence[Ranking | Pair]) -> Group:
    places: dict[str, int] = {}
    comparisons: list[Comparison] = []
    ties: list[tuple[int, int, str | None]] = []
    for record in records:
        if isinstance(record, Pair):
            at = [places.setdefault(text, len(places)) for text in (record.chosen, record.rejected)]
            comparisons.append(Comparison(at[0], at[1], record.label, record.margin, record.rater))
            continue
        at = [places.setdefault(text, len(places)) for text in record.responses]
        for i in range(len(at)):
            for j in range(i + 1, len(at)):
                if record.ranks[i] == record.ranks[j]:
                    ties.append((at[i], at[j], record.rater))
                else:
                    first, second = (at[i], at[j]) if record.ranks[i] < record.ranks[j] else (at[j], at[i])
                    comparisons.append(Comparison(first, second, rater=record.rater))
    first_record = records[0]
    return Group(first_record.prompt, tuple(places), tuple(comparisons), tuple(ties), first_record.source)
