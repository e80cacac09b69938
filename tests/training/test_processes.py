"""Several processes on the CPU do what one does with the same batch.

The processes run this file: python test_processes.py OUT_DIRECTORY.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from test_served import OWN, served_trainer

from fake_device import DEVICE, fake_device
from inference_server import serving
from konomi.config import HttpReward
from konomi.errors import ConfigError, RunError
from konomi.rewards import build_reward, score
from konomi.runs import processes
from konomi.training.shares import divide
from launching import run_in_processes
from tiny_run import CRITIC_FREE, CountA, facts, sharp_model, tiny_trainer, weights

UPDATES = 20


class Counted(CountA):
    """Notes how many texts it gets, and breaks when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []
        self.broken = False

    def __call__(self, texts: Sequence[str], **given: Any) -> list[float]:
        self.calls.append(len(texts))
        return [float("nan")] * len(texts) if self.broken else super().__call__(texts, **given)


class PerText(CountA):
    """A reward whose texts may be divided, such as a model."""

    divisible = True


class Answers(BaseHTTPRequestHandler):
    """The lengths of texts; it refuses "??"."""

    def do_POST(self) -> None:
        texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["texts"]
        answer = json.dumps([len(text) for text in texts]).encode()
        self.send_response(400 if "??" in texts else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


def asked_by_http() -> dict[str, Any]:
    """What a service says of texts, which it is asked for once."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    reward = build_reward(HttpReward(kind="http", url=processes.shared(f"http://127.0.0.1:{server.server_port}/")), ["topic"])
    rows = ["b", "d?"], {"topic": [1, 2]}
    told = {"scores": score(reward, ["a", "c"], *rows, save_to=None)}
    told["refused"] = refused(lambda: score(reward, ["?", "?"], ["?", "?"], rows[1], save_to=None), RunError)
    processes.wait()
    server.shutdown()
    return told


def drawn_by_a_server(out: Path) -> dict[str, Any]:
    """Figures of an update whose responses are drawn by a server that the main process starts, and one without it; and what is
    said when the server does not see the weights."""
    with serving(sharp_model("gpt2")) as server:
        server.url = processes.shared(server.url)
        trainer = served_trainer(server, out)
        alone = tiny_trainer(model=copy.deepcopy(server.first), precision="fp64")
        told = [
            {name: value for name, value in facts(each.step().metrics).items() if not name.startswith(OWN)}
            for each in (trainer, alone)
        ]  # fmt: skip
        processes.wait()
        server.reply = lambda path, body: (500, {"error": "no such directory"})
        said = refused(lambda: trainer.sampler.probe(trainer, out), RunError)
        trainer.sampler.close()
    return {"steps": told, "unseen": said}


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "precision": "fp64", "episodes": UPDATES * 12, "batch_size": 12, "mini_batch_size": 6, "micro_batch_tokens": 40,
        "responses_per_prompt": 2, "epochs": 2, "baseline_samples": 2, **changes,
    }  # fmt: skip


CASES: dict[str, dict[str, Any]] = {
    "frozen layers": {"family": "llama", "top_layers": 1, "precision": "fp32", "mini_batch_size": 4, "epochs": 1},
    "no critic, an early end": {"algorithm": CRITIC_FREE["rloo"], "epochs": 3, "epoch_kl_stop": 1e-6},
    "bf16, full KL": {"family": "llama", "precision": "bf16", "kl_penalty": "full", "shift": 0.1},
}
"""Two updates of each, beside the long run."""


def train(out: Path) -> dict[str, Any]:
    """Train in the processes that run this; returns what this one saw."""
    reward, found = Counted(), {"processes": processes.count()}
    long = tiny_trainer("llama", **settings(reward=reward, judges={"judge": PerText()}))
    updates = UPDATES if found["processes"] < 3 else 3
    found["steps"] = [facts(long.step().metrics) for _ in range(updates)]
    found["weights"] = weights(long.policy).tolist()
    found["calls"] = reward.calls
    for name, changes in CASES.items() if found["processes"] < 3 else ():
        trainer = tiny_trainer(**settings(**{"episodes": 24, **changes}))
        found[name] = [facts(step.metrics) for step in trainer]
    stopped = tiny_trainer("llama", **settings(episodes=36))
    if (checkpoint := out / "checkpoint").is_dir():
        stopped.load(checkpoint)
    stopped.step()
    processes.wait()
    stopped.save(checkpoint)
    found["resumed"] = [stopped.update, float(weights(stopped.policy).abs().mean())]
    if found["processes"] > 1:
        found["refused"] = refused(lambda: tiny_trainer(**settings(mini_batch_size=1)), ConfigError)
        reward.broken = True
        found["broken"] = refused(lambda: tiny_trainer(**settings(reward=reward)).step(), RunError)
        sparse = torch.eye(2).to_sparse()
        found["dense"] = long.engine.total(sparse).tolist()
        found["http"] = asked_by_http()
    if found["processes"] == 2:
        found["served"] = drawn_by_a_server(out)
    (out / f"{found['processes']}-{processes.index()}.json").write_text(json.dumps(found), encoding="utf-8")
    processes.leave()
    return found


def refused(call: Any, kind: type[Exception]) -> str:
    with pytest.raises(kind) as error:
        call()
    return str(error.value)


def close(two: list[dict[str, float]], one: list[dict[str, float]], rel: float) -> None:
    assert len(two) == len(one)
    for each, alone in zip(two, one, strict=True):
        # the share of clipped values compares numbers that are equal but for rounding
        rounded = {"ppo/val/clipfrac", "ppo/policy/clipfrac"}
        assert {k: v for k, v in each.items() if k not in rounded} == pytest.approx(
            {k: v for k, v in alone.items() if k not in rounded}, rel=rel, abs=rel
        )


@pytest.mark.usefixtures("fresh_accelerator")
def test_several_processes_train_like_one(tmp_path: Path) -> None:
    """Two processes, then one, then three: each goes on from the checkpoint of the one before."""
    seen: dict[int, list[dict[str, Any]]] = {}
    for count in (2, 1, 3):
        if count > 1:
            run_in_processes(count, __file__, str(tmp_path))
        else:
            train(tmp_path)
        seen[count] = [json.loads((tmp_path / f"{count}-{i}.json").read_text("utf-8")) for i in range(count)]
    (alone,) = seen[1]
    whole = tiny_trainer("llama", **settings(episodes=36))
    expected = [[step.update, float(weights(whole.policy).abs().mean())] for step in whole]
    assert alone["calls"] == [2] + [12] * UPDATES
    for count in (2, 3):
        first, *others = seen[count]
        for other in others:
            assert {**other, "calls": []} == {**first, "calls": []}
            assert other["calls"] == []  # the main process asked for all texts
        steps = len(first["steps"])
        assert first["calls"] == [*alone["calls"][: 1 + steps], 2]
        close(first["steps"], alone["steps"][:steps], 1e-6)
        assert "ppo.mini_batch_size = 1 cannot be divided among" in first["refused"]
        assert {each["broken"] for each in seen[count]} == {first["broken"]} and "returned nan" in first["broken"]
        assert first["dense"] == [[count, 0.0], [0.0, count]]
        assert first["http"]["scores"] == [2.0, 3.0] and "answered HTTP 400" in first["http"]["refused"]
    served = seen[2][0]["served"]
    close(served["steps"][:1], served["steps"][1:], 1e-9)
    assert f"Does it see {tmp_path / 'served'}?" in served["unseen"]
    drift = torch.tensor(seen[2][0]["weights"]) - torch.tensor(alone["weights"])
    assert float(drift.abs().mean()) < 1e-6
    close(seen[2][0]["frozen layers"], alone["frozen layers"], 1e-5)
    close(seen[2][0]["no critic, an early end"], alone["no critic, an early end"], 1e-6)
    assert [step["ppo/epochs"] for step in alone["no critic, an early end"]] == [3.0, 1.0]
    for step, own in zip(seen[2][0]["bf16, full KL"], alone["bf16, full KL"], strict=True):
        for name in ("ppo/mean_scores", "objective/kl", "ppo/loss/total"):
            assert step[name] == pytest.approx(own[name], rel=0.02, abs=0.02)
    for count, whole_run in zip((2, 1, 3), expected, strict=True):
        assert seen[count][0]["resumed"] == [whole_run[0], pytest.approx(whole_run[1], rel=1e-9)]


@pytest.mark.usefixtures("fresh_accelerator")
def test_what_processes_exchange_is_dense_and_on_their_device() -> None:
    """NCCL refuses anything else: "Tensors must be CUDA and dense"."""
    with fake_device():
        engine = tiny_trainer().engine
        engine.processes = 2
        for x in (torch.eye(2).to_sparse(), torch.ones(2, 3).T, torch.tensor(1)):
            total = engine.total(x)
            assert (total.device, total.layout) == (DEVICE, torch.strided) and total.is_contiguous()


@pytest.mark.parametrize("together", [1, 2, 3])
def test_rows_are_divided_by_tokens_and_in_groups(together: int) -> None:
    generator = torch.Generator().manual_seed(together)
    lengths = torch.randint(1, 50, (24,), generator=generator)
    order = (torch.randperm(24 // together, generator=generator)[:, None] * together + torch.arange(together)).flatten()
    parts = divide(order, lengths, together, 3)
    assert sorted(torch.cat(parts).tolist()) == list(range(24))
    for part in parts:
        assert (part.view(-1, together) // together).unique(dim=1).shape[1] == 1
    loads = [int(lengths[part].sum()) for part in parts]
    assert max(loads) - min(loads) <= int(lengths.view(-1, together).sum(1).max())
    assert [len(part) for part in divide(order[:3], lengths, together, 3)] == [1, 1, 1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ["no_proxy"] = "127.0.0.1"
    train(Path(sys.argv[1]))
