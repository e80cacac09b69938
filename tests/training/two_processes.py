"""A run by one process or several, started by test_processes.py: python two_processes.py OUT_DIRECTORY BATCH MINI_BATCH."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch

from konomi.errors import ConfigError
from tiny_run import facts, tiny_trainer


def main(out: Path, batch: int, mini_batch: int) -> None:
    trainer = tiny_trainer(
        "llama", precision="fp64", episodes=3 * batch, batch_size=batch, mini_batch_size=mini_batch, micro_batch_tokens=40,
        responses_per_prompt=2,
    )  # fmt: skip
    steps = [facts(step.metrics) for step in trainer]
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in trainer.policy.parameters())).hexdigest()
    trainer.save(out / "checkpoint")
    trainer.engine.accelerator.wait_for_everyone()
    total = float(sum(p.detach().abs().sum() for p in trainer.policy.parameters()))
    refused = ""
    if trainer.processes > 1:
        try:
            tiny_trainer(batch_size=batch, mini_batch_size=1)
        except ConfigError as error:
            refused = str(error)
    rank = trainer.engine.accelerator.process_index
    found = {"processes": trainer.processes, "steps": steps, "digest": digest, "total": total, "refused": refused}
    (out / f"{trainer.processes}-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    trainer.engine.accelerator.end_training()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
