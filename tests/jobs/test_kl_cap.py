"""A run over the KL cap ends with the last checkpoint whose policy was measured to be under it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import konomi
from konomi.runs.directory import RunDir
from konomi.runs.observer import Observer
from tiny import save_tiny

TEXTS = [f"{a}{b} and so on" for a in "abcdefgh" for b in "xyz"]


class Warned(Observer):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_the_last_good_checkpoint_is_left(tmp_path: Path, fresh_accelerator: None) -> None:
    lm = save_tiny(tmp_path / "lm", "gpt2")

    def run(cap: float) -> tuple[dict[str, Any], RunDir, list[str]]:
        observer = Warned()
        result = konomi.train(
            str(lm), TEXTS, lambda responses: [text.count("a") for text in responses], out=str(tmp_path / "runs"),
            observer=observer, episodes=80, batch_size=8, mini_batch_size=4, baseline_samples=8, response_tokens=(4, 8),
            learning_rate=1e-2, kl_controller="fixed", kl_cap=cap, data={"held_out": 0.2},
            run={"mlflow": False, "save_every": 1, "keep": 99}, guard={"retries": 0},
        )  # fmt: skip
        return result, RunDir.open(result["run"]), observer.warnings

    _, free, _ = run(1e6)
    kls = [line["objective/kl"] for line in free.read_metrics()]
    over = next(i for i in range(4, len(kls)) if kls[i] > max(kls[:i]))  # the KL is that of the policy after update `over`
    result, stopped, warnings = run((max(kls[:over]) + kls[over]) / 2)
    assert (result["status"], result["updates"]) == ("stopped", over + 1)
    assert any(f"The model is the one after update {over - 1}, the last good checkpoint" in text for text in warnings)
    assert sorted(path.name for path in stopped.checkpoints.iterdir()) == [f"update-{i:05d}" for i in range(1, over)]
    for file in ("model.safetensors", "value_head.safetensors"):
        kept, expected = (load_file(path / file) for path in (stopped.model, free.checkpoints / f"update-{over - 1:05d}"))
        assert kept.keys() == expected.keys() and all(torch.equal(kept[name], expected[name]) for name in kept)
