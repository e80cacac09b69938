"""The whole way, in the tiny world and through the command line: a model writes, a person in a real browser ranks, a reward
model learns from the rankings, PPO trains against it, and the same person judges before and after, blind."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make install-dev")

from playwright.sync_api import Browser, Page
from typer.testing import CliRunner

from browsing import watched
from command_line import started, wait_until
from konomi.cli import app
from tiny import save_tiny

PIPELINE = """
name = "tiny"
mlflow = false

[stages.candidates]
do = "sample"
models.lm.name = "lm"
rollout.response_tokens = [5, 6]
rollout.stop = "length"
data.prompts = "prompts.txt"
sample.candidates = 4

[stages.rank]
do = "label"
candidates = "@candidates.candidates"
label.project = "people"

[stages.taste]
do = "reward"
model.name = "lm"
data.file = "@rank.rankings"
normalize.samples = "@candidates.candidates"
train = { epochs = 6, batch_size = 8, learning_rate = 3e-3, max_length = 64 }

[stages.policy]
do = "ppo"
model.name = "lm"
data.prompts = "prompts.txt"
rollout.response_tokens = [5, 6]
rollout.stop = "length"
reward = { kind = "model", name = "@taste.model" }
compare.samples = 8
ppo = { episodes = 320, batch_size = 32, baseline_samples = 32, learning_rate = 3e-3, kl_coef = 0.01, kl_cap = 60 }
"""


@contextmanager
def konomi(where: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, that has ended by itself or is killed."""
    with (
        (where / "log.txt").open("w", encoding="utf-8") as heard,
        started(*arguments, stdout=heard, stderr=subprocess.STDOUT) as process,
    ):
        yield process


def address(where: Path, process: subprocess.Popen[str]) -> str:
    """Where the page is, as the command prints it."""
    found: list[str] = []

    def printed() -> bool:
        found[:] = re.findall(r"http://\S+/start/\S+", (where / "log.txt").read_text(encoding="utf-8"))
        return bool(found)

    wait_until(printed, process)
    return found[0]


def come(browser: Browser, start: str) -> tuple[Page, Any]:
    page = browser.new_page(locale="ja-JP")
    page.set_default_timeout(60_000)
    complaints = watched(page).__enter__()
    page.goto(start)
    return page, complaints


def rank(page: Page) -> str:
    """Rank the texts of a task by how many early letters are in them, with digits, and send it; which task it was."""
    page.locator("#task[data-shown]:not([hidden])").wait_for()
    shown = str(page.locator("#task").get_attribute("data-shown"))
    counts = [sum("a" <= letter <= "h" for letter in text) for text in page.locator(".card .text").all_inner_texts()]
    for count in counts:
        page.keyboard.press(str(1 + sum(other > count for other in counts)))
    page.keyboard.press("Enter")
    page.locator(f"#task[data-shown]:not([hidden]):not([data-shown='{shown}']), #done:not([hidden])").first.wait_for()
    return shown


def in_process(*arguments: str) -> str:
    """What a command without a page prints."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_from_people_to_ppo_and_back_to_people(tmp_path: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "lm", "llama")
    words = [a + b for a in "abcdefgh" for b in "ijklm"]
    (tmp_path / "prompts.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (tmp_path / "pipe.toml").write_text(PIPELINE, encoding="utf-8")
    # stopped in the middle, nothing is lost
    with konomi(tmp_path, "run", "pipe.toml") as process:
        page, complaints = come(browser, address(tmp_path, process))
        page.wait_for_url("**/guidelines")
        page.locator("#seen").click()
        first = {rank(page) for _ in range(5)}
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, (tmp_path / "log.txt").read_text("utf-8")
        assert "stopped; go on with" in (tmp_path / "log.txt").read_text("utf-8").replace("\n", " ")
        page.close()
    with konomi(tmp_path, "run", "pipe.toml") as process:
        page, complaints = come(browser, address(tmp_path, process))
        assert not first & {rank(page) for _ in range(25)}
        page.locator('nav a[href="/people"]').click()  # enough of it: the person closes the collection
        page.locator("#freeze").click()
        page.locator("#sure-do").click()
        page.locator('nav a[href="/"]').click()
        page.locator("#done-for-good").wait_for()
        assert process.wait(300) == 0, (tmp_path / "log.txt").read_text("utf-8")
        page.close()
    run = tmp_path / "runs" / "tiny"
    statistics = json.loads((run / "rank" / "said" / "statistics.json").read_text("utf-8"))
    assert 90 <= statistics["comparisons"] <= 180
    assert statistics["oneself"]["share"]["value"] == 1.0  # some came again, and the person ranks by rule
    found = json.loads((run / "taste" / "eval.json").read_text("utf-8"))
    assert found["held_out"]["accuracy"]["value"] > 0.6
    gained = json.loads((run / "policy" / "compare.json").read_text("utf-8"))["difference"]
    assert gained["low"] > 0
    # once more nothing is asked, and nothing would run again
    assert [each["action"] for each in json.loads(in_process("run", "pipe.toml", "--dry-run", "--json"))] == ["skip"] * 4
    # the same person judges what came of it, blind
    in_process("compare", str(run / "policy"), "--people", "blind")
    with konomi(tmp_path, "label", "blind") as process:
        page, complaints = come(browser, address(tmp_path, process))
        page.wait_for_url("**/guidelines")
        page.locator("#seen").click()
        while page.locator("#done").is_hidden():
            rank(page)
        page.close()
    in_process("export", "blind", "--out", "verdict", "--json")
    verdict = json.loads((tmp_path / "verdict" / "verdict.json").read_text("utf-8"))
    assert verdict["wins"] > 2 * verdict["losses"] > 0 or verdict["losses"] == 0
    assert verdict["reward_model"]["agreement"]["value"] > 0.5
    assert complaints == []
