"""Trimmed vocabularies: tiny tokenizers of each kind, cut and read again; last the embedded model."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from typer.testing import CliRunner

from konomi.cli import app
from konomi.config import ModelConfig
from konomi.errors import ConfigError, ModelError
from konomi.models.deterministic import fuse_gelu
from konomi.models.embedded import EMBEDDED, embedded_model
from konomi.models.load import load_causal_lm
from konomi.models.trim.scripts import SCRIPTS, Belongs, parse_scripts
from konomi.models.trim.trim import check_out, trim
from konomi.models.trim.vocabulary import KEEP, RULES, byte_symbols, choose, rewrite
from tiny import save_tiny, tiny_model

ROOT = Path(__file__).parents[2]
OTHERS = [
    "สวัสดีชาวโลก", "مرحبا بالعالم", "Привет, мир", "안녕하세요 세계",
    "naïve café Ünïcode", "今日は😀です", "👩‍👩‍👧‍👦🇯🇵", "𠮷野家で𩸽を",
]  # fmt: skip
MIXED = ["Tシャツと AI の話。", "「」『』（％）１２３　…—“x”", "a\n\nb\t\tc  d", "", " ", "x=1; print('今日')"]
JAPANESE = "今日の天気はとても良いです。この商品を買った人、3人目！"


def openings(language: str) -> list[str]:
    """Some: of more texts the characters alone would fill the vocabularies."""
    lines = (ROOT / "examples" / f"openings-{language}.jsonl").read_text(encoding="utf-8").splitlines()[:300]
    return [json.loads(line)["text"] for line in lines]


CORPUS = [*openings("ja"), *openings("en"), *OTHERS * 3]


def byte_level() -> Any:
    """As of Llama 3: byte-level BPE, whole words at once, special tokens behind, some of them spare."""
    inner = Tokenizer(models.BPE(ignore_merges=True))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\w+|\s+|[^\s\w]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=1600, initial_alphabet=byte_symbols(), show_progress=False))
    inner.add_special_tokens(["<|reserved_special_token_0|>", "<|begin|>", "<|reserved_special_token_1|>", "<|end|>"])
    begin = inner.token_to_id("<|begin|>")
    template = processors.TemplateProcessing(single="<|begin|> $A", pair="<|begin|> $A $B", special_tokens=[("<|begin|>", begin)])
    inner.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<|begin|>", eos_token="<|end|>")


def byte_fallback() -> Any:
    """As of Gemma: BPE over characters, ▁ for a space, bytes for what is unknown, single characters last."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<unused0>", "<unused1>", *(f"<0x{i:02X}>" for i in range(256))]
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=1200, show_progress=False))
    learnt = json.loads(inner.to_str())["model"]
    words = sorted(learnt["vocab"], key=lambda token: (len(token) == 1, learnt["vocab"][token]))
    vocab = {token: i for i, token in enumerate([*special, *words])}
    merges = [tuple(pair) for pair in learnt["merges"]]
    tokenizer = transformers.GemmaTokenizer(vocab=vocab, merges=merges)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in ("<unused0>", "<unused1>")])
    return tokenizer


def unigram() -> Any:
    """As of SentencePiece: scores instead of merges, no tokens for bytes."""
    inner = Tokenizer(models.Unigram())
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    kinds = ["<unk>", "<s>", "</s>"]
    inner.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=1500, special_tokens=kinds, unk_token="<unk>", show_progress=False)
    )
    inner.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 1))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


def llama(tokenizer: Any, **changes: Any) -> Any:
    """A head of its own, and more rows than tokens."""
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return tiny_model("llama", vocab=len(tokenizer) + 24, **{**ids, "tie_word_embeddings": False, **changes})


def gemma(tokenizer: Any) -> Any:
    return tiny_model("gemma3", vocab=len(tokenizer), bos_token_id=2, eos_token_id=1, pad_token_id=0)


def phi(tokenizer: Any) -> Any:
    """A head with a bias."""
    config = transformers.PhiConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    model = transformers.PhiForCausalLM(config).eval()
    torch.nn.init.normal_(model.lm_head.bias)
    return model


KINDS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "byte-level": (byte_level, llama),
    "byte-fallback": (byte_fallback, gemma),
    "unigram": (unigram, phi),
}


class Cut:
    """A tokenizer and a model, and both as they were read from the trimmed directory."""

    def __init__(self, kind: str, out: Path) -> None:
        make, build = KINDS[kind]
        self.old = make()
        model = build(self.old)
        self.model = copy.deepcopy(model)
        self.out, self.result = out, trim(model, self.old, ["ja"], out, keep=40)
        loaded = load_causal_lm(ModelConfig(name=str(out)))
        self.new, self.trimmed = loaded.tokenizer, loaded.model
        words, ids = self.new.get_vocab(), self.old.get_vocab()
        self.kept = [ids[token] for token in sorted(words, key=words.__getitem__)]

    def both(self, text: str) -> tuple[list[int], list[int]]:
        """The ids of a text before, and now in the old numbers."""
        return self.old(text).input_ids, [self.kept[i] for i in self.new(text).input_ids]


@pytest.fixture(scope="module", params=KINDS)
def cut(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cut:
    return Cut(request.param, tmp_path_factory.mktemp("trim") / "out")


def test_kept_tokens_keep_their_rows_and_logits(cut: Cut) -> None:
    new = torch.tensor([cut.new(text).input_ids for text in (JAPANESE,)])
    kept = torch.tensor(cut.kept)
    before = copy.deepcopy(cut.model)
    fuse_gelu(before)  # as konomi loads the trimmed one: it rounds in another order
    with torch.no_grad():
        assert torch.equal(cut.trimmed(new).logits, before(kept[new]).logits[..., kept])
    for one, other in (
        (cut.trimmed.get_input_embeddings(), cut.model.get_input_embeddings()),
        (cut.trimmed.get_output_embeddings(), cut.model.get_output_embeddings()),
    ):
        assert torch.equal(one.weight, other.weight[kept])
        if getattr(other, "bias", None) is not None:
            assert torch.equal(one.bias, other.bias[kept])


def test_texts_of_other_scripts_come_back_whole_in_more_tokens(cut: Cut) -> None:
    more = 0
    for text in [*openings("en"), *OTHERS, *MIXED]:
        before, now = cut.both(text)
        more += len(now) > len(before)
        assert cut.new.decode(cut.new(text).input_ids, True) == cut.old.decode(before, True)
        if cut.old.unk_token_id is None:
            assert cut.old.decode(now, True) == text
    assert more > 200


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_text_comes_back_and_one_of_kept_tokens_is_tokenised_as_before(cut: Cut, data: st.DataObject) -> None:
    pieces = st.one_of(st.sampled_from([*CORPUS, *MIXED]), st.text(st.characters(exclude_categories=["Cs"]), max_size=8))
    text = "".join(data.draw(st.lists(st.one_of(pieces, pieces.map(lambda piece: piece[1:5])), max_size=4)))
    before, now = cut.both(text)
    assert cut.old.decode(now, True) == cut.old.decode(before, True)
    if set(before) <= set(cut.kept):
        assert now == before


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text("今日の天気人買っタンー、。「」１Ａ 1.!?(\n–…“”→○", max_size=30))
def test_any_text_of_the_script_is_tokenised_as_before(cut: Cut, text: str) -> None:
    before, now = cut.both(text)
    assert now == before


def test_every_kept_token_can_be_reached(cut: Cut) -> None:
    """The tokens that a text gave before, a text gives now."""
    texts = [cut.old.decode([i]) for i in cut.kept]
    for i, text in zip(cut.kept, texts, strict=True):
        if cut.old(text, add_special_tokens=False).input_ids == [i]:
            assert [cut.kept[j] for j in cut.new(text, add_special_tokens=False).input_ids] == [i]


def test_settings_are_numbered_anew(cut: Cut) -> None:
    size, config = len(cut.kept), cut.trimmed.config
    assert config.vocab_size == size == len(cut.new) == cut.trimmed.get_input_embeddings().num_embeddings
    assert cut.trimmed.get_output_embeddings().out_features == size
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        old = getattr(cut.model.config, key)
        for settings_ in (config, cut.trimmed.generation_config):
            assert getattr(settings_, key) == (None if old is None else cut.kept.index(old))
        assert getattr(cut.new, key) == (None if old is None else getattr(config, key))
    assert not any("reserved" in token or "unused" in token for token in cut.new.get_vocab())


def test_lists_of_ids_in_the_settings(tmp_path: Path) -> None:
    tokenizer = byte_level()
    names = tokenizer.get_vocab()
    english = min(token for token in names if token.isascii() and token.isalpha() and len(token) > 4)  # no special token
    model = llama(tokenizer)
    model.generation_config.eos_token_id = [names["<|end|>"], names[english], len(tokenizer) + 3]
    model.generation_config.suppress_tokens = [names["<|reserved_special_token_0|>"], names["a"]]
    trim(model, tokenizer, ["ja"], tmp_path / "out", keep=0)
    loaded = load_causal_lm(ModelConfig(name=str(tmp_path / "out")))
    new, settings_ = loaded.tokenizer.get_vocab(), loaded.model.generation_config
    assert settings_.eos_token_id == [new["<|end|>"], new[english]]  # kept because it ends a text; the third has no token
    assert settings_.suppress_tokens == [new["a"]]


def test_what_is_told(cut: Cut) -> None:
    tokens, parameters = cut.result["tokens"], cut.result["parameters"]
    assert tokens["before"] == cut.model.config.vocab_size and tokens["after"] == len(cut.kept) < tokens["before"]
    assert sum(tokens[key] for key in ("special", "bytes", "scripts", "others", "parts")) == tokens["after"]
    assert tokens["others"] == 40 and tokens["bytes"] == (0 if cut.old.unk_token_id == 0 else 256)
    assert parameters["after"] == sum(p.numel() for p in cut.trimmed.parameters()) < parameters["before"]
    assert cut.result["scripts"] == ["ja"] and cut.result["out"] == str(cut.out)
    assert [file.name for file in cut.out.parent.iterdir()] == ["out"]


def test_the_layout_of_t5_vocabularies(tmp_path: Path) -> None:
    """As of rinna/japanese-gpt2: a SentencePiece file and T5Tokenizer, whose bytes it does not use."""
    import sentencepiece

    (tmp_path / "text.txt").write_text("\n".join(CORPUS * 2), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "spiece"), vocab_size=1600, pad_id=3, pad_piece="[PAD]",
        byte_fallback=True, character_coverage=0.98, minloglevel=2,
    )  # fmt: skip
    where = tmp_path / "lm"
    tiny_model("gpt2", vocab=1600, bos_token_id=1, eos_token_id=2).save_pretrained(where)
    (tmp_path / "spiece.model").rename(where / "spiece.model")
    special = {"eos_token": "</s>", "unk_token": "<unk>", "bos_token": "<s>", "pad_token": "[PAD]", "extra_ids": 0}
    (where / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", **special}), encoding="utf-8")
    loaded = load_causal_lm(ModelConfig(name=str(where)))
    ids = loaded.tokenizer("今日の天気は").input_ids
    assert ids[-1] == loaded.tokenizer.eos_token_id and loaded.tokenizer.unk_token_id not in ids
    assert loaded.tokenizer.decode(ids, skip_special_tokens=True) == "今日の天気は"
    trim(loaded.model, loaded.tokenizer, ["ja"], tmp_path / "out", keep=0)
    again = load_causal_lm(ModelConfig(name=str(tmp_path / "out")))
    words = loaded.tokenizer.convert_ids_to_tokens
    for text in openings("ja"):
        ids = again.tokenizer(text).input_ids
        assert again.tokenizer.convert_ids_to_tokens(ids) == words(loaded.tokenizer(text).input_ids)
    for text in [*openings("en")[:50], *OTHERS]:
        now, before = (one.tokenizer.decode(one.tokenizer(text).input_ids, True) for one in (again, loaded))
        assert now == before


# scripts


@pytest.mark.parametrize(
    ("scripts", "inside", "outside"),
    [
        (["ja"], ["▁今", "今日", "ー", "、", "Tシャツ", "１", "▁▁", "...", "“", "→", "㈱"], ["the", "T", "é", "я今", "😀", ""]),
        (["en"], ["the", "▁The", "don't", "(a)", "’s"], ["é", "naïve", "今", "aя"]),
        (["zh"], ["今日", "ㄅ", "，"], ["の", "ー", "안"]),
        (["ko"], ["안녕", "▁안"], ["今", "の"]),
        (["latin"], ["naïve", "é", "ß", "the"], ["я", "今"]),
        (["ru", "el"], ["▁Привет", "ё", "αβ", "яα"], ["the", "é", "ب"]),
        (["ar", "hi", "th"], ["مرحبا", "हिन्दी", "ไทย"], ["the", "ß", "今"]),
    ],
)  # fmt: skip
def test_tokens_belong_to_scripts(scripts: list[str], inside: list[str], outside: list[str]) -> None:
    belongs = Belongs(scripts)
    assert [token for token in inside if not belongs(token)] == []
    assert [token for token in outside if belongs(token)] == []


@settings(max_examples=200, deadline=None)
@given(text=st.text("今のー、。１𠮷 1.→…", min_size=1, max_size=6), cuts=st.tuples(st.integers(0, 9), st.integers(1, 9)))
def test_any_bytes_out_of_a_text_belong_to_its_script(text: str, cuts: tuple[int, int]) -> None:
    piece = text.encode()[cuts[0] :][: cuts[1]]
    if piece:
        assert JA(piece.decode("utf-8", "surrogateescape"))


JA = Belongs(["ja"])


@pytest.mark.parametrize("piece", ["😀".encode()[:3], "я".encode()[:1], "я".encode() + b"\xe4", b"a\xe4", b"\xe4\xe4", b"\xff"])
def test_bytes_of_other_texts_do_not(piece: bytes) -> None:
    assert not JA(piece.decode("utf-8", "surrogateescape"))


def test_names_of_scripts() -> None:
    assert parse_scripts(" en,ja,,en") == ("en", "ja")
    for text, wrong in (("ja,xx", "no script named 'xx'"), (" , ", "no script given")):
        with pytest.raises(ConfigError, match=f"--scripts: {wrong}") as told:
            parse_scripts(text)
        assert all(f"{name}: " in str(told.value) for name in SCRIPTS)


# what is refused


def test_other_kinds_of_vocabularies_are_refused(tmp_path: Path) -> None:
    loaded = load_causal_lm(ModelConfig(name=str(save_tiny(tmp_path / "lm", "gpt2"))))
    with pytest.raises(ModelError, match="its tokenizer is of the kind WordLevel; only BPE and Unigram"):
        trim(loaded.model, loaded.tokenizer, ["ja"], tmp_path / "out")
    with pytest.raises(ModelError, match="the slow kind"):
        trim(loaded.model, object(), ["ja"], tmp_path / "out")
    inner = Tokenizer(models.BPE({"a": 0, "b</w>": 1, "ab</w>": 2}, [("a", "b</w>")], end_of_word_suffix="</w>"))
    with pytest.raises(ModelError, match="marks the insides or the ends of words"):
        trim(loaded.model, transformers.PreTrainedTokenizerFast(tokenizer_object=inner), ["ja"], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["lm"]


class Positional(transformers.LlamaForCausalLM):
    """Its output depends on the number of a token, not only on its row."""

    def forward(self, input_ids: Any = None, **others: Any) -> Any:
        found = super().forward(input_ids=input_ids, **others)
        found.logits = found.logits + input_ids[..., None]
        return found


def test_models_that_would_be_wrong_are_refused(tmp_path: Path) -> None:
    tokenizer = byte_level()
    model = llama(tokenizer)
    with pytest.raises(ModelError, match="x: other parts of it depend on the ids of tokens"):
        trim(Positional(model.config).eval(), tokenizer, ["ja"], tmp_path / "out", keep=0, name="x")
    short = llama(tokenizer)
    short.resize_token_embeddings(1000)
    with pytest.raises(ModelError, match="the special id 1601, but the model's embedding has 1000 rows"):
        trim(short, tokenizer, ["ja"], tmp_path / "out")
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(ModelError, match="its embedding or head is not an ordinary one"):
        trim(model, tokenizer, ["ja"], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_that_is_read_otherwise_is_refused(tmp_path: Path) -> None:
    """Of a saved Qwen2 model transformers makes the tokenizer byte-level, whatever it was."""
    tokenizer = unigram()
    with pytest.raises(ModelError, match=r"transformers reads the trimmed tokenizer .* otherwise|cannot be read"):
        trim(tiny_qwen2(len(tokenizer)), tokenizer, ["ja"], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def tiny_qwen2(vocab: int) -> Any:
    config = transformers.Qwen2Config(
        vocab_size=vocab, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.Qwen2ForCausalLM(config).eval()


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    check_out(tmp_path / "empty")
    for out, message in (
        (tmp_path, "not empty; give --out a directory that does not exist yet"),
        (tmp_path / "file", "a file; give --out a directory"),
        (tmp_path / "none" / "out", "there is no directory .*none; make it first"),
    ):
        with pytest.raises(ModelError, match=message):
            check_out(out)


# the verb


def konomi(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_the_verb(tmp_path: Path) -> None:
    tokenizer = byte_level()
    llama(tokenizer).save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    told = konomi("trim", tmp_path / "lm", "--scripts", "ja,en", "--keep", 5, "--out", tmp_path / "a", "--json")
    assert told.exit_code == 0, told.output
    result = json.loads(told.stdout)
    assert result["model"] == str(tmp_path / "lm") and result["tokens"]["others"] == 5
    plain = konomi("trim", tmp_path / "lm", "--scripts", "ja", "--out", tmp_path / "b")
    assert plain.exit_code == 0 and "1,628 -> " in plain.stdout and "of ja" in plain.stdout
    written = konomi("generate", tmp_path / "a", "-p", "今日", "--tokens", 4)
    assert written.exit_code == 0 and written.stdout.startswith("今日")


def test_mistakes_are_told_before_anything_is_loaded(tmp_path: Path) -> None:
    for scripts, out, message in (("jp", "new", "no script named 'jp'"), ("ja", "", "not empty")):
        (tmp_path / "file").write_bytes(b"")
        told = konomi("trim", "no/such-model", "--scripts", scripts, "--out", tmp_path / out)
        assert told.exit_code == 2 and message in told.output


def test_the_default_of_the_verb_is_that_of_the_library() -> None:
    import typer.main

    command: Any = typer.main.get_command(app)
    (keep,) = [p for p in command.commands["trim"].params if p.name == "keep"]
    (scripts,) = [p for p in command.commands["trim"].params if p.name == "scripts"]
    assert keep.default == KEEP
    assert scripts.help.split(": ")[1] == " ".join(SCRIPTS) + "."


# old forms of tokenizer.json


def test_merges_as_strings_and_padding() -> None:
    spec = json.loads(byte_level().backend_tokenizer.to_str())
    pairs = spec["model"]["merges"]
    spec["padding"] = {"pad_id": spec["added_tokens"][-1]["id"], "pad_token": "<|end|>"}
    kept = choose(spec, ["ja"], 10, 10_000, [], "x")
    new = rewrite(spec, kept)
    spec["model"]["merges"] = [" ".join(pair) for pair in pairs]
    assert choose(spec, ["ja"], 10, 10_000, [], "x") == kept
    again = rewrite(spec, kept)
    assert [merge.split(" ") for merge in again["model"]["merges"]] == new["model"]["merges"]
    assert new["padding"]["pad_id"] == new["added_tokens"][-1]["id"] == len(kept.ids) - 1


# the embedded model


@pytest.mark.real
def test_the_embedded_model_trimmed_to_japanese() -> None:
    said: list[str] = []
    name = "gemma3-270m-ja"
    loaded = load_causal_lm(ModelConfig(name=f"embedded:{name}"), progress=said.append)
    assert loaded.note == EMBEDDED["gemma3-270m"].note
    found = embedded_model(name, said.append)
    assert found.path.name.startswith(f"{name}-r{RULES}-{found.sha256[:16]}") and (found.path / "NOTICE.md").exists()
    whole = embedded_model("gemma3-270m", said.append)
    assert found.sha256 == whole.sha256 == loaded.revision
    old: Any = transformers.AutoModelForCausalLM.from_pretrained(whole.path, dtype=torch.float32).eval()
    before, after = transformers.AutoTokenizer.from_pretrained(whole.path), loaded.tokenizer
    words, numbers = after.get_vocab(), before.get_vocab()
    assert len(words) == loaded.model.config.vocab_size == 32_630
    assert sum(p.numel() for p in loaded.model.parameters()) == 121_209_216
    ids = torch.tensor([numbers[token] for token in sorted(words, key=words.__getitem__)])
    assert torch.equal(loaded.model.get_input_embeddings().weight, old.get_input_embeddings().weight[ids])
    for text in ("今日の天気は", "The weather", "ไทย"):
        new = torch.tensor([after(text).input_ids])
        with torch.no_grad():
            assert torch.equal(loaded.model(new).logits, old(ids[new]).logits[..., ids])
    for text in [*openings("ja"), JAPANESE]:
        assert ids[after(text).input_ids].tolist() == before(text).input_ids
    for text in [*openings("en"), *OTHERS, *MIXED]:
        assert after.decode(after(text).input_ids, skip_special_tokens=True) == text
