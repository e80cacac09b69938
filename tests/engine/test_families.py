"""Every causal family that transformers knows: it works, and exactly, or it is refused in words. Nothing else is raised.

``KONOMI_WRITE=1 pytest tests/engine/test_families.py`` writes what this finds to `konomi.engine.families` and docs/families.md.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from families import CANNOT_BE_TINY, kinds, tiny_family
from konomi.config import ModelConfig, RolloutConfig
from konomi.data.tokens import Tokens
from konomi.engine import families, packed
from konomi.engine.sampler import generate, make_draws
from konomi.errors import ConfigError, ModelError
from konomi.models.load import load_causal_lm
from konomi.models.policy import Policy
from tiny import save_tiny, tiny_tokenizer
from tiny_run import alone, ragged_queries, taken, tiny_trainer

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = RolloutConfig(response_tokens=(1, 9))
TRIED = [kind for kind in kinds() if kind not in CANNOT_BE_TINY]
NAMES = [("rollout", i) for i in range(4)]
REFUSED = {
    "not causal": "not a causal language model as it is saved: a token's output changes with the tokens after it",
    "not a causal language model": "a part of a model for images or speech",
    "between trunk and head": "scales or shifts its hidden states or logits in a way that konomi does not know",
    "with the padding": "changes what it makes of a token with the padding beside it",
    "its code fails": "keeps its memory of earlier tokens in a way of its own",
    "what it sees": "attends to other tokens in decoding than in training, beyond a window",
    "its model cannot be read": "needs more than a text",
}
"""What the page says of a refusal, by words of the message."""


Found = Callable[[str], str]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    """How a family fares: "packed", "padded" or a refusal. Each is tried once."""
    import transformers

    tokenizer = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(tokenizer)

    @cache
    def of(kind: str) -> str:
        try:
            return outcome(kind, Path(shutil.copytree(tokenizer, tmp_path_factory.mktemp(kind), dirs_exist_ok=True)))
        except (ModelError, ConfigError) as error:
            return str(error)

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    yield of
    transformers.utils.logging.enable_progress_bar()
    transformers.utils.logging.set_verbosity_warning()


def outcome(kind: str, directory: Path) -> str:
    """Load, train, and hold sampler and trainer against the model alone; how it ran."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own, of odd sizes
        tiny_family(kind).save_pretrained(directory)
        lm = load_causal_lm(ModelConfig(name=str(directory))).model
    trainer = tiny_trainer(model=lm, episodes=4, batch_size=4, mini_batch_size=4, baseline_samples=2, epochs=1)
    metrics = trainer.step().metrics
    assert metrics["ppo/policy/sampler_gap"] < 1e-3, metrics["ppo/policy/sampler_gap"]
    layer = trunk_below_the_top(lm)
    draws, tokens = make_draws(SETTINGS, 0, NAMES), Tokens(tiny_tokenizer())
    drawn = generate(lm, tokens, ragged_queries(4), draws, SETTINGS, trunk_layer=layer)
    found = {"sampler": drawn.logprobs}
    with torch.no_grad():
        found["trainer"] = trainer.policy(drawn.rollout).logprobs
        if layer:
            found["trainer with a kept trunk"] = trainer.policy(drawn.rollout, 1.0, drawn.trunk).logprobs
        wanted = taken(alone(lm, drawn.rollout), drawn.rollout)
    for name, logprobs in found.items():
        gap = max(float((row[: len(own)] - own).abs().max()) for row, own in zip(logprobs, wanted, strict=True))
        assert gap < 1e-3, f"{name}: log-probabilities are off by {gap:.2g}"
    return "packed" if packed.packs(lm) else "padded"


def trunk_below_the_top(lm: Any) -> int | None:
    """``model.top_layers``: only what is above the trunk is trained; the layer up to which it is kept, if it can be."""
    try:
        layer = Policy(lm, top_layers=1).trunk_layer
    except ModelError as error:
        assert "model.top_layers cannot be used" in str(error)
        return None
    assert 0 < sum(p.numel() for p in lm.parameters() if p.requires_grad) < sum(p.numel() for p in lm.parameters())
    return layer


def page(outcomes: dict[str, str]) -> str:
    """docs/families.md."""
    import transformers

    lines = ["# Families of models", "", "Written by a test, which makes a tiny model of every causal family that transformers "]
    lines[-1] += f"{transformers.__version__} knows, loads it, samples from it and trains it. A family works if sampler and "
    lines[-1] += "trainer give the log-probabilities of each text alone; else it is refused before anything is drawn. The names "
    lines[-1] += "are those of `model_type` in a model's `config.json`."
    for title, how in (("Work without padding", "packed"), ("Work with padding, somewhat slower", "padded")):
        lines += ["", f"## {title}", "", ", ".join(f"`{kind}`" for kind, said in sorted(outcomes.items()) if said == how)]
    lines += ["", "## Are refused", ""]
    for words, reason in REFUSED.items():
        of_it = [f"`{kind}`" for kind, said in sorted(outcomes.items()) if reason_of(said) == words]
        lines += [f"- {reason}: {', '.join(of_it)}"] if of_it else []
    left_out = ", ".join(f"`{kind}`" for kind in sorted(CANNOT_BE_TINY))
    lines += ["", f"Not tried, because no tiny one can be made of it: {left_out}."]
    return "\n".join(lines) + "\n"


def reason_of(said: str) -> str:
    return next((words for words in REFUSED if words in said), "")


@pytest.mark.parametrize("kind", TRIED)
def test_every_family_works_or_is_refused_in_words(kind: str, found: Found) -> None:
    said = found(kind)
    assert said in ("packed", "padded") or reason_of(said), said


def test_the_lists_are_those_that_were_found(found: Found) -> None:
    import transformers

    assert len(TRIED) > 150
    outcomes = {kind: found(kind) for kind in TRIED}
    refused = {kind for kind, said in outcomes.items() if said not in ("packed", "padded")}
    assert {"mpt", "mamba", "llama4_text", "gemma4_text", "qwen3_5_text", "qwen3_next", "lfm2", "opt"}.isdisjoint(refused)
    if not transformers.__version__.startswith("5.23."):
        pytest.skip("the lists are of transformers 5.23")
    lists = {how: [kind for kind, said in sorted(outcomes.items()) if said == how] for how in ("packed", "padded")}
    source, document = Path(families.__file__), ROOT / "docs" / "families.md"
    if os.environ.get("KONOMI_WRITE"):
        assert "PYTEST_XDIST_WORKER" not in os.environ, "KONOMI_WRITE=1 is for one process: leave -n out"
        text = source.read_text(encoding="utf-8")
        for how, names in lists.items():
            text = re.sub(rf'({how.upper()} = """\n).*?(""")', lambda m, n=names: m[1] + wrapped(n) + m[2], text, flags=re.S)
        source.write_text(text, encoding="utf-8")
        document.write_text(page(outcomes), encoding="utf-8")
        return
    assert lists == {"packed": families.PACKED, "padded": families.PADDED}, "run this file once with KONOMI_WRITE=1"
    assert document.read_text(encoding="utf-8") == page(outcomes), "run this file once with KONOMI_WRITE=1"


def wrapped(names: list[str]) -> str:
    import textwrap

    return textwrap.fill(" ".join(names), 120, break_on_hyphens=False) + "\n"


def test_a_message_counts_the_families_and_names_the_large_ones(tmp_path: Path) -> None:
    said = families.families_that_work()
    assert said.startswith(f"{len(families.PACKED) + len(families.PADDED)} families work")
    assert all(name in said for name in ("gemma", "gpt", "qwen"))
    (save_tiny(tmp_path, "gpt2") / "config.json").write_text('{"model_type": "vit"}', encoding="utf-8")
    with pytest.raises(ModelError, match=re.escape(said)):
        load_causal_lm(ModelConfig(name=str(tmp_path)))


def test_experts_cannot_be_multiplied_in_fp64_which_is_said_at_once() -> None:
    with pytest.raises(ModelError, match="its code fails"):
        tiny_trainer(model=tiny_family("qwen3_moe"), precision="fp64")
