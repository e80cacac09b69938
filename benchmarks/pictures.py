"""The pictures of the documents: a run's report, a reward model's, and the ranking page, in English and in Japanese.

    python benchmarks/pictures.py [--run RUN] [--reward RUN] [--judge RUN] [--out docs]

Without --run, `konomi demo --quick` makes one. The reward model's page, and the report of a run against a reward model, are
taken only of runs that are given. Needs chromium.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from konomi.report.page import write_report

ROOT = Path(__file__).resolve().parents[1]
KONOMI = [sys.executable, "-m", "konomi"]
LANGUAGES = {"en": "en-US", "ja": "ja-JP"}
WIDTH, HEIGHT = 1180, 1500
TEXTS = {
    "en": ("Hotel reviews", "The people at the front desk", [
        "did what they had to do. Check-in took a while because there was only one of them.",
        "the front desk the desk people were good good, very people, and the desk was also good.",
        "were kind and quick, although we arrived after midnight. They told us where to find something to eat at that hour.",
    ]),
    "ja": ("宿の感想", "フロントの方の対応は", [
        "普通でした。担当の方が一人だけだったので、チェックインに少し時間がかかりました。",
        "フロントがフロントの対応が良い良いで、対応はフロントでした。",
        "夜遅くの到着でしたが、とても親切で手際のよいものでした。開いている店も教えていただきました。",
    ]),
}  # fmt: skip
"""Title, prompt and candidates that the ranking page is shown with."""


@contextmanager
def browser() -> Iterator[Any]:
    """Chromium, without a window."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        sys.exit("there is no chromium: apt-get install chromium fonts-noto-cjk")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


def page(chromium: Any, lang: str, height: int = HEIGHT) -> Any:
    """A new page in a browser of that language."""
    context = chromium.new_context(viewport={"width": WIDTH, "height": height}, locale=LANGUAGES[lang], color_scheme="light")
    return context.new_page()


def report(chromium: Any, run: Path, out: Path, name: str, languages: tuple[str, ...] = ("en", "ja")) -> None:
    """The beginning of a run's report, written anew, as ``NAME-LANG.png``; of one language ``NAME.png``."""
    address = write_report(run).absolute().as_uri()
    for lang in languages:
        opened = page(chromium, lang)
        opened.goto(address)
        opened.screenshot(path=out / (f"{name}-{lang}.png" if len(languages) > 1 else f"{name}.png"))


def ranking_page(chromium: Any, where: Path, out: Path) -> None:
    """A task that is being ranked, as ``label-LANG.png``."""
    for lang, (title, prompt, candidates) in TEXTS.items():
        task = {"version": 1, "prompt": prompt, "candidates": [{"text": text} for text in candidates]}
        file = where / f"{lang}.jsonl"
        file.write_text(json.dumps(task, ensure_ascii=False) + "\n", encoding="utf-8")
        command = [*KONOMI, "label", str(where / title), "--candidates", str(file)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as server:
            assert server.stdout is not None
            try:
                address = next(found[0] for line in server.stdout if (found := re.search(r"http://\S+", line)))
                opened = page(chromium, lang, 760)
                opened.goto(address)
                opened.locator("#seen").click()
                opened.locator(".card").first.wait_for()
                opened.keyboard.press("1")
                opened.keyboard.press("2")
                opened.screenshot(path=out / f"label-{lang}.png")
            finally:
                server.terminate()


def quick_demo(where: Path) -> Path:
    """A run of the quick demo."""
    command = [*KONOMI, "demo", "--quick", "--out", str(where), "--set", "run.name=demo", "--set", "run.mlflow=false"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return where / "demo"


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, what in (("run", "a PPO run"), ("reward", "a reward model's run"), ("judge", "a PPO run against that model")):
        parser.add_argument(f"--{name}", type=Path, metavar="RUN", help=what)
    parser.add_argument("--out", type=Path, default=ROOT / "docs", metavar="DIR")
    given = parser.parse_args()
    with browser() as chromium, tempfile.TemporaryDirectory() as temporary:
        where = Path(temporary)
        report(chromium, given.run or quick_demo(where), given.out, "report")
        if given.reward:
            report(chromium, given.reward, given.out, "reward-report")
        if given.judge:
            report(chromium, given.judge, given.out, "judge-report", ("en",))
        ranking_page(chromium, where, given.out)


if __name__ == "__main__":
    main()
