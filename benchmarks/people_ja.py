"""The pipeline of examples/people-ja.toml from nothing, with a scripted person at the page in a real browser.

The script is no person: it reads the texts on the page, ranks them by the score of a sentiment classifier, without noise, with
the keyboard alone, and judges before and after in the same way. So what comes out shows that the way works from end to end, and
what a person of perfect constancy could reach with so many comparisons; people agree less.

Prints what stands in docs/results.md; with --write it puts it there, between the marks.

    python benchmarks/people_ja.py --out runs/people --write        needs playwright and chromium: make install-dev
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demo_seeds import ROOT, hardware, put
from judge_ja import interval
from playwright.sync_api import Page, sync_playwright

from konomi.config import ClassifierReward
from konomi.rewards import Reward, build_reward

CONFIG = ROOT / "examples" / "people-ja.toml"
MARK = "people"


@contextlib.contextmanager
def page_of(*arguments: str) -> Iterator[tuple[Page, subprocess.Popen[str]]]:
    """Run a command of konomi, and open the page whose address it prints."""
    command = [sys.executable, "-u", "-m", "konomi", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    assert process.stdout is not None
    start = ""
    for line in process.stdout:
        print(line, end="", flush=True)
        if "/start/" in line:
            start = line.split()[-1]
            break
    if not start:
        raise SystemExit(f"konomi {' '.join(arguments)}: no address was printed")
    with contextlib.ExitStack() as ending:
        ending.callback(process.kill)
        playwright = ending.enter_context(sync_playwright())
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("chromium-browser"), args=["--no-sandbox"]
        )
        page = browser.new_page(locale="ja-JP")
        page.goto(start)
        page.wait_for_url("**/guidelines")
        page.locator("#seen").click()
        ending.callback(browser.close)
        yield page, process


def work(page: Page, taste: Reward) -> int:
    """Rank until nothing is left or the collection is closed; how many tasks."""
    count, shown = 0, ""
    while True:
        page.locator(f"#done:not([hidden]), #task[data-shown]:not([hidden]):not([data-shown='{shown}'])").first.wait_for()
        if page.locator("#done").is_visible():
            return count
        shown = str(page.locator("#task").get_attribute("data-shown"))
        prompt, texts = page.locator("#prompt").inner_text(), page.locator(".card .text").all_inner_texts()
        worth = taste([prompt + text for text in texts], prompts=[prompt] * len(texts), responses=texts, columns={})
        for value in worth:
            page.keyboard.press(str(1 + sum(other > value for other in worth)))
        page.keyboard.press("Enter")
        count += 1


def konomi(*arguments: str) -> None:
    """Run a command to its end."""
    subprocess.run([sys.executable, "-m", "konomi", *arguments], cwd=ROOT, check=True)


def table(out: Path, tasks: int, minutes: float) -> str:
    """Markdown of what was found."""

    def read(name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((out / name).read_text(encoding="utf-8"))
        return found

    run = out / "people-ja"
    said, taste = read("people-ja/rank/said/statistics.json"), read("people-ja/taste/eval.json")
    compare, verdict = read("people-ja/policy/compare.json"), read("verdict/verdict.json")
    judge, held_out = compare["judges"]["sentiment"], taste["held_out"]
    seconds = {name: stage["seconds"] / 60 for name, stage in json.loads((run / "pipeline.json").read_text())["stages"].items()}
    rate, oneself = verdict["win_rate"], said["oneself"]
    lines = [
        "| what | figure (95 % interval) |",
        "|---|---|",
        f"| tasks ranked on the page | {tasks}, {said['comparisons']:,} comparisons and {said['ties']} ties; "
        f"with itself it agrees on {oneself['share']['value']:.0%} of {oneself['couples']} pairs |",
        f"| reward model, held-out comparisons | {interval(held_out['accuracy'])}, {held_out['prompts']} openings |",
        f"| reward model's score, before → after PPO | {compare['before']['score_mean']:.2f} → "
        f"{compare['after']['score_mean']:.2f}, difference {interval(compare['difference'], '+.2f')} |",
        f"| the classifier that the script ranks by | {judge['before']:.2f} → {judge['after']:.2f}, difference "
        f"**{interval(judge['difference'], '+.2f')}** |",
        f"| blind before/after on the page | after wins **{interval(rate, '.1%')}** of {verdict['votes']} |",
        f"| KL, nats/response | {compare['after']['kl']:.1f} |",
        f"| distinct-2, after / before | {compare['after']['distinct_2'] / compare['before']['distinct_2']:.0%} |",
        f"| minutes | {', '.join(f'{name} {each:.1f}' for name, each in seconds.items())}; with the blind part {minutes:.0f} |",
    ]
    return "\n".join([f"Hardware: {hardware()}.", "", *lines])


def main() -> None:
    """Run all, print the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, required=True, help="a directory that does not exist yet")
    arguments.add_argument("--comparisons", type=int, default=2000)
    arguments.add_argument("--write", action="store_true", help="put the table into docs/results.md")
    given = arguments.parse_args()
    out = given.out.absolute()
    taste, began = build_reward(ClassifierReward(name="embedded:asari")), time.monotonic()
    wanted = {"project": out / "people", "comparisons": given.comparisons}
    sets = [word for key, value in wanted.items() for word in ("--set", f"stages.rank.label.{key}={value}")]
    with page_of("run", str(CONFIG), "--out", str(out), *sets) as (page, process):
        tasks = work(page, taste)
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
        if process.wait():
            raise SystemExit("the pipeline did not come to its end")
    konomi("compare", str(out / "people-ja" / "policy"), "--people", str(out / "blind"))
    with page_of("label", str(out / "blind")) as (page, process):
        work(page, taste)
        process.terminate()
    konomi("export", str(out / "blind"), "--out", str(out / "verdict"))
    text = table(out, tasks, (time.monotonic() - began) / 60)
    print(text)
    if given.write:
        put(MARK, text)


if __name__ == "__main__":
    main()
