"""What a launcher sets, and the launcher files of the examples. What the processes do is in tests/training and tests/jobs."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from konomi.errors import ConfigError
from konomi.runs import processes
from konomi.runs.environment import settle_processes

FILES = sorted((Path(__file__).resolve().parents[2] / "examples" / "accelerate").glob("*.yaml"))


def test_launcher_files_are_read_by_accelerate() -> None:
    assert len(FILES) >= 3
    for file in FILES:
        config = load_config_from_file(str(file))
        comment = "\n".join(line for line in file.read_text("utf-8").splitlines() if line.startswith("#"))
        command = f"accelerate launch --config_file examples/accelerate/{file.name}"
        assert command in comment and "-m konomi ppo CONFIG.toml" in comment, file.name
        named = {"two": 2, "eight": 8}.get(file.name.partition("-")[0], config.num_processes)
        assert named in (config.num_processes, config.num_machines) and config.num_processes > 1, file.name


def test_half_of_a_launcher_is_refused_and_a_whole_one_keeps_what_accelerate_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ConfigError, match=re.escape("need (RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT)")):
        settle_processes("konomi ppo", several=True)
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    settle_processes("konomi ppo", several=True)
    assert os.environ["RANK"] == "1" and "ACCELERATE_MIXED_PRECISION" not in os.environ
    assert processes.several()
    with pytest.raises(ConfigError, match="konomi label works in one process"):
        settle_processes("konomi label", several=False)


def test_one_process_asks_nobody() -> None:
    assert (processes.count(), processes.index(), processes.is_main()) == (1, 0, True)
    assert processes.gather("x") == ["x"] and processes.first(lambda: 3) == 3
    assert processes.divided([1, 2, 3], lambda part: [2 * each for each in part]) == [2, 4, 6]
