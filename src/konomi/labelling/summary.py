"""What can be said of the rankings of a project: how far people agree, and which model they like better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from konomi.data.records import Prompt
from konomi.labelling.export import rankings, repeated
from konomi.labelling.records import Exported
from konomi.statistics.agreement import concordance, enough_comparisons, people, with_oneself
from konomi.statistics.bootstrap import LEVEL, VERSION
from konomi.statistics.bradley_terry import Counted, bradley_terry, contests, counted
from konomi.text import plural


def statistics(exported: Exported, seed: int = 0) -> dict[str, Any]:
    """The figures of a project in which people rank.

    Nothing is weighted or left out because of them.

    Returns:
        ``comparisons``, ``ties``, ``needed``, ``share``, ``agreement``: see :func:`agreement.enough_comparisons`;
        ``oneself``: see :func:`agreement.with_oneself`, of the tasks that came a second time;
        ``concordance``: see :func:`agreement.concordance`; ``people``: see :func:`agreement.people`;
        ``models``: see :func:`models`. Each may be None. Also ``version``, ``level``, ``seed``.
    """
    first, twice = rankings(exported), repeated(exported)
    return {
        "version": VERSION,
        "level": LEVEL,
        "seed": seed,
        **enough_comparisons(first, seed),
        "oneself": with_oneself(twice, seed),
        "concordance": concordance(first, seed),
        "people": people(first, twice, seed),
        "models": models(exported, counted(first), seed),
    }


def models(exported: Exported, counts: Sequence[Counted], seed: int = 0) -> dict[str, Any] | None:
    """Which of the models that wrote the candidates people like better.

    Returns:
        ``raw`` and ``equal_length``: :func:`ranking.bradley_terry` without and with the texts' length held constant. None
        where no candidates of two models were compared.
    """
    wrote: dict[tuple[str, str], str | None] = {}
    for item in exported.items.values():
        for each in item.candidates:
            model = each.source.get("model")
            key = Prompt(item.prompt).key, each.text
            named = None if model is None else str(model)
            # a text that two of them wrote is nobody's
            wrote[key] = named if wrote.get(key, named) == named else None
    played = contests(counts, lambda prompt, text: wrote.get((Prompt(prompt).key, text)))
    if not played:
        return None
    return {
        "raw": bradley_terry(played, seed=seed),
        "equal_length": bradley_terry(played, covariates=["length"], seed=seed),
    }


def lines(said: dict[str, Any]) -> list[str]:
    """The figures as lines for a terminal."""
    told = [
        f"{plural(said['comparisons'], 'comparison')} and {plural(said['ties'], 'tie')}; about {said['needed']:,} are a beginning"
    ]
    for what, found in (("people agree with one another", said["agreement"]), ("people agree with themselves", said["oneself"])):
        if found is not None:
            told.append(f"{what} on {_share(found['share'])} of {plural(found['couples'], 'pair')}; chance is 50 %")
    if said["models"] is not None:
        found = said["models"]["raw"]["items"]
        told.append("liked better, in logits: " + ", ".join(f"{each['item']} {_strength(each['strength'])}" for each in found))
    return told


def _share(found: dict[str, float]) -> str:
    value = f"{100 * found['value']:.0f} %"
    return value if found["low"] is None else f"{value} ({100 * found['low']:.0f} to {100 * found['high']:.0f})"


def _strength(found: dict[str, float]) -> str:
    value = f"{found['value']:+.2f}"
    return value if found["low"] is None else f"{value} ({found['low']:+.2f} to {found['high']:+.2f})"
