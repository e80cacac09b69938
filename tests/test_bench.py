"""The speed benchmarks' arithmetic: counts against hand and torch, tables from stored numbers. No time is asserted here."""

from __future__ import annotations

import io
import json
import random
import re
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import bounds  # noqa: E402
import demo_seeds  # noqa: E402
import gpu  # noqa: E402
import gpu_check  # noqa: E402
import gpu_table  # noqa: E402
import gpu_trace  # noqa: E402
import memory  # noqa: E402
import path  # noqa: E402
import plots  # noqa: E402
import shapes  # noqa: E402
import speed  # noqa: E402
import tables  # noqa: E402
from bounds import GPT2_SMALL, Machine, Plan, Shape  # noqa: E402

from konomi.config import LoraConfig, ModelConfig, PPOJob  # noqa: E402

TINY = Shape(layers=1, width=2, attention=2, key_values=2, mlp=4, vocabulary=3)


@pytest.fixture
def raw() -> dict[str, Any]:
    return json.loads((ROOT / "tests" / "golden" / "speed.json").read_text(encoding="utf-8"))


# the counts


def test_count_of_one_episode_by_hand() -> None:
    """Query 1, response 2: two tokens go through the trunk and see 1 + 2 tokens; two go through the head."""
    assert TINY.layer_weights == 2 * (2 + 4) + 2 * 2 + 2 * 2 * 4 == 32
    trunk, head = 2 * 2 * 32 + 4 * 2 * 3, 2 * 2 * 2 * 3
    assert bounds.forward_flops(TINY, [1], [2]) == (trunk, head) == (152, 24)
    counts = bounds.update_flops(TINY, [1], [2], Plan())
    assert counts == {"rollout": 176, "score": 2 * 176, "train": 2 * 3 * 176}


def test_count_of_what_is_left_out() -> None:
    two = Shape(**{**vars(TINY), "layers": 2})
    plan = Plan(epochs=1, trained=1, head_trained=False, kept_trunk=True, old_pass=0.0)
    counts = bounds.update_flops(two, [1], [2], plan)
    assert counts == {"rollout": 2 * 152 + 24, "score": 152 + 24, "train": 3 * 152 + 2 * 24}
    assert bounds.update_flops(two, [1], [2], bounds.done("a", "bf16"))["score"] == 1.25 * (2 * 152 + 24)
    assert bounds.update_flops(two, [1], [2], bounds.done("a", "fp32"))["score"] == 2 * 152 + 24


def test_count_is_that_of_torch() -> None:
    """Torch counts whole squares in attention, and all positions in the head."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from tiny import tiny_model

    length = 7
    for family in ("gpt2", "llama", "gemma3"):
        model = tiny_model(family, attn_implementation="eager").train()
        shape = bounds.shape_of(model.config)
        with FlopCounterMode(display=False) as counter:
            loss = model(input_ids=torch.arange(length)[None], use_cache=False).logits.sum()
        forward = shape.trunk_flops(length, length * length) + shape.head_flops(length)
        rotary = counter.get_total_flops() - forward  # angle = position times frequency, as a product
        assert 0 <= rotary <= 2 * 2 * length * model.config.hidden_size, family
        with FlopCounterMode(display=False) as counter:
            loss.backward()
        assert counter.get_total_flops() == 2 * forward, family


def test_count_of_the_job() -> None:
    """About 4 TFLOP: the figure that the targets were set by came from one draw of the lengths."""
    rng = random.Random(0)
    lengths = [[rng.randint(shapes.LOW, shapes.HIGH) for _ in range(64)] for _ in range(2)]
    assert sum(bounds.update_flops(GPT2_SMALL, *lengths, Plan()).values()) == pytest.approx(4.0e12, rel=0.08)


def test_least_time_of_sampling_by_hand() -> None:
    machine = Machine(flops=1.0, bandwidth=1.0, weight_bytes=4)
    compute = [2 * 32 + 4 * 2 * 1 + 12, 2 * 32 + 4 * 2 * 2 + 12]
    reading = [4 * (32 + 6 + 4), 4 * (32 + 6 + 8)]
    assert bounds.sampling_seconds(TINY, [1], [2], machine) == sum(map(max, compute, reading))
    assert bounds.sampling_seconds(TINY, [1], [2], machine, together=True) == sum(compute + reading)
    alone = bounds.sampling_seconds(TINY, [1, 1], [2, 1], machine)
    assert alone < bounds.sampling_seconds(TINY, [1, 1], [2, 2], machine)  # a row that has ended costs nothing


# the job


def test_a_word_is_a_token() -> None:
    made = shapes.tokenizer()
    text = shapes.texts(1, seed=0)[0]
    assert len(made(text)["input_ids"]) == len(text.split())
    assert made.decode(made(text)["input_ids"]) == text
    assert len(made) == shapes.VOCABULARY


def test_paired_lengths_are_uniform_and_have_one_mean() -> None:
    rng = random.Random(0)
    drawn = [shapes.paired_lengths(rng, 2) for _ in range(2000)]
    assert {sum(pair) for pair in drawn} == {shapes.LOW + shapes.HIGH}
    assert {length for pair in drawn for length in pair} == set(range(shapes.LOW, shapes.HIGH + 1))


def test_log_marks_what_warms_up(tmp_path: Path) -> None:
    log = shapes.Log(tmp_path / "x.jsonl", warmup=1)
    log.update(2.0, 64)
    log.update(1.0, 64)
    log.end(precision="fp32")
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row.get("warmup") for row in rows] == [True, False, None]
    assert rows[2]["end"] and rows[2]["rss"] > 0


# the tables


def test_rates_ratios_and_memory(raw: dict[str, Any]) -> None:
    results = tables.Results(raw)
    assert results.rate("a") == pytest.approx(4.0)  # the warm-up of 1 episode/s does not count
    ratio = results.ratio("a", "trl-ppo")
    assert ratio is not None
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((5.0, 4.0, 6.25))
    assert results.memory("trl-ppo") == 3.4
    assert results.ratio("a", "rloo-bf16") is None


def test_peaks_are_the_best_of_a_round_and_the_median_of_rounds(raw: dict[str, Any]) -> None:
    machine = tables.Results(raw).machine()
    assert machine == Machine(flops=400e9, bandwidth=50e9, weight_bytes=2)


def test_share_of_the_bound(raw: dict[str, Any]) -> None:
    results = tables.Results(raw)
    row = results.updates("a")[0]
    count = sum(bounds.update_flops(GPT2_SMALL, row["queries"], row["responses"], Plan()).values())
    assert results.share("a", Plan()) == pytest.approx(count / 400e9 / 16.0)
    seconds, share = results.phases("a")["train"]
    assert seconds == 10.0
    assert share == pytest.approx(count * 6 / 9 / 400e9 / 10.0)


def test_the_section_is_whole(raw: dict[str, Any]) -> None:
    text = tables.section(raw)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    for table in (rows[:2], rows[-2:]):
        assert len({line.count("|") for line in table}) == 1
    assert "| A: GPT-2 small shape, all of it trained | episodes/s, beside TRL 0.11.4 PPO | 4.00 | 0.80 | 5.00x" in text
    assert "| 4.5x | yes |" in text
    assert "exit code 1: no memory" in text  # a peer that failed says so
    assert text.count("at most 1.5x, within budget | yes |") == 2
    share = tables.Results(raw).share("a", Plan())
    assert share is not None and f"job A would be {5.0 / share:.1f}x TRL 0.11.4 PPO" in text
    assert not text.startswith("Quick")
    assert tables.section(raw | {"quick": True}).startswith("Quick")


def test_an_empty_run_has_a_table_too() -> None:
    empty = {"hardware": "none", "quick": True, "notes": [], "peaks": [], "systems": {}, "growth": []}
    assert tables.section(empty).count("| – |") > 10
    assert speed.pictures(empty) == {}


def test_growth_counts_the_tokens_of_its_kind(raw: dict[str, Any]) -> None:
    results = tables.Results(raw)
    assert tables.growth(results, "sampling", "length") == [(16, pytest.approx(2.0), 1.0), (64, pytest.approx(2.5), 1.1)]
    assert tables.growth(results, "training", "batch") == [(8, pytest.approx(5.0), 3.0)]


def test_pictures_are_well_formed(raw: dict[str, Any]) -> None:
    drawn = speed.pictures(raw)
    assert set(drawn) == {"speed-timeline.svg", "speed-growth.svg"} == set(speed.TITLES)
    for svg in drawn.values():
        root = ElementTree.fromstring(svg)
        assert root.tag.endswith("svg")
        assert "nan" not in svg
    assert "job A: before" in drawn["speed-timeline.svg"]
    assert plots.growth([plots.Panel("none", "x", "y", {}, {})])


def test_the_section_goes_between_the_marks(raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "results.md"
    page.write_text("before\n<!-- speed -->\nold\n<!-- /speed -->\nafter\n", encoding="utf-8")
    monkeypatch.setattr(demo_seeds, "RESULTS", page)
    speed.write(raw, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- speed -->\nHardware") and text.endswith("<!-- /speed -->\nafter\n")
    for name in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (tmp_path / name).is_file()
    page.write_text(text.replace("<!-- /speed -->", ""), encoding="utf-8")
    for mark in ("speed", "none"):
        with pytest.raises(SystemExit, match=f"nothing was written: there are no lines <!-- {mark} --> and <!-- /{mark} -->"):
            demo_seeds.put(mark, "text")


MARKS = (
    "algorithms",
    "coverage",
    "judge",
    "kills",
    "kills-demo",
    "labels",
    "memory",
    "page",
    "people",
    "policy",
    "ratings",
    "seeds",
)


def test_results_page_has_the_marks() -> None:
    for mark in (*MARKS, "seeds", "seeds-en", "speed"):
        before, after = demo_seeds.around(mark)
        assert before and after


def test_what_is_kept_of_a_path_is_of_these_weights_and_this_question(tmp_path: Path) -> None:
    places = ["pipeline/policy/model/config.json", f"run/end/{path.ADAPTER_FILE}", "run/model/config.json", "lm/config.json"]
    for number, place in enumerate(places):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_text(str(number), encoding="utf-8")
    found = [path.model_of(tmp_path / name) for name in ("pipeline", "run", "lm")]
    assert found == [tmp_path / name for name in ("pipeline/policy/model", "run/end", "lm")]
    job = PPOJob(model=ModelConfig(freeze="embeddings"), lora=LoraConfig(rank=2))
    every = path.all_weights(job)
    assert (every.model.freeze, every.model.top_layers, every.lora.rank) == ("none", None, None)
    first = (job, found[1], (300, 1000), 2, [2.0, 4.0])
    changes = [(0, every), (1, found[2]), (2, (0, 300)), (3, 3), (4, [2.0])]
    others = [path.key_of(*(new if i == at else old for i, old in enumerate(first))) for at, new in changes]
    kept = path.key_of(*first)
    (tmp_path / places[1]).write_text("trained again", encoding="utf-8")
    assert len({kept, *others, path.key_of(*first)}) == 7


def test_the_runner_lists_its_jobs_and_refuses_others() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "speed.py")]
    listed = subprocess.run([*command, "--list"], capture_output=True, text=True, check=True, encoding="utf-8").stdout
    assert [line.split()[0] for line in listed.splitlines()] == list(speed.JOBS)
    refused = subprocess.run([*command, "--only", "z"], capture_output=True, text=True, encoding="utf-8")
    assert refused.returncode == 2 and "--only z" in refused.stderr


def test_every_system_has_a_label(tmp_path: Path) -> None:
    for precision in ("bf16", "fp32"):
        systems = speed.chosen_systems(list(speed.JOBS), quick=False, few=2, before=tmp_path, precision=precision)
        assert {system.name for system in systems} <= set(tables.LABELS)
    points = speed.growth_points(quick=False)
    assert len({system.name for _, _, system in points}) == len(points) == 20
    assert len(speed.growth_points(quick=True)) == 4


# one GPU


def trace(*events: tuple[str, str, float, float]) -> list[dict[str, Any]]:
    """Events of Chrome's format: category, name, start and length in microseconds."""
    return [{"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur} for cat, name, ts, dur in events]


UPDATE = trace(
    ("user_annotation", gpu_trace.UPDATE, 0, 1000),
    ("user_annotation", "rollout", 0, 400), ("user_annotation", "train", 400, 600),
    ("cpu_op", "aten::mm", 10, 20), ("cpu_op", "aten::_local_scalar_dense", 300, 100),
    ("cuda_runtime", "cudaLaunchKernel", 20, 5), ("cuda_runtime", "cudaGraphLaunch", 450, 5),
    ("cuda_runtime", "cudaStreamSynchronize", 300, 90), ("cuda_runtime", "cudaMemcpyAsync", 290, 5),
    ("kernel", "gemm", 100, 100), ("kernel", "gemm", 150, 100), ("kernel", "other", 990, 40),
    ("gpu_memcpy", "Memcpy DtoH", 380, 40),
    ("kernel", "of the update before", -50, 20), ("cuda_runtime", "cudaLaunchKernel", 1001, 5),
)  # fmt: skip


def test_profile_of_an_update_by_hand() -> None:
    found = gpu_trace.summary(UPDATE)
    assert {name: found[name] for name in ("launches", "graphs", "kernels", "waits", "asked")} == {
        "launches": 2, "graphs": 1, "kernels": 3, "waits": 1, "asked": 1,
    }  # fmt: skip
    assert found["busy"] == pytest.approx((150 + 40 + 10) * 1e-6)  # kernels that overlap count once, what is over the end not
    assert found["waiting"] == pytest.approx(90e-6)
    assert found["phases"]["rollout"] == pytest.approx({"seconds": 400e-6, "busy": 170e-6, "launches": 1})
    assert found["phases"]["train"]["launches"] == 1
    assert found["top"][0] == ("gemm", 2, pytest.approx(0.2))
    text = gpu_trace.told("A64", found, [("ppo.py:1 step", 3, 1.5)])
    assert "device busy 20 %" in text and "launches 2, of graphs 1" in text and "ppo.py:1 step" in text


def test_picture_of_an_update() -> None:
    root = ElementTree.fromstring(gpu_trace.picture(UPDATE))
    drawn = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert {"phase", "rollout", "train", "device", "20%", "operators", "12%", "waits", "9%"} <= set(drawn)


GPU_ROWS: list[dict[str, Any]] = [
    {"machine": "a GPU", "flops": 1e12, "bytes": 2e12},
    {"system": "konomi", "job": "L", "seconds": 9.0, "episodes": 64, "warmup": True, "phases": {"rollout": 9.0}},
    *({"system": "konomi", "job": "L", "seconds": s, "episodes": 64, "warmup": False, "phases": {"rollout": s / 2}, "gpu": s}
      for s in (1.0, 1.5, 1.25)),
    {"system": "konomi", "job": "L", "captured": "12 steps"},
    {"system": "rloo", "job": "A64", "skipped": "trl is not installed"},
]  # fmt: skip


def test_table_of_the_gpu() -> None:
    """64 episodes in 1.25 s are over 35/s, but the rollout of 0.625 s is over 0.6."""
    rows = [row | {"phases": {"rollout": 0.5}} if row.get("seconds") == 1.25 else row for row in GPU_ROWS]
    text, faster = (gpu_table.table(each, {name: gpu_table.JOBS[name] for name in ("A64", "L")}) for each in (GPU_ROWS, rows))
    assert text.startswith("a GPU; products in bf16 1 TFLOP/s, copies 2.00 TB/s")
    line = next(line for line in text.splitlines() if line.startswith("| L:"))
    assert line.endswith("| 51.2 | – | – | >= 35, rollout <= 0.6 s | no |")
    assert next(line for line in faster.splitlines() if line.startswith("| L:")).endswith("| yes |")
    assert "| – | – | – | >= 450 | – |" in text
    assert "| konomi, L | 1.250 (1.000 to 1.500) | 3 | 0.625 | – | – | – | 1.5 |" in text
    assert "RLOO, bf16, A64: not measured: trl is not installed." in text and "konomi, L: captured: 12 steps." in text


def test_share_of_the_gpu_by_hand() -> None:
    row = {"seconds": 2.0, "episodes": 1, "warmup": False, "queries": [1], "responses": [2]}
    result = gpu_table.Result([row, {"shape": vars(TINY)}])
    count = sum(bounds.update_flops(TINY, [1], [2], Plan()).values())
    assert result.share(1000.0) == pytest.approx(count / 1000.0 / 2.0)
    assert result.share(None) is None


def test_a_gpu_that_computes_otherwise_is_found() -> None:
    metrics = {"ppo/policy/entropy": 5.0, "objective/kl": 0.1}
    runs = {"gpt2-tiny, fp32": {"metrics": [metrics] * 3, "responses": [["a", "b"]] * 3}}
    processor = {"device": "cpu", "runs": runs}
    half = {"gpt2-tiny, bf16": {"metrics": [metrics | {"ppo/policy/entropy": 5.05}] * 3, "responses": [["c", "d"]] * 3}}
    assert gpu_check.problems({"runs": runs | half}, processor) == []
    nan = float("nan")
    off = {
        "metrics": [metrics | {"objective/kl": 0.102}, metrics, metrics | {"objective/kl": nan}],
        "responses": [["a", "b"]] * 3,
    }
    found = gpu_check.problems({"runs": {"gpt2-tiny, fp32": off}}, processor)
    assert [line.partition(": ")[2] for line in found] == [
        "objective/kl differs by 0.002 in update 1 (allowed: 0.001)", "objective/kl differs by nan in update 3 (allowed: 0.05)",
    ]  # fmt: skip
    other = {"metrics": [metrics] * 3, "responses": [["a", "c"]] * 3}
    assert gpu_check.problems({"runs": {"gpt2-tiny, fp32": other}}, processor) == [
        "gpt2-tiny, fp32: 50% of the first responses are the same"
    ]
    half["gpt2-tiny, bf16"]["metrics"][0]["ppo/policy/entropy"] = 5.2
    assert len(gpu_check.problems({"runs": half}, processor)) == 1


def test_what_a_broken_process_leaves_behind(tmp_path: Path) -> None:
    """Lines of the jobs that it did, why not of the others, and nothing for jobs that the peer does not do."""
    (tmp_path / "rloo-A64.jsonl").write_text('{"seconds": 1.0}\n', encoding="utf-8")
    (tmp_path / "machine.jsonl").write_text('{"machine": "a GPU"}', encoding="utf-8")
    rows = gpu.collected(tmp_path, "rloo", list(gpu_table.JOBS), "exit code 1")
    assert [(row.get("job"), row.get("seconds"), row.get("skipped")) for row in rows] == [
        ("A64", 1.0, None), ("A512", None, "exit code 1"), ("A2048", None, "exit code 1"), (None, None, None),
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_the_gpu_script_runs_on_a_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """All of its jobs, with a peer that is not there, and a profile; then the check, which needs a GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))

    def said(*words: str, code: int) -> str:
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny", "--out", str(tmp_path), "--work", str(tmp_path), *words])
        found, output = gpu.main(), capfd.readouterr().out
        assert found == code, output
        return output

    output = said("--systems", "konomi,rloo", "--profile", "A64", code=0)
    for job in gpu_table.JOBS:
        assert re.search(rf"^\| konomi, {job} \| \d+\.\d{{3}} ", output, re.MULTILINE), output
    assert "RLOO, bf16, A2048: not measured: trl is not installed." in output and "Profile of A64" in output
    rows = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sum("seconds" in row for row in rows) == 2 * len(gpu_table.JOBS)
    ElementTree.parse(tmp_path / "trace-A64.svg")
    assert "no GPU is seen here" in said("--device", code=2)
    with pytest.raises(SystemExit, match="2"):
        gpu.arguments(["--jobs", "A64,Z"])
    assert "Z: not one of A64" in capfd.readouterr().err


# memory


def test_weights_and_adapters_are_counted_as_they_are_made() -> None:
    from konomi.config import LoraConfig
    from konomi.models.lora import add_adapters
    from tiny import tiny_model

    for tied in (False, True):
        shape = memory.Shape(29, 32, 64, 2, 4, 2, 8, tied)
        lm = tiny_model("llama", head_dim=8, tie_word_embeddings=tied)
        assert sum(p.numel() for p in lm.parameters() if p.dim() > 1) == shape.weights
        add_adapters(lm, LoraConfig(rank=4))
        assert sum(p.numel() for p in lm.parameters() if p.requires_grad) == shape.adapters(4)


def test_the_tables_of_memory_have_a_column_a_setting() -> None:
    assert memory.SHAPES["8B (Llama 3.1)"].weights == pytest.approx(8.03e9, rel=1e-3)  # as its authors count, norms left out
    assert memory.table_of_shapes(copies=True)[2].count("|") == 2 + len(memory.SETTINGS) + len(memory.LEAN)


# ways of training, and people's ratings


def test_a_gain_at_a_kl_lies_between_the_places_around_it() -> None:
    import path as score_against_kl

    points = [{"kl": kl, "mean": mean} for kl, mean in ((0.0, 0.0), (3.9, 2.0), (9.0, 2.1))]
    found = [score_against_kl.at(points, target) for target in (3.9, 4.0, 9.2, 10.0)]
    assert found[0] == points[1] and found[3] is None and found[2] is not None and found[2]["mean"] > 2.1
    share = (4.0**0.5 - 3.9**0.5) / (9.0**0.5 - 3.9**0.5)
    assert found[1] is not None and found[1]["mean"] == pytest.approx(2.0 + 0.1 * share)
    assert score_against_kl.kl_of(points, 1.0) == pytest.approx(3.9 / 4)


def test_no_sentence_is_in_two_pairs(tmp_path: Path) -> None:
    import ratings

    def packed(files: dict[str, bytes]) -> bytes:
        with tarfile.open(fileobj=(whole := io.BytesIO()), mode="w:gz") as tar:
            for name, content in files.items():
                (info := tarfile.TarInfo(name)).size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return whole.getvalue()

    files = {}
    for source in ratings.SOURCES:
        rows = [(f"{n}", 1 + n % 2, f"{source} number {n}") for n in range(40)]
        rows += [(f"{n}x", 1 + (n + 1) % 2, f"{source} number {n}") for n in range(40)]  # rated a second time
        truth = "".join(f"{name}\t{mean}\t{text}\n" for name, mean, text in rows)
        data = "".join(f"{name}\t-\t-\t[{mean - 1}, {mean + 1}]\n" for name, mean, _ in rows)
        files |= {f"hutto_ICWSM_2014/{source}_{part}.txt": content.encode()
                  for part, content in (("GroundTruth", truth), ("anonDataRatings", data))}  # fmt: skip
    (tmp_path / "package.tar.gz").write_bytes(packed({ratings.INSIDE: packed(files)}))
    sides = ratings.pairs(tmp_path / "package.tar.gz", 300, 0)
    texts = [row[side] for rows in sides for row in rows for side in ("chosen", "rejected")]
    assert len(sides[0]) > 10 and len(sides[1]) > 3 and len(set(texts)) == len(texts)
