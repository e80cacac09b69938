"""konomi (好み: what one likes better): RLHF end to end.

The names below are the public interface. They are imported when first used, so that ``import konomi`` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from konomi.version import __version__ as __version__

if TYPE_CHECKING:
    from konomi.config import (
        BondConfig,
        ClassifierReward,
        CompareConfig,
        DataConfig,
        DPOJob,
        FunctionReward,
        GRPOConfig,
        HttpReward,
        JudgeJob,
        LoraConfig,
        ModelConfig,
        ModelReward,
        PPOConfig,
        PPOJob,
        ReinforceConfig,
        RewardJob,
        RLOOConfig,
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
    from konomi.data.prompts import load_prompts, split_held_out
    from konomi.data.records import Candidate, Pair, Prompt, Ranking, Score, Task
    from konomi.data.tokens import Tokens
    from konomi.errors import ConfigError, DataError, KonomiError, ModelError, RunError
    from konomi.jobs.compare import compare_models
    from konomi.jobs.dpo import run_dpo
    from konomi.jobs.judge import run_judge
    from konomi.jobs.pipeline import run_pipeline
    from konomi.jobs.ppo import run_ppo
    from konomi.jobs.reward import run_reward
    from konomi.jobs.sample import run_sample
    from konomi.jobs.sft import run_sft
    from konomi.jobs.train import train
    from konomi.models.load import load_causal_lm
    from konomi.models.lora import add_adapters
    from konomi.models.policy import Policy, make_reference
    from konomi.models.reward_files import open_reward_model
    from konomi.report.page import write_report
    from konomi.rewards import build_reward
    from konomi.runs.directory import RunDir
    from konomi.runs.observer import StepResult
    from konomi.training.ppo import PPOTrainer

_HOME = {
    name: module
    for module, names in {
        "konomi.config":
            "BondConfig ClassifierReward CompareConfig DPOJob DataConfig FunctionReward GRPOConfig HttpReward JudgeJob "
            "LoraConfig ModelConfig ModelReward PPOConfig PPOJob RLOOConfig ReinforceConfig RewardJob RolloutConfig RunConfig "
            "SFTConfig SFTData SFTJob SampleJob SumReward load_config",
        "konomi.config.pipeline": "load_pipeline",
        "konomi.data.formats": "read_comparisons read_scores read_tasks write_records",
        "konomi.data.records": "Candidate Pair Prompt Ranking Score Task",
        "konomi.data.prompts": "load_prompts split_held_out",
        "konomi.data.tokens": "Tokens",
        "konomi.errors": "ConfigError DataError KonomiError ModelError RunError",
        "konomi.jobs.compare": "compare_models",
        "konomi.jobs.dpo": "run_dpo",
        "konomi.jobs.judge": "run_judge",
        "konomi.jobs.pipeline": "run_pipeline",
        "konomi.jobs.ppo": "run_ppo",
        "konomi.jobs.reward": "run_reward",
        "konomi.jobs.sample": "run_sample",
        "konomi.jobs.sft": "run_sft",
        "konomi.jobs.train": "train",
        "konomi.models.load": "load_causal_lm",
        "konomi.models.lora": "add_adapters",
        "konomi.models.policy": "Policy make_reference",
        "konomi.models.reward_files": "open_reward_model",
        "konomi.report.page": "write_report",
        "konomi.rewards": "build_reward",
        "konomi.runs.directory": "RunDir",
        "konomi.runs.observer": "StepResult",
        "konomi.training.ppo": "PPOTrainer",
    }.items()
    for name in names.split()
}  # fmt: skip
"""Public name -> its module."""

__all__ = [
    "BondConfig", "Candidate", "ClassifierReward", "CompareConfig", "ConfigError", "DPOJob", "DataConfig", "DataError",
    "FunctionReward", "GRPOConfig", "HttpReward", "JudgeJob", "KonomiError", "LoraConfig", "ModelConfig", "ModelError",
    "ModelReward", "PPOConfig", "PPOJob", "PPOTrainer", "Pair", "Policy", "Prompt", "RLOOConfig", "Ranking",
    "ReinforceConfig", "RewardJob", "RolloutConfig", "RunConfig", "RunDir", "RunError", "SFTConfig", "SFTData", "SFTJob",
    "SampleJob", "Score", "StepResult", "SumReward", "Task", "Tokens", "add_adapters", "build_reward", "compare_models",
    "load_causal_lm", "load_config", "load_pipeline", "load_prompts", "make_reference", "open_reward_model",
    "read_comparisons", "read_scores", "read_tasks", "run_dpo", "run_judge", "run_pipeline", "run_ppo", "run_reward",
    "run_sample", "run_sft", "split_held_out", "train", "write_records", "write_report",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'konomi' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
