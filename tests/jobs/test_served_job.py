"""`konomi ppo` with responses from an inference server, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from command_line import konomi, lines_of, sets
from inference_server import serving
from konomi.config import ModelConfig
from konomi.models.load import load_causal_lm
from tiny_run import facts


def metrics(name: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in facts(row).items() if k != "time"} for row in lines_of(f"runs/{name}/metrics.jsonl")]


@pytest.mark.usefixtures("fresh_accelerator")
def test_a_run_on_a_server_that_dies_goes_on_when_it_is_back(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It then has the figures of a run without a break; the server has had other weights in each update."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    base = ["model.precision=fp32", "rollout.server.retries=1", "rollout.server.backoff=0", "rollout.server.timeout=30"]
    with serving(load_causal_lm(ModelConfig(name="lm")).model) as server:

        def ran(name: str, *arguments: str, code: int = 0) -> Any:
            settings = sets(*base, f"run.name={name}", f"rollout.server.url={server.url}")
            return konomi("ppo", *(arguments or ("ppo.toml", "--json", *settings)), code=code)

        whole = json.loads(ran("whole").stdout)
        assert whole["status"] == "finished" and whole["compare"]["after"]["kl"] > 0.01
        config = json.loads(Path("runs/whole/config.json").read_text("utf-8"))
        assert config["rollout"]["server"]["url"] == server.url
        told = metrics("whole")
        assert len(told) == 4 and all(0 < row["ppo/server/gap_max"] < 1e-3 for row in told)
        assert all(abs(row["ppo/server/weight_mean"] - 1) < 1e-3 for row in told)
        assert len(server.loaded) == len(set(server.loaded)) == 5 and not Path("runs/whole/served").exists()

        replies, update = server.reply, 0

        def dies(path: str, body: dict[str, Any]) -> tuple[int, Any]:
            nonlocal update
            update += path == "/collective_rpc"
            return (503, {"error": "gone"}) if update > 3 else replies(path, body)  # one is that of the probe

        server.reply = dies
        failed = ran("broken", code=1)
        assert "no answer after 2 tries; the last: HTTP 503 Service Unavailable" in failed.stderr
        assert "konomi ppo --resume" in failed.stderr and "runs/broken" in failed.stderr
        server.reply = replies
        ran("broken", "--resume", "runs/broken", "--json")
        assert metrics("broken") == told


@pytest.mark.usefixtures("fresh_accelerator")
def test_what_is_wrong_with_the_server_is_told_before_a_run(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(load_causal_lm(ModelConfig(name="lm")).model, context=11) as server:
        for settings, message in (
            (["rollout.server.url=http://127.0.0.1:9"], "rollout.server http://127.0.0.1:9: "),
            ([f"rollout.server.url={server.url}", "rollout.server.model=other"], "serves tiny; name one of them"),
            ([f"rollout.server.url={server.url}"], "its context of 11 tokens is too short"),
            (["rollout.server.url=nowhere"], "rollout.server: url: not an address"),
            (["rollout.server.timeout=5"], "rollout.server: timeout is of no use without url"),
        ):
            assert message in konomi("ppo", "ppo.toml", *sets(*settings), code=2).stderr
            assert not Path("runs").exists()
        assert konomi("sample", "sample.toml", *sets(f"rollout.server.url={server.url}"), code=2)
