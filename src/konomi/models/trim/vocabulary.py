"""Choose the tokens of a trimmed vocabulary, and rewrite its ``tokenizer.json``. No torch here.

A text all of whose tokens are kept is tokenised as before:

- BPE joins, at each step, the neighbours whose merge is first in the list. Of each kept token its parts are kept too
  (``_Parts``), and with them every merge that a text of the wanted scripts needs.
- Unigram takes the best of all ways to cut a text; if that has kept tokens only, it is still the best of fewer.

Other text is written as bytes. A vocabulary without tokens for bytes keeps all tokens of one character instead, so that no text
becomes unknown.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from konomi.errors import ModelError
from konomi.models.trim.scripts import Belongs

RULES = 1  # of what is kept; part of the name of a trimmed model in the cache, so that it is made again under new rules
KEEP = 2048  # tokens of no wanted script that stay

_BYTE = re.compile("<0x[0-9A-F]{2}>")
# special tokens that were kept free and never seen in training
_SPARE = re.compile(r"[<\[]\|?(unused|reserved|reserved_special_token|reserved_token|SPECIAL)_?\d+\|?[>\]]")


@dataclass(frozen=True)
class Kept:
    """The old ids that stay, ascending: a token's new id is its index. ``groups``: how many each rule kept."""

    ids: list[int]
    groups: dict[str, int]


def choose(spec: Mapping[str, Any], scripts: Collection[str], keep: int, rows: int, needed: Collection[int], where: str) -> Kept:
    """Choose the tokens that stay.

    Args:
        spec: the content of ``tokenizer.json``.
        scripts: keys of ``SCRIPTS``; all their tokens stay.
        keep: how many of the commonest other tokens stay (in BPE the first merges, in Unigram the highest scores).
        rows: of the model's embedding; a token beyond it has none and goes.
        needed: ids that have to stay whatever they are.
        where: the model's name, for messages.

    Raises:
        ModelError: the tokenizer is of a kind that cannot be trimmed.
    """
    names = _names(spec, where)
    added = {token["id"]: token["content"] for token in spec["added_tokens"]}
    texts = _texts(spec, {token: i for token, i in names.items() if i not in added})
    falls_back = spec["model"].get("byte_fallback") and all(f"<0x{byte:02X}>" in names for byte in range(256))
    has_bytes = _is_byte_level(spec) or falls_back
    belongs = Belongs(tuple(scripts))

    ids = set(names.values())
    around = _ids_of_template(spec.get("post_processor")) | _unknown(spec, names)
    if beyond := [i for i in around if i >= rows]:
        raise ModelError(f"{where}: its tokenizer has the special id {beyond[0]}, but the model's embedding has {rows} rows only")
    special = {i for i, token in added.items() if not _SPARE.fullmatch(token)} | (ids & set(needed)) | around
    single = {i for i, text in texts.items() if len(text) == 1}
    characters = {i for i in single if not has_bytes or texts[i].isascii()}
    if _is_byte_level(spec):
        data = {names[symbol] for symbol in byte_symbols() if symbol in names}
    else:
        data = {i for token, i in names.items() if _BYTE.fullmatch(token)} if has_bytes else set()
    wanted = {i for i, text in texts.items() if belongs(text)} | characters

    ranked = _ranked(spec, texts, special | data | wanted)
    parts = _Parts(spec, names)
    others = set(itertools.islice((i for i in ranked if i < rows and parts.of(i)), keep))
    made_from = {part for i in others | wanted for part in parts.of(i)}
    groups = {"special": special, "bytes": data, "scripts": wanted, "others": others, "parts": made_from}
    kept: set[int] = set()
    counts = {}
    for name, group in groups.items():
        more = {i for i in group if i < rows} - kept
        counts[name] = len(more)
        kept |= more
    return Kept(sorted(kept), counts)


def rewrite(spec: Mapping[str, Any], kept: Kept) -> dict[str, Any]:
    """Return ``tokenizer.json`` with the kept tokens only, renumbered."""
    new = {old: i for i, old in enumerate(kept.ids)}
    model = dict(spec["model"])
    if model["type"] == "BPE":
        model["vocab"] = {token: new[i] for token, i in model["vocab"].items() if i in new}
        kept_names = model["vocab"]
        model["merges"] = [
            pair for pair in spec["model"]["merges"] if all(part in kept_names for part in (*_pair(pair), "".join(_pair(pair))))
        ]
    else:
        model["vocab"] = [entry for i, entry in enumerate(model["vocab"]) if i in new]
        model["unk_id"] = None if model["unk_id"] is None else new[model["unk_id"]]
    added = [{**token, "id": new[token["id"]]} for token in spec["added_tokens"] if token["id"] in new]
    padding = spec.get("padding")
    if padding is not None:
        padding = {**padding, "pad_id": new.get(padding["pad_id"], 0)}
    template = _renumbered(spec.get("post_processor"), new)
    return {**spec, "added_tokens": added, "post_processor": template, "padding": padding, "model": model}


def byte_symbols() -> list[str]:
    """Return the characters that stand for the bytes 0 to 255 in a byte-level vocabulary.

    >>> byte_symbols()[0x20], byte_symbols()[0x41]
    ('Ġ', 'A')
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    symbols = bytes_to_unicode()
    return [symbols[byte] for byte in range(256)]


def _names(spec: Mapping[str, Any], where: str) -> dict[str, int]:
    """Return every token with its id, added ones too."""
    model = spec["model"]
    if model["type"] == "BPE":
        if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
            raise ModelError(f"{where}: its BPE marks the insides or the ends of words; such vocabularies cannot be trimmed")
        names = dict(model["vocab"])
    elif model["type"] == "Unigram":
        names = {token: i for i, (token, _) in enumerate(model["vocab"])}
    else:
        raise ModelError(
            f"{where}: its tokenizer is of the kind {model['type']}; only BPE and Unigram vocabularies can be trimmed"
        )
    return names | {token["content"]: token["id"] for token in spec["added_tokens"]}


def _texts(spec: Mapping[str, Any], names: Mapping[str, int]) -> dict[int, str]:
    """Return the text of each token, without the tokens of single bytes; bytes of half characters as surrogates."""
    if not _is_byte_level(spec):
        return {i: token for token, i in names.items() if not _BYTE.fullmatch(token)}
    values = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    texts = {}
    for token, i in names.items():
        if all(symbol in values for symbol in token):
            texts[i] = bytes(values[symbol] for symbol in token).decode("utf-8", "surrogateescape")
    return texts


def _is_byte_level(spec: Mapping[str, Any]) -> bool:
    return any(part.get("type") == "ByteLevel" for part in _components(spec.get("decoder")))


def _components(part: Any) -> Iterable[dict[str, Any]]:
    """A component of the pipeline, or those of a sequence of them."""
    if part is not None:
        yield part
        for key in ("decoders", "processors"):
            for inner in part.get(key, []):
                yield from _components(inner)


def _ids_of_template(template: Any) -> set[int]:
    """Ids that the tokenizer puts around a text."""
    ids = set()
    for part in _components(template):
        for token in (part.get("special_tokens") or {}).values():
            ids |= set(token["ids"])
        ids |= {part[key][1] for key in ("sep", "cls") if key in part}
    return ids


def _renumbered(template: Any, new: Mapping[int, int]) -> Any:
    if template is None:
        return None
    template = dict(template)
    if "processors" in template:
        template["processors"] = [_renumbered(inner, new) for inner in template["processors"]]
    if template.get("special_tokens"):
        special = template["special_tokens"]
        template["special_tokens"] = {name: {**one, "ids": [new[i] for i in one["ids"]]} for name, one in special.items()}
    for key in ("sep", "cls"):
        if key in template:
            template[key] = [template[key][0], new[template[key][1]]]
    return template


def _unknown(spec: Mapping[str, Any], names: Mapping[str, int]) -> set[int]:
    """The token for what is unknown; of Unigram also the lowest score, from which it reckons the cost of the unknown."""
    model = spec["model"]
    if model["type"] == "BPE":
        return {names[model["unk_token"]]} if model.get("unk_token") in names else set()
    scores = [score for _, score in model["vocab"]]
    return {scores.index(min(scores))} | (set() if model["unk_id"] is None else {model["unk_id"]})


def _ranked(spec: Mapping[str, Any], texts: Mapping[int, str], without: Collection[int]) -> list[int]:
    """The other tokens, the commonest first."""
    left = [i for i in sorted(texts) if i not in without]
    if spec["model"]["type"] == "Unigram":
        left.sort(key=lambda i: -spec["model"]["vocab"][i][1])
    return left


def _pair(merge: str | list[str]) -> tuple[str, str]:
    first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
    return first, second


class _Parts:
    """The tokens that BPE merges, step by step, into a token."""

    def __init__(self, spec: Mapping[str, Any], names: Mapping[str, int]) -> None:
        self._names, self._tokens = names, {i: token for token, i in names.items()}
        model = spec["model"]
        self._bpe = model["type"] == "BPE"
        self._at_once = bool(model.get("ignore_merges"))  # a whole word that is a token is not put together
        self._rank = {_pair(merge): rank for rank, merge in enumerate(model["merges"])} if self._bpe else {}

    def of(self, i: int) -> set[int]:
        """Return the token itself and its parts; nothing if no text is ever given this token."""
        if not self._bpe:
            return {i}
        pieces = list(self._tokens[i])
        parts = set(pieces)
        while len(pieces) > 1:
            ranks = [self._rank.get(pair, len(self._rank)) for pair in itertools.pairwise(pieces)]
            first = min(range(len(ranks)), key=ranks.__getitem__)
            if ranks[first] == len(self._rank):
                return {i} if self._at_once else set()
            pieces[first : first + 2] = [pieces[first] + pieces[first + 1]]
            parts.add(pieces[first])
        return {self._names[piece] for piece in parts if piece in self._names} | {i}
