"""The configuration schema: every key of a recipe with its type, default and meaning.

`pipelines.recipe.load` fills it from YAML and overrides. The identity of a stage leaves out what is
declared as a `runtime_setting`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import get_type_hints

from pipelines.recipe.schema.comparison import CompareConfig, VariantConfig
from pipelines.recipe.schema.data import ModelConfig, SourceConfig, TokenizerConfig, is_endless
from pipelines.recipe.schema.evaluation import (
    AnalysisConfig,
    BenchmarkConfig,
    EvalConfig,
    TaskConfig,
)
from pipelines.recipe.schema.launch import (
    LaunchConfig,
    SlurmConfig,
    StageLaunchConfig,
    StageSettings,
)
from pipelines.recipe.schema.objectives import OBJECTIVES, ObjectiveKind, objective_kind
from pipelines.recipe.schema.setting import runtime_setting, setting
from pipelines.recipe.schema.training import (
    DpoConfig,
    MidTrainConfig,
    PostTrainConfig,
    PretrainConfig,
    RlvrConfig,
    ScoreConfig,
    SftConfig,
    TrainConfig,
    longest_sequence,
    max_length,
    max_prompt_length,
    micro_batch_rows,
    num_steps,
    pool_factor,
    sees_micro_batches,
    steps_of_epochs,
    uses_score_cache,
    whole_step_tokens,
)

__all__ = [
    "OBJECTIVES", "AnalysisConfig", "BenchmarkConfig", "CompareConfig", "Config", "DpoConfig",
    "EvalConfig", "LaunchConfig", "MidTrainConfig", "ModelConfig", "ObjectiveKind",
    "PostTrainConfig", "PretrainConfig", "RlvrConfig", "SftConfig", "SlurmConfig", "SourceConfig",
    "StageLaunchConfig", "StageSettings", "TaskConfig", "TokenizerConfig", "TrainConfig",
    "VariantConfig",
    "is_endless", "launch_sections", "longest_sequence", "max_length", "max_prompt_length",
    "micro_batch_rows", "num_steps", "objective_kind", "pool_factor", "post_training_sections",
    "sees_micro_batches", "steps_of_epochs", "trained_sections", "uses_score_cache",
    "whole_step_tokens",
]  # fmt: skip


@dataclass
class FlywheelConfig:
    iterations: int = runtime_setting(3, "number of rounds after round 0", low=0)
    expectations: bool = runtime_setting(
        False, "print a pass/fail list of expected behaviours at the end (built-in world only)"
    )
    baseline: bool = setting(True, "run round 0 as the baseline even with a reference from --ref")


@dataclass
class StageConfig:
    name: str = runtime_setting("", "single-stage commands write to the folder <command>-<name>")


@dataclass
class Config:
    """A whole recipe: a file of `configs/` sets its keys, and `key=value` overrides change them."""

    name: str = runtime_setting(
        "", "name of the default run directory; empty: the name of the recipe file"
    )
    seed: int = setting(
        0, "random seed of data order, initial weights and sampling", low=0, high=2**32 - 1
    )
    data_root: str = runtime_setting(
        "${oc.env:REMIT_DATA,.}", "folder that relative data paths start from"
    )
    base: str = runtime_setting(
        "", "base that pretrain-ckpt, plan and flywheel import (= --base); mid-train takes --base"
    )
    trust_remote_code: list[str] = setting(
        list,
        "checkpoints whose custom code (*.py) may run with your rights, written as on the command "
        "line",
    )
    sequence_length: int = setting(128, "tokens per packed training sequence", low=8)
    document_mask: bool = setting(True, "restrict attention to the document in a packed sequence")
    chunk_bytes: int = runtime_setting(
        64 * 2**20,
        "maximum bytes of logits that a loss or a scoring holds at once; larger batches are split "
        "into chunks",
        low=1,
    )
    report_to: list[str] = runtime_setting(
        list, "experiment trackers of the training stages: tensorboard, wandb"
    )
    model: ModelConfig = setting(ModelConfig, "shape of the base model")
    tokenizer: TokenizerConfig = setting(TokenizerConfig, "tokenizer trained with the base")
    pretrain: PretrainConfig = setting(PretrainConfig, "stage pretrain-ckpt")
    mid_train: MidTrainConfig = setting(MidTrainConfig, "stage mid-train")
    sft: SftConfig = setting(SftConfig, "step 1 of post-train")
    dpo: DpoConfig = setting(DpoConfig, "step 2 of post-train")
    rlvr: RlvrConfig = setting(RlvrConfig, "step 3 of post-train, and command rl-tune")
    score: ScoreConfig = setting(ScoreConfig, "stage score")
    eval: EvalConfig = setting(EvalConfig, "stage eval")
    analysis: AnalysisConfig = setting(AnalysisConfig, "stage analyze")
    flywheel: FlywheelConfig = setting(FlywheelConfig, "command flywheel")
    compare: CompareConfig = setting(CompareConfig, "command compare")
    launch: LaunchConfig = runtime_setting(LaunchConfig, "processes and nodes")
    stages: dict[str, StageSettings] = runtime_setting(
        dict,
        "per-stage launch overrides, by kind of stage (pretrain, mid_train, score, sft, dpo, rlvr, "
        "eval, contamination)",
    )
    stage: StageConfig = runtime_setting(StageConfig, "single-stage commands")


@cache
def _sections(kind: type) -> tuple[str, ...]:
    """Top-level keys whose section has this type, in the order of the schema."""
    hints = get_type_hints(Config).items()
    return tuple(key for key, of in hints if isinstance(of, type) and issubclass(of, kind))


def trained_sections() -> tuple[str, ...]:
    """Sections of stages that run optimizer steps: pretrain, mid_train, sft, ..."""
    return _sections(TrainConfig)


def post_training_sections() -> tuple[str, ...]:
    """Sections of the steps of post-training, in their order."""
    return _sections(PostTrainConfig)


def launch_sections() -> tuple[str, ...]:
    """Keys of `stages`: the kinds of stages that have ranks."""
    return (*trained_sections(), "score", "eval", "contamination")
