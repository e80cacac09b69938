"""A model with a smaller vocabulary: the tokens of wanted scripts, and the commonest others.

Most of a small model is vocabulary, and most of an update's time goes into the head. Each kept token keeps its logit;
:mod:`konomi.models.trim.vocabulary` chooses the tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from konomi.errors import ModelError
from konomi.files import new_directory
from konomi.models.trim.vocabulary import KEEP, Kept, choose, rewrite

_ID_KEYS = ("token_id", "token_ids", "token_index")  # what settings end in that hold ids
_ID_LISTS = ("suppress_tokens", "begin_suppress_tokens")  # those here may lose some
_UNCHANGED = ("normalizer", "pre_tokenizer", "decoder")
_PROBES = 32


def check_out(out: Path) -> None:
    """Raise ModelError if ``out`` is a file or not empty, or there is no directory for it."""
    if out.is_dir() and any(out.iterdir()):
        raise ModelError(f"{out}: not empty; give --out a directory that does not exist yet")
    if out.exists() and not out.is_dir():
        raise ModelError(f"{out}: a file; give --out a directory that does not exist yet")
    if not out.absolute().parent.is_dir():
        raise ModelError(f"{out}: there is no directory {out.absolute().parent}; make it first")


def trim(
    model: Any, tokenizer: Any, scripts: Sequence[str], out: Path, *, keep: int = KEEP, name: str = "the model"
) -> dict[str, Any]:
    """Write ``model`` with a trimmed vocabulary to the directory ``out``; ``model`` itself is changed on the way.

    Args:
        tokenizer: BPE or Unigram, of the fast kind.
        scripts: names of ``SCRIPTS``; all their tokens stay.
        keep: how many of the commonest other tokens stay.
        name: the model's, for messages.

    Returns:
        Numbers of tokens and parameters before and after, how many tokens each rule kept, and the size of the weights.

    Raises:
        ModelError: the model or its tokenizer is of a kind that cannot be trimmed; ``out`` is not empty.
        RunError: ``out`` cannot be written.
    """
    check_out(out)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(f"{name}: its tokenizer has no tokenizer.json (it is of the slow kind), so it cannot be trimmed")
    spec = json.loads(backend.to_str())
    rows = _rows(model, name)
    needed = _ids_in_settings(model) | set(tokenizer.all_special_ids)
    kept = choose(spec, scripts, keep, rows, needed, name)
    parameters = _count(model)
    _cut(model, kept, name)
    with new_directory(out.absolute()) as draft:
        model.save_pretrained(draft, max_shard_size="1TB")
        _write_tokenizer(tokenizer, rewrite(spec, kept), kept, draft, name)
    return {
        "out": str(out),
        "scripts": list(scripts),
        "tokens": {"before": rows, "after": len(kept.ids), **kept.groups},
        "parameters": {"before": parameters, "after": _count(model)},
        "megabytes": round(sum(file.stat().st_size for file in out.glob("*.safetensors")) / 1e6, 1),
    }


def _count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _rows(model: Any, name: str) -> int:
    """Return how many tokens the model has rows for."""
    import torch

    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embedding, torch.nn.Embedding) or not isinstance(head, torch.nn.Linear):
        raise ModelError(f"{name}: its embedding or head is not an ordinary one (nn.Embedding, nn.Linear) and cannot be trimmed")
    return min(embedding.weight.shape[0], head.weight.shape[0])


def _cut(model: Any, kept: Kept, name: str) -> None:
    """Drop the rows of embedding and head that are not kept, and renumber the ids in the settings."""
    import torch

    def logits(ids: Any) -> Any:
        with torch.no_grad():
            return model(input_ids=ids, use_cache=False).logits

    def chosen(weight: Any) -> Any:
        return torch.nn.Parameter(weight.detach()[index].clone(), requires_grad=weight.requires_grad)

    index = torch.tensor(kept.ids)
    probes = index[:: max(1, len(kept.ids) // _PROBES)][None, :_PROBES]
    before = logits(probes)[..., index]
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is embedding.weight
    new = {old: i for i, old in enumerate(kept.ids)}
    embedding.weight = chosen(embedding.weight)
    embedding.num_embeddings = len(kept.ids)
    embedding.padding_idx = new.get(embedding.padding_idx)
    head.weight = embedding.weight if tied else chosen(head.weight)
    head.out_features = len(kept.ids)
    if head.bias is not None:
        head.bias = chosen(head.bias)
    _renumber(model, new)
    after = logits(torch.searchsorted(index, probes.contiguous()))
    if not torch.allclose(after, before, rtol=1e-4, atol=1e-5 * float(before.abs().max())):
        raise ModelError(f"{name}: other parts of it depend on the ids of tokens too, so its vocabulary cannot be trimmed")


def _settings(model: Any) -> list[Any]:
    """The model's configs: its own, those nested in it, that of generation."""
    configs = [model.config, getattr(model, "generation_config", None)]
    configs += [nested for nested in vars(model.config).values() if hasattr(nested, "to_dict")]
    return [config for config in configs if config is not None]


def _ids_in_settings(model: Any) -> set[int]:
    values = [value for config in _settings(model) for key, value in vars(config).items() if key.endswith(_ID_KEYS)]
    return {i for value in values for i in (value if isinstance(value, list) else [value]) if type(i) is int}


def _renumber(model: Any, new: Mapping[int, int]) -> None:
    for config in _settings(model):
        for key, value in list(vars(config).items()):
            if key == "vocab_size":
                setattr(config, key, len(new))
            elif key.endswith(_ID_KEYS) or key in _ID_LISTS:
                if isinstance(value, list):
                    setattr(config, key, [new[i] for i in value if i in new] or None)
                elif type(value) is int:
                    setattr(config, key, new.get(value))


def _write_tokenizer(tokenizer: Any, spec: dict[str, Any], kept: Kept, out: Path, name: str) -> None:
    """Write the tokenizer with ``spec`` in place of its own content, and check that transformers reads it back as written."""
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(out)
    for other in ("vocab.json", "vocab.txt", "merges.txt", "added_tokens.json", *(file.name for file in out.glob("*.model"))):
        (out / other).unlink(missing_ok=True)
    (out / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
    new = {old: i for i, old in enumerate(kept.ids)}
    file = out / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    if "added_tokens_decoder" in settings:
        decoder = settings["added_tokens_decoder"]
        settings["added_tokens_decoder"] = {str(new[int(i)]): token for i, token in decoder.items() if int(i) in new}
    file.write_text(json.dumps(settings, ensure_ascii=False, indent=2), encoding="utf-8")

    words = {token: new[i] for token, i in tokenizer.get_vocab().items() if i in new}
    again = AutoTokenizer.from_pretrained(out)
    read_back = json.loads(again.backend_tokenizer.to_str())
    if again.get_vocab() != words or any(read_back[key] != spec[key] for key in _UNCHANGED):
        raise ModelError(
            f"{name}: transformers reads the trimmed tokenizer ({type(again).__name__}) otherwise than it was written, so the "
            "vocabulary of this kind cannot be trimmed"
        )
