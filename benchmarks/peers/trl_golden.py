"""Advantages, losses and gradients of RLOO and GRPO as TRL 1.16 computes them, for tests/golden/critic_free.json.

The lines that turn rewards into advantages are taken from the trainers' source and run as they stand; the loss is
`_compute_loss`, of a trainer whose model gives the log-probabilities of the case. All in float64.

    python benchmarks/peers/trl_golden.py tests/golden/critic_free.json

Runs in an environment of its own: trl==1.16.0 torch==2.13.0, and the newest transformers that they take.
"""

from __future__ import annotations

import inspect
import json
import sys
import textwrap
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import trl
from trl.trainer import grpo_trainer, rloo_trainer

LENGTHS = [[4, 1, 3, 4, 2, 4], [5, 5, 5, 5], [1, 6, 2, 2, 3, 1, 4, 5]]
GROUPS = [3, 2, 4]
LOSSES = {"grpo": "grpo", "dapo": "dapo", "bnpo": "dapo", "dr_grpo": "dr_grpo"}
"""TRL's names and ours."""


def lines_of(trainer: Any, first: str, last: str) -> str:
    """The lines of `_generate_and_score_completions` from one that begins with ``first`` to one that begins with ``last``."""
    source = textwrap.dedent(inspect.getsource(trainer._generate_and_score_completions)).splitlines()
    begin = next(i for i, line in enumerate(source) if line.strip().startswith(first))
    end = next(i for i, line in enumerate(source) if i > begin and line.strip().startswith(last))
    return textwrap.dedent("\n".join(source[begin : end + 1]))


def drawn(number: int) -> dict[str, Any]:
    """The inputs of a case: log-probabilities of three policies, and a score of each response."""
    generator = torch.Generator().manual_seed(number)
    lengths, group = torch.tensor(LENGTHS[number % len(LENGTHS)]), GROUPS[number % len(LENGTHS)]
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).double()

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    old = -normal(*mask.shape).abs() - 0.1
    new, reference = old + 0.3 * normal(*mask.shape), old + 0.5 * normal(*mask.shape)
    scores = normal(len(lengths))
    if number % 4 == 3:
        scores[:group] = 0.5  # nothing to tell them apart
    names = {"mask": mask, "logprobs": new, "old_logprobs": old, "reference_logprobs": reference, "scores": scores}
    return {"group": group, **{name: x * mask if x.shape == mask.shape else x for name, x in names.items()}}


def trainer_of(kind: Any, settings: dict[str, Any]) -> Any:
    """A trainer that nothing was loaded for."""
    trainer = object.__new__(kind)
    accelerator = SimpleNamespace(
        num_processes=1, process_index=0, gather=lambda x: x, reduce=lambda x, reduction: x, gather_for_metrics=lambda x: x
    )
    args = SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1)
    plain = {
        "accelerator": accelerator, "args": args, "model": SimpleNamespace(training=True), "aux_loss_enabled": False,
        "reward_weights": torch.ones(1, dtype=torch.float64), "reward_clip_range": None, "normalize_advantages": False,
        "multi_objective_aggregation": "sum_then_normalize", "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None,
        "importance_sampling_level": "token", "use_vllm": False, "vllm_importance_sampling_correction": False,
        "_entropy_bonus_enabled": False, "current_gradient_accumulation_steps": 1, "_metrics": {"train": defaultdict(list)},
        "epsilon_low": settings["clip"], "epsilon_high": settings["clip"], "beta": settings["kl_coef"],
    }  # fmt: skip
    trainer.__dict__.update(plain | settings)
    return trainer


def loss_of(trainer: Any, case: dict[str, Any], advantages: torch.Tensor) -> dict[str, torch.Tensor]:
    """The loss and its gradient with respect to the log-probabilities."""
    new, mask = case["logprobs"].clone().requires_grad_(), case["mask"]
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (new, torch.zeros_like(new), None)
    ids = torch.zeros(mask.shape, dtype=torch.int64)
    loss = trainer._compute_loss(None, {
        "prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1] + 1, "completion_ids": ids, "completion_mask": mask,
        "advantages": advantages, "old_per_token_logps": case["old_logprobs"], "old_logps": (case["old_logprobs"] * mask).sum(1),
        "ref_per_token_logps": case["reference_logprobs"], "num_items_in_batch": mask.sum(),
    })  # fmt: skip
    (gradient,) = torch.autograd.grad(loss, new)
    return {"advantages": advantages, "loss": loss.detach(), "gradient": gradient}


def advantages_of(lines: str, module: Any, trainer: Any, case: dict[str, Any]) -> torch.Tensor:
    names = vars(module) | {
        "self": trainer, "rewards_per_func": case["scores"][:, None].clone(), "device": torch.device("cpu"),
        "num_generations": case["group"], "gather": lambda x: x, "completion_mask": case["mask"],
        "unscorable_mask": torch.zeros(len(case["scores"]), dtype=torch.bool),
        "old_per_token_logps": case["old_logprobs"], "ref_per_token_logps": case["reference_logprobs"],
    }  # fmt: skip
    exec(lines, names)
    found: torch.Tensor = names["advantages"]
    return found


def main() -> None:
    assert trl.__version__ == "1.16.0", trl.__version__
    cases = []
    rloo = lines_of(rloo_trainer.RLOOTrainer, "rewards = (rewards_per_func", "advantages = torch.nan_to_num")
    for number in range(4):
        case, settings = drawn(number), {"clip": (0.2, 0.5)[number % 2], "kl_coef": (0.05, 0.3)[number % 2]}
        trainer = trainer_of(rloo_trainer.RLOOTrainer, settings)
        expected = loss_of(trainer, case, advantages_of(rloo, rloo_trainer, trainer, case))
        cases.append({"kind": "rloo", **settings, **case, "expected": expected})
    grpo = lines_of(grpo_trainer.GRPOTrainer, "unscorable_mask =", "advantages = torch.nan_to_num")
    for number, (loss, ours) in enumerate(LOSSES.items()):
        for scale in ("group", "batch", "none"):
            case = drawn(10 + 3 * number + len(scale))
            settings = {"clip": 0.2, "kl_coef": (0.1, 0.05, 0.0, 0.2)[number]}
            own = {"loss_type": loss, "scale_rewards": scale, "max_completion_length": 7}
            trainer = trainer_of(grpo_trainer.GRPOTrainer, settings | own)
            expected = loss_of(trainer, case, advantages_of(grpo, grpo_trainer, trainer, case))
            cases.append({"kind": "grpo", "scale": scale, "loss": ours, "longest": 7, **settings, **case, "expected": expected})
    about = (
        "RLOO and GRPO, computed in float64 by TRL 1.16.0 (benchmarks/peers/trl_golden.py). mask: 1 = response token. The loss "
        "is that of one batch, the gradient is with respect to logprobs. RLOO has its KL in the reward, GRPO in the loss."
    )

    def plain(x: Any) -> Any:
        return x.tolist() if isinstance(x, torch.Tensor) else {k: plain(v) for k, v in x.items()} if isinstance(x, dict) else x

    rows = ",\n".join(json.dumps(plain(case)) for case in cases)
    Path(sys.argv[1]).write_text(f'{{"about": {json.dumps(about)}, "cases": [\n{rows}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
