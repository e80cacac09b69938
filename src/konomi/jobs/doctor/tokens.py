"""Tokens of a PPO job: what ends a text, what pads it, what the tokenizer cannot say and the model does not know."""

from __future__ import annotations

from collections.abc import Sequence

from konomi.config import PPOJob
from konomi.data.chat import turn_end
from konomi.jobs.doctor.lines import Line, broken, look
from konomi.models.load import Loaded, end_ids, vocabulary_size
from konomi.text import percent


def check_tokens(job: PPOJob, loaded: Loaded, queries: Sequence[Sequence[int]], chat: bool) -> list[Line]:
    """Lines on a model's tokens. ``queries``: token ids of prompts; ``chat``: these are conversations."""
    return [_ends(job, loaded, chat), _padding(loaded), _unknown(loaded, queries)]


def _ends(job: PPOJob, loaded: Loaded, chat: bool) -> Line:
    tokens, stop, name = loaded.tokens, job.rollout.stop, "end of text"
    named = {i for i in (*end_ids(loaded.model), loaded.tokenizer.eos_token_id) if i is not None}
    lost = ", ".join(map(str, sorted(named - tokens.eos_ids)))
    has = f"the model has embeddings for {vocabulary_size(loaded.model):,} tokens"
    if stop == "length":
        return Line(name, "none is waited for: responses have a drawn length")
    if not tokens.eos_ids:
        what = f"the end of text is token {lost}, but {has}" if lost else "neither tokenizer nor generation config names one"
        do = "use the tokenizer that the model was trained with" if lost else "name it in generation_config.json (eos_token_id)"
        return (broken if lost or stop == "eos" else look)(
            name, f"{what}: no response ends by itself", f'{do}, or set rollout.stop = "length"'
        )
    if lost:
        return look(name, f"{tokens.stops()}; token {lost} is named too, but {has}", "mend eos_token_id of its generation config")
    if chat and turn_end(loaded.tokenizer) is None:
        do = "see where its answers end, and name that token in generation_config.json (eos_token_id)"
        return look(name, f"{tokens.stops()}; the chat template writes no token of its own behind an answer", do)
    return Line(name, tokens.stops())


def _padding(loaded: Loaded) -> Line:
    pad, tokens = loaded.tokenizer.pad_token_id, loaded.tokens
    if pad is None:
        return Line("padding", "no token of its own; masks come from lengths")
    if pad >= vocabulary_size(loaded.model):
        do = "resize_token_embeddings and save the model, so that other programs can use what is trained"
        return look("padding", f"token {pad} has no embedding; konomi pads with {tokens.pad_id}", do)
    same = "the end of text, which is learned all the same: masks come from lengths"
    return Line("padding", same if pad in tokens.eos_ids else str(loaded.tokenizer.convert_ids_to_tokens(pad)))


def _unknown(loaded: Loaded, queries: Sequence[Sequence[int]]) -> Line:
    tokenizer, size = loaded.tokenizer, vocabulary_size(loaded.model)
    special = set(tokenizer.all_special_ids)
    extra = [i for i in tokenizer.get_vocab().values() if i >= size and i not in special] if len(tokenizer) > size else []
    unknown, name = tokenizer.unk_token_id, "tokens of prompts"
    share = sum(unknown in query for query in queries) / len(queries) if unknown is not None else 0.0
    if share > 0:
        seen = f"{percent(share)} of the prompts have characters that the tokenizer does not know ({tokenizer.unk_token})"
        return (broken if share > 0.5 else look)(name, seen, "remove these prompts, or use a model that knows their script")
    if extra:
        seen = f"all known; {len(extra)} other tokens of the tokenizer have no embedding, and a text with one would be refused"
        return look(name, seen, "use the tokenizer that the model was trained with")
    return Line(name, "all known")
