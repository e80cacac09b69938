"""Statistics of a ranking project: agreement of the raters, and the model they prefer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from konomi.data.records import Prompt
from konomi.labelling.export import rankings, repeated
from konomi.labelling.records import Exported
from konomi.statistics.aggregation import PairVotes, count_votes
from konomi.statistics.agreement import enough_comparisons, intra_rater, people
from konomi.statistics.bootstrap import header
from konomi.statistics.bradley_terry import bradley_terry, contests
from konomi.statistics.concordance import concordance
from konomi.text import interval_words, plural


def statistics(exported: Exported, seed: int = 0) -> dict[str, Any]:
    """All figures. No answer is weighted or left out because of them.

    Returns:
        ``comparisons``, ``ties``, ``needed``, ``share``, ``agreement``: see :func:`enough_comparisons`; ``oneself``: see
        :func:`intra_rater`; ``concordance``, ``people``, ``models``: see the functions of these names. Each may be None.
        Also ``version``, ``level``, ``seed``.
    """
    first, repeats = rankings(exported), repeated(exported)
    return {
        **header(seed),
        **enough_comparisons(first),
        "oneself": intra_rater(repeats),
        "concordance": concordance(first, seed),
        "people": people(first, repeats),
        "models": models(exported, count_votes(first), seed),
    }


def models(exported: Exported, counts: Sequence[PairVotes], seed: int = 0) -> dict[str, Any] | None:
    """The strengths of the models that wrote the candidates.

    Returns:
        ``raw`` and ``equal_length``: :func:`bradley_terry` without and with the length as covariate. None where no
        candidates of two models were compared.
    """
    wrote: dict[tuple[str, str], str | None] = {}
    for item in exported.items.values():
        for each in item.candidates:
            model = each.source.get("model")
            key = Prompt(item.prompt).key, each.text
            named = None if model is None else str(model)
            # a text that two models wrote counts for neither
            wrote[key] = named if wrote.get(key, named) == named else None
    played = contests(counts, lambda prompt, text: wrote.get((Prompt(prompt).key, text)))
    if not played:
        return None
    return {
        "raw": bradley_terry(played, seed=seed),
        "equal_length": bradley_terry(played, covariates=["length"], seed=seed),
    }


FEWEST_COMPARISONS = 20
"""Below this count the strengths of models are not printed."""


def lines(figures: dict[str, Any]) -> list[str]:
    """The figures as lines for a terminal."""
    counts = f"{plural(figures['comparisons'], 'comparison')} and {plural(figures['ties'], 'tie')}"
    text = [f"{counts}; about {figures['needed']:,} are a beginning"]
    for who, name in (("one another", "agreement"), ("themselves", "oneself")):
        if (own := figures[name]) is not None:
            share, pairs = _ends(own["share"], lambda end: f"{100 * end:.0f}", " %"), plural(own["couples"], "pair")
            text.append(f"people agree with {who} on {share} of {pairs}; chance is 50 %")
    if figures["models"] is not None and figures["comparisons"] >= FEWEST_COMPARISONS:
        items = figures["models"]["raw"]["items"]
        text.append(
            "liked better (Bradley-Terry strength in logits, 0 is the mean; 95 %): "
            + ", ".join(f"{i['item']} {_ends(i['strength'], '{:+.2f}'.format)}" for i in items)
        )
    return text


def _ends(interval: dict[str, float], end: Callable[[float], str], unit: str = "") -> str:
    return f"{end(interval['value'])}{unit}{interval_words(interval, end, ' ({low} to {high})', '')}"
