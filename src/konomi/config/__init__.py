"""Every decision of a run: one frozen model a stage, read from TOML, changed by ``--set section.key=value``.

A field's docstring says its unit, its usual range and what turning it up does; its default is the vetted setting.
Nothing here imports torch, so that a mistake is reported before a model is loaded.
"""

from __future__ import annotations

from konomi.config.algorithm import (
    ActorCriticConfig,
    AlgorithmConfig,
    BondConfig,
    GRPOConfig,
    ReinforceConfig,
    RLOOConfig,
    check_algorithm,
)
from konomi.config.candidates import (
    CompareJob,
    JudgeConfig,
    JudgeJob,
    LabelConfig,
    LabelJob,
    PickConfig,
    PickJob,
    SampleConfig,
    SampleJob,
)
from konomi.config.dpo import DPOConfig, DPOData, DPOJob
from konomi.config.model import LoraConfig, ModelConfig
from konomi.config.monitoring import EvaluationConfig, GuardConfig
from konomi.config.pipeline import VERBS, Pipeline, Stage, load_pipeline
from konomi.config.ppo import DataConfig, PPOConfig, PPOJob, RolloutConfig, RunConfig, SamplingConfig
from konomi.config.results import CompareConfig, LandConfig
from konomi.config.reward_model import EnsembleConfig, NormalizeConfig, RewardData, RewardJob, RewardTraining
from konomi.config.rewards import ClassifierReward, FunctionReward, HttpReward, ModelReward, RewardConfig, SumReward
from konomi.config.section import SavedConfig, Section, StageConfig, build, load_config
from konomi.config.server import ServerConfig
from konomi.config.sft import SFTConfig, SFTData, SFTJob

__all__ = [
    "VERBS", "ActorCriticConfig", "AlgorithmConfig", "BondConfig", "ClassifierReward", "CompareConfig", "CompareJob",
    "DPOConfig", "DPOData", "DPOJob", "DataConfig", "EnsembleConfig", "EvaluationConfig", "FunctionReward", "GRPOConfig",
    "GuardConfig", "HttpReward", "JudgeConfig", "JudgeJob", "LabelConfig", "LabelJob", "LandConfig", "LoraConfig",
    "ModelConfig", "ModelReward", "NormalizeConfig", "PPOConfig", "PPOJob", "PickConfig", "PickJob", "Pipeline", "RLOOConfig",
    "ReinforceConfig", "RewardConfig", "RewardData", "RewardJob", "RewardTraining", "RolloutConfig", "RunConfig", "SFTConfig",
    "SFTData", "SFTJob", "SampleConfig", "SampleJob", "SamplingConfig", "SavedConfig", "Section", "ServerConfig", "Stage",
    "StageConfig", "SumReward", "build", "check_algorithm", "load_config", "load_pipeline",
]  # fmt: skip
