"""konomi (好み: what one likes better): RLHF end to end.

The names below are the public interface. They are imported when first used, so that ``import konomi`` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from konomi.compare import compare_models
    from konomi.config import (
        ClassifierReward,
        CompareConfig,
        DataConfig,
        FunctionReward,
        HttpReward,
        ModelConfig,
        PPOConfig,
        PPOJob,
        RolloutConfig,
        RunConfig,
        SFTConfig,
        SFTData,
        SFTJob,
        SumReward,
        load_config,
    )
    from konomi.data.records import Prompt
    from konomi.data.sources import load_prompts, split_held_out
    from konomi.data.tokens import Tokens
    from konomi.errors import ConfigError, DataError, KonomiError, ModelError, RunError
    from konomi.jobs.ppo import run_ppo
    from konomi.jobs.sft import run_sft
    from konomi.models.load import load_causal_lm
    from konomi.models.policy import Policy, make_reference
    from konomi.report import write_report
    from konomi.rewards import build_reward
    from konomi.runs import RunDir
    from konomi.train.loop import StepResult
    from konomi.train.ppo import PPOTrainer

__version__ = "0.1.0"

_HOME = {
    "ClassifierReward": "konomi.config",
    "CompareConfig": "konomi.config",
    "ConfigError": "konomi.errors",
    "DataConfig": "konomi.config",
    "DataError": "konomi.errors",
    "FunctionReward": "konomi.config",
    "HttpReward": "konomi.config",
    "KonomiError": "konomi.errors",
    "ModelConfig": "konomi.config",
    "ModelError": "konomi.errors",
    "PPOConfig": "konomi.config",
    "PPOJob": "konomi.config",
    "PPOTrainer": "konomi.train.ppo",
    "Policy": "konomi.models.policy",
    "Prompt": "konomi.data.records",
    "RolloutConfig": "konomi.config",
    "RunConfig": "konomi.config",
    "RunDir": "konomi.runs",
    "RunError": "konomi.errors",
    "SFTConfig": "konomi.config",
    "SFTData": "konomi.config",
    "SFTJob": "konomi.config",
    "StepResult": "konomi.train.loop",
    "SumReward": "konomi.config",
    "Tokens": "konomi.data.tokens",
    "build_reward": "konomi.rewards",
    "compare_models": "konomi.compare",
    "load_causal_lm": "konomi.models.load",
    "load_config": "konomi.config",
    "load_prompts": "konomi.data.sources",
    "make_reference": "konomi.models.policy",
    "run_ppo": "konomi.jobs.ppo",
    "run_sft": "konomi.jobs.sft",
    "split_held_out": "konomi.data.sources",
    "write_report": "konomi.report",
}

__all__ = [
    "ClassifierReward",
    "CompareConfig",
    "ConfigError",
    "DataConfig",
    "DataError",
    "FunctionReward",
    "HttpReward",
    "KonomiError",
    "ModelConfig",
    "ModelError",
    "PPOConfig",
    "PPOJob",
    "PPOTrainer",
    "Policy",
    "Prompt",
    "RolloutConfig",
    "RunConfig",
    "RunDir",
    "RunError",
    "SFTConfig",
    "SFTData",
    "SFTJob",
    "StepResult",
    "SumReward",
    "Tokens",
    "build_reward",
    "compare_models",
    "load_causal_lm",
    "load_config",
    "load_prompts",
    "make_reference",
    "run_ppo",
    "run_sft",
    "split_held_out",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'konomi' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
