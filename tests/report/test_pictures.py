"""The pictures of the documents, taken of a run that is given."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest
from some_runs import add_compare, ppo_run, reward_run

from browsing import CHROMIUM

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "pictures.py"


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")
def test_pictures_of_runs_that_are_given(tmp_path: Path) -> None:
    run, reward, out = ppo_run(tmp_path, 2), reward_run(tmp_path, name="reward"), tmp_path / "out"
    add_compare(run)
    out.mkdir()
    command = [sys.executable, str(SCRIPT), "--run", str(run.path), "--reward", str(reward.path), "--judge", str(run.path)]
    subprocess.run([*command, "--out", str(out)], check=True, timeout=300)
    pictures = {f"{name}-{lang}.png" for name in ("report", "reward-report", "label") for lang in ("en", "ja")}
    assert {path.name for path in out.iterdir()} == pictures | {"judge-report.png"}
    for path in out.iterdir():
        assert struct.unpack(">I", path.read_bytes()[16:20]) == (1180,), path.name
