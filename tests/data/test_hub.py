"""Hub data sets, against a hub in miniature on this machine.

The hub's libraries read their address and the place of their cache at import, so they are tried in another process.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

import konomi
from hub import CONVERTED, hub_server
from konomi.data.sources import hub_problem

REVIEWS = "".join(json.dumps({"review": f"text {i}", "label": i}) + "\n" for i in range(5)).encode()


def parquet(text: str) -> bytes:
    """A file with one row."""
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": [text], "label": [2]}), buffer)
    return buffer.getvalue()


DIALOGUE = "\n\nHuman: Hi\n\nAssistant:"
DIALOGUES = json.dumps({"chosen": f"{DIALOGUE} Hello!", "rejected": f"{DIALOGUE} Go."}).encode() + b"\n"
FILES = {
    "someone/reviews": {
        "README.md": b"# reviews\n",
        "train.jsonl": REVIEWS,
        "test.jsonl": REVIEWS[: len(REVIEWS) // 5],
    },
    "someone/dialogues": {"README.md": b"# dialogues\n", "train.jsonl": DIALOGUES, "test.jsonl": DIALOGUES},
    "someone/converted": {f"{part}/train/0000.parquet": parquet(part) for part in ("english", "japanese")},
    "someone/script": {"README.md": b"# script\n", "script.py": b"raise SystemExit\n"},
}

CASES = """
import json, sys
from konomi.config import DataConfig
from konomi.data.formats import read_comparisons
from konomi.data.prompts import load_prompts
from konomi.data.sources import Hub
from konomi.errors import KonomiError

def run(comparisons=None, **settings):
    try:
        if comparisons:
            return [[pair.prompt, pair.chosen, pair.rejected] for pair in read_comparisons(comparisons, hub=Hub(**settings))]
        return [[prompt.text, prompt.columns] for prompt in load_prompts(DataConfig(**settings))]
    except KonomiError as error:
        return type(error).__name__ + ": " + str(error)

for case in json.loads(sys.argv[1]):
    print("RESULT", json.dumps(run(**case)), flush=True)
"""

CASES_ONLINE: dict[str, dict[str, Any]] = {
    "plain": {"prompts": "someone/reviews", "column": "review"},
    "split and limit": {"prompts": "someone/reviews", "column": "review", "split": "test", "limit": 2},
    "column": {"prompts": "someone/reviews"},
    "split": {"prompts": "someone/reviews", "column": "review", "split": "nope"},
    "revision": {"prompts": "someone/reviews", "column": "review", "revision": "nope"},
    "subset": {"prompts": "someone/converted", "subset": "japanese", "revision": CONVERTED},
    "script": {"prompts": "someone/script"},
    "unknown": {"prompts": "someone/nothing"},
    "comparisons": {"comparisons": "someone/dialogues", "split": "test"},
    "comparisons, split": {"comparisons": "someone/dialogues", "split": "nope"},
    "comparisons, columns": {"comparisons": "someone/reviews"},
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("hub")
    for repo, files in FILES.items():
        for name, content in files.items():
            (root / repo / name).parent.mkdir(parents=True, exist_ok=True)
            (root / repo / name).write_bytes(content)
    with hub_server(root) as (_, address):
        yield address


def run(cases: dict[str, dict[str, Any]], home: Path, endpoint: str) -> dict[str, Any]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "DATASETS_"))}
    environ |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    environ["PYTHONPATH"] = str(Path(konomi.__file__).parents[1])
    command = [sys.executable, "-c", CASES, json.dumps(list(cases.values()))]
    done = subprocess.run(command, cwd=home, env=environ, capture_output=True, text=True, timeout=120)
    lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert len(lines) == len(cases), done.stderr
    return dict(zip(cases, map(json.loads, lines), strict=True))


@pytest.mark.parametrize("path", ["", "/datasets/someone/nothing"])
def test_a_hub_that_answers_is_reachable(hub: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub + path)
    assert hub_problem() is None
    # its certificate is not trusted, or as here it has none: for the hub's own client to judge
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.replace("http:", "https:"))
    assert hub_problem() is None


def test_hub_data_sets(hub: str, tmp_path: Path) -> None:
    online = run(CASES_ONLINE, tmp_path, hub)
    every = [[f"text {i}", {"label": i}] for i in range(5)]
    assert online["plain"] == every
    assert online["split and limit"] == every[:1]
    assert online["subset"] == [["japanese", {"label": 2}]]
    assert online["column"] == ("DataError: someone/reviews: no column 'text'; it has: review, label. Set data.column")
    assert "Should be one of ['train', 'test']" in online["split"]
    assert "Revision 'nope' doesn't exist" in online["revision"]
    assert 'set data.revision = "refs/convert/parquet"' in online["script"]
    assert "someone/nothing: no such file; as a data set of the hub: Dataset" in online["unknown"]
    assert online["comparisons"] == [[DIALOGUE, " Hello!", " Go."]]
    assert "(check the name, subset, split and revision)" in online["comparisons, split"]
    assert "someone/reviews: row 1: the columns review, label are those of no known format" in online["comparisons, columns"]

    # no one listens on port 9: what is in the cache is used, the rest is told
    offline = run({name: CASES_ONLINE[name] for name in ("plain", "script")}, tmp_path, "http://127.0.0.1:9")
    assert offline["plain"] == every
    assert "not in the cache and cannot be fetched (http://127.0.0.1:9" in offline["script"]
