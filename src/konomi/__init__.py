"""konomi (好み: what one likes better): RLHF end to end.

The names below are the public interface. They are imported when first used, so that ``import konomi`` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from konomi.version import __version__ as __version__

if TYPE_CHECKING:
    from konomi.config import (
        ClassifierReward,
        CompareConfig,
        DataConfig,
        FunctionReward,
        HttpReward,
        JudgeJob,
        ModelConfig,
        ModelReward,
        PPOConfig,
        PPOJob,
        RewardJob,
        RolloutConfig,
        RunConfig,
        SampleJob,
        SFTConfig,
        SFTData,
        SFTJob,
        SumReward,
        load_config,
    )
    from konomi.config.pipeline import load_pipeline
    from konomi.data.formats import read_comparisons, read_scores, read_tasks, write_records
    from konomi.data.records import Candidate, Pair, Prompt, Ranking, Score, Task
    from konomi.data.sources import load_prompts, split_held_out
    from konomi.data.tokens import Tokens
    from konomi.errors import ConfigError, DataError, KonomiError, ModelError, RunError
    from konomi.jobs.compare import compare_models
    from konomi.jobs.judge import run_judge
    from konomi.jobs.pipeline import run_pipeline
    from konomi.jobs.ppo import run_ppo
    from konomi.jobs.reward import run_reward
    from konomi.jobs.sample import run_sample
    from konomi.jobs.sft import run_sft
    from konomi.jobs.train import train
    from konomi.models.load import load_causal_lm
    from konomi.models.policy import Policy, make_reference
    from konomi.models.reward_files import open_reward_model
    from konomi.report.page import write_report
    from konomi.rewards import build_reward
    from konomi.runs.directory import RunDir
    from konomi.runs.observer import StepResult
    from konomi.training.ppo import PPOTrainer

_HOME = {
    "Candidate": "konomi.data.records",
    "ClassifierReward": "konomi.config",
    "CompareConfig": "konomi.config",
    "ConfigError": "konomi.errors",
    "DataConfig": "konomi.config",
    "DataError": "konomi.errors",
    "FunctionReward": "konomi.config",
    "HttpReward": "konomi.config",
    "JudgeJob": "konomi.config",
    "KonomiError": "konomi.errors",
    "ModelConfig": "konomi.config",
    "ModelError": "konomi.errors",
    "ModelReward": "konomi.config",
    "PPOConfig": "konomi.config",
    "PPOJob": "konomi.config",
    "PPOTrainer": "konomi.training.ppo",
    "Pair": "konomi.data.records",
    "Policy": "konomi.models.policy",
    "Prompt": "konomi.data.records",
    "Ranking": "konomi.data.records",
    "RewardJob": "konomi.config",
    "RolloutConfig": "konomi.config",
    "RunConfig": "konomi.config",
    "RunDir": "konomi.runs.directory",
    "RunError": "konomi.errors",
    "SFTConfig": "konomi.config",
    "SFTData": "konomi.config",
    "SFTJob": "konomi.config",
    "SampleJob": "konomi.config",
    "Score": "konomi.data.records",
    "StepResult": "konomi.runs.observer",
    "SumReward": "konomi.config",
    "Task": "konomi.data.records",
    "Tokens": "konomi.data.tokens",
    "build_reward": "konomi.rewards",
    "compare_models": "konomi.jobs.compare",
    "load_causal_lm": "konomi.models.load",
    "load_config": "konomi.config",
    "load_pipeline": "konomi.config.pipeline",
    "load_prompts": "konomi.data.sources",
    "make_reference": "konomi.models.policy",
    "open_reward_model": "konomi.models.reward_files",
    "read_comparisons": "konomi.data.formats",
    "read_scores": "konomi.data.formats",
    "read_tasks": "konomi.data.formats",
    "run_judge": "konomi.jobs.judge",
    "run_pipeline": "konomi.jobs.pipeline",
    "run_ppo": "konomi.jobs.ppo",
    "run_reward": "konomi.jobs.reward",
    "run_sample": "konomi.jobs.sample",
    "run_sft": "konomi.jobs.sft",
    "split_held_out": "konomi.data.sources",
    "train": "konomi.jobs.train",
    "write_records": "konomi.data.formats",
    "write_report": "konomi.report.page",
}

__all__ = [
    "Candidate",
    "ClassifierReward",
    "CompareConfig",
    "ConfigError",
    "DataConfig",
    "DataError",
    "FunctionReward",
    "HttpReward",
    "JudgeJob",
    "KonomiError",
    "ModelConfig",
    "ModelError",
    "ModelReward",
    "PPOConfig",
    "PPOJob",
    "PPOTrainer",
    "Pair",
    "Policy",
    "Prompt",
    "Ranking",
    "RewardJob",
    "RolloutConfig",
    "RunConfig",
    "RunDir",
    "RunError",
    "SFTConfig",
    "SFTData",
    "SFTJob",
    "SampleJob",
    "Score",
    "StepResult",
    "SumReward",
    "Task",
    "Tokens",
    "build_reward",
    "compare_models",
    "load_causal_lm",
    "load_config",
    "load_pipeline",
    "load_prompts",
    "make_reference",
    "open_reward_model",
    "read_comparisons",
    "read_scores",
    "read_tasks",
    "run_judge",
    "run_pipeline",
    "run_ppo",
    "run_reward",
    "run_sample",
    "run_sft",
    "split_held_out",
    "train",
    "write_records",
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
