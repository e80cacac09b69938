"""Tasks as they are imported: what is the same text, what language it is in, and whether it names the model it came from."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from konomi.data.records import Candidate, Prompt
from konomi.data.rows import checked_text
from konomi.errors import DataError
from konomi.files import plain
from konomi.labelling.records import KINDS, NewTask

MODELS = (
    *("ChatGPT", "GPT", "OpenAI", "Anthropic", "Google Bard", "DeepMind", "Mixtral", "Qwen", "Tongyi", "通义千问", "DeepSeek"),
    *("SmolLM", "Phi-3", "Phi-4", "ELYZA", "rinna", "Swallow-LM", "PLaMo", "calm2", "calm3", "CyberAgentLM", "StableLM"),
    *("Command R", "Falcon LLM", "Alpaca-LoRA"),
)
"""Names that give away a family of models wherever they stand."""
_WORDS = "|".join(("Claude", "Llama", "Gemini", "Gemma", "Grok", "Falcon", "Mistral", "Swallow", "Copilot", "Vicuna"))
"""Names of families that are also names of people, animals and stars, or words: what stands around them decides."""
_VERSION = re.compile(rf"(?<![A-Za-z0-9])({_WORDS})( ?v?\d|-[A-Za-z0-9])|\bby ({_WORDS})(?![A-Za-z]|(?-i: [A-Z]))", re.I)
_ALONE = re.compile(rf"(?<![A-Za-z0-9])({_WORDS})(?![A-Za-z])", re.I)
_OF_MODELS = re.compile(
    r"\bmodels?\b|\bassistant\b|(?<![A-Za-z])AI(?![A-Za-z])|\bI am\b|\bI['’]m\b|\bmy name is\b"
    r"|モデル|アシスタント|(私|わたし|僕|ぼく|俺)は|として",
    re.I,
)
_SENTENCE = re.compile(r"[.!?](?=\s)|[。！？\n]")
_CONFESSIONS = re.compile(
    r"\b(as|I am|I['’]m) an? (large )?((AI|artificial intelligence|language) )+(model|assistant)\b"
    r"|(言語モデル|(AI|人工知能)(の|・)?アシスタント)(として|です|である)|(?<![A-Za-z])AIとして",
    re.I,
)
_GENERIC = {"base", "after", "before", "tuned", "model", "models", "initial", "final", "test", "policy", "chat", "instruct"}
"""Names of directories that say nothing of a model."""
_UNSEEN = re.compile("[\u034f\ufe00-\ufe0f\U000e0100-\U000e01ef]")
"""Marks that change nothing: variation selectors, and the joiner of graphemes."""
_TAG = re.compile("[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")
_JAPANESE = re.compile("[\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]")


@dataclass(frozen=True)
class Made:
    """What is made of tasks that were handed in.

    Attributes:
        tasks: that go into the store.
        notes: what was left out, and why: one sentence each.
        names: all names of models that were looked for, to be looked for again in later tasks.
        unchanged: digests of the before/after texts that are the same text: there is nothing to compare.
    """

    tasks: list[Ready]
    notes: tuple[str, ...]
    names: tuple[str, ...]
    unchanged: tuple[str, ...]


@dataclass(frozen=True)
class Ready:
    """A task as it goes into the store; ``candidates`` are rows of text, language, whether it names a model, source."""

    digest: str
    prompt: str
    lang: str
    kind: str
    columns: str
    candidates: tuple[tuple[str, str, bool, str], ...]


def language_of(text: str) -> str:
    """``ja`` for a text with kana or Chinese characters in it, else ``en``.

    >>> language_of("今日の天気は"), language_of("The weather today")
    ('ja', 'en')
    """
    return "ja" if _JAPANESE.search(text) else "en"


def names_a_model(text: str, names: Iterable[str] = ()) -> bool:
    """Whether a text says which model wrote it, or at least that one did: by a name, or "as an AI language model".

    A family whose name is also a word (Claude, Llama, Gemini) counts with a version, or in a sentence that speaks of models,
    AI, or "I am".

    Args:
        text: a response.
        names: names that count besides those of well-known families.

    >>> names_a_model("私は ＧＰＴ-4 です。"), names_a_model("I am Claude."), names_a_model("Claude Monet was a painter.")
    (True, True, False)
    """
    # full-width letters, and characters that are not seen, hide a name from a program but not from people
    seen = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf" and not _UNSEEN.match(c))
    if _CONFESSIONS.search(seen) or _VERSION.search(seen):
        return True
    if any(_ALONE.search(each) and _OF_MODELS.search(each) for each in _SENTENCE.split(seen)):
        return True
    known = "|".join(re.escape(unicodedata.normalize("NFKC", name)) for name in (*MODELS, *names))
    # a version may follow (GPT4, gemma3), a letter may not; Japanese stands beside a name without a space
    return re.search(rf"(?<![A-Za-z0-9])({known})(?![A-Za-z])", seen, re.I) is not None


def model_names(models: Iterable[object]) -> tuple[str, ...]:
    """Names of models as a text could state them: ``google/gemma-3`` is also ``gemma-3``."""
    found: dict[str, None] = {}
    for model in dict.fromkeys(str(each) for each in models if each):
        for name in (model, re.split(r"[/\\:]", model.rstrip("/\\"))[-1]):
            if len(name) >= 4 and name.lower() not in _GENERIC:
                found[name] = None
    return tuple(found)


def ready(tasks: Sequence[NewTask], k_max: int, models: Iterable[object] = ()) -> Made:
    """Tasks as they go into the store, and what was left out of them.

    A text that is there twice is left out once: the same text never stands beside itself. A task of which fewer than two
    texts remain is left out.

    Args:
        tasks: what is handed in.
        k_max: candidates that a task may have.
        models: names of models besides those that the candidates' sources say.

    Raises:
        DataError: there is no task, or one is not what :class:`NewTask` says.
    """
    if not tasks:
        raise DataError("no tasks: there is nothing to label; konomi sample makes a file of candidates")
    names = model_names([*models, *(each.source.get("model") for task in tasks for each in task.candidates)])
    notes: list[str] = []
    found = [_ready(f"task {number}", task, k_max, names, notes) for number, task in enumerate(tasks, start=1)]
    kept = [each for each in found if each is not None]
    if not kept:
        raise DataError(f"no task is left: all {len(tasks)} have fewer than two different texts; draw others")
    unchanged = {
        _digest(Prompt(task.prompt).key, task.candidates[0].text)
        for task, each in zip(tasks, found, strict=True)
        if each is None and task.kind == "compare"
    }
    return Made(kept, tuple(notes), names, tuple(sorted(unchanged)))


def _ready(where: str, task: NewTask, k_max: int, names: Sequence[str], notes: list[str]) -> Ready | None:
    checked_text(where, "the prompt", task.prompt)
    if task.kind not in KINDS:
        raise DataError(f"{where}: kind {task.kind!r}; one of {', '.join(KINDS)} is needed")
    if task.lang is not None and not _TAG.fullmatch(task.lang):
        raise DataError(f"{where}: lang {task.lang!r}; a tag such as ja or en-GB is needed")
    if len(task.candidates) < 2:
        raise DataError(f"{where}: {len(task.candidates)} candidate; at least two are needed to compare: draw more, or remove it")
    places: dict[str, int] = {}
    kept: list[Candidate] = []
    for number, each in enumerate(task.candidates, start=1):
        text = checked_text(where, f"candidate {number}", each.text, blank=True)
        first = places.setdefault(_looks(text), number)
        if first == number:
            kept.append(each)
        else:
            notes.append(f"{where}: candidate {number} is the same text as candidate {first}; it was left out")
    if len(kept) > k_max:
        raise DataError(f"{where}: {len(kept)} candidates; up to {k_max} can be ranked at once: split it into several tasks")
    if len(kept) < 2:
        notes.append(f"{where}: all candidates are the same text; the task was left out")
        return None
    lang = task.lang or language_of(task.prompt)
    rows = []
    for each in kept:
        own = task.lang or (language_of(each.text) if any(map(str.isalpha, each.text)) else lang)
        rows.append((each.text, own, names_a_model(each.text, names), _json(where, "source", each.source)))
    digest = _digest(task.kind, Prompt(task.prompt).key, *sorted(each.text for each in kept))
    return Ready(digest, task.prompt, lang, task.kind, _json(where, "columns", task.columns), tuple(rows))


def _looks(text: str) -> str:
    """Texts of which this is equal cannot be told apart by reading them."""
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n")).strip()


def _digest(*parts: str) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _json(where: str, what: str, value: object) -> str:
    try:
        return json.dumps(plain(value), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {what} cannot be kept as JSON: {error}") from error
