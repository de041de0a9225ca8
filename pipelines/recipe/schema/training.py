"""Keys of the training stages, and of the score stage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from pipelines.recipe.schema.data import SourceConfig
from pipelines.recipe.schema.objectives import objective_kind
from pipelines.recipe.schema.setting import runtime_setting, setting

Records = Literal["documents", "conversations", "pairs", "problems"]


@dataclass
class TrainConfig:
    """Keys that every training stage has, and the type of the records of its sources."""

    RECORDS: ClassVar[Records] = "documents"

    dtype: Literal["fp32", "bf16"] = setting("fp32", "dtype of weights and activations")
    zero_stage: int = runtime_setting(2, "DeepSpeed ZeRO stage, 0 to 3", low=0, high=3)
    offload_optimizer: bool = runtime_setting(
        False, "keep the optimizer state in CPU memory (needs ZeRO)"
    )
    gradient_checkpointing: bool = runtime_setting(
        False, "recompute activations in the backward pass to save memory"
    )
    global_batch_size: int = setting(32, "sequences per optimizer step, over all ranks", low=1)
    micro_batch_size: int = runtime_setting(32, "maximum sequences per forward on one rank", low=1)
    learning_rate: float = setting(1e-3, "peak learning rate", above=0)
    weight_decay: float = setting(0.1, "weight decay of AdamW (OLMo-2 stage 2: 0.1)", low=0)
    adam_beta1: float = setting(0.9, "beta1 of AdamW (OLMo-2 stage 2: 0.9)", low=0, below=1)
    adam_beta2: float = setting(0.95, "beta2 of AdamW (OLMo-2 stage 2: 0.95)", low=0, below=1)
    max_grad_norm: float = setting(
        1.0, "maximum gradient norm; larger gradients are clipped (OLMo-2 stage 2: 1.0)", above=0
    )
    warmup_ratio: float = setting(
        0.01, "fraction of the steps in which the learning rate warms up", low=0, below=1
    )
    logging_steps: int = runtime_setting(10, "log to metrics.jsonl every this many steps", low=1)
    save_steps: int = runtime_setting(0, "steps between checkpoints; 0: by time only", low=0)
    save_seconds: float = runtime_setting(
        900.0, "seconds between checkpoints; 0: by steps only", low=0
    )
    save_total_limit: int = runtime_setting(1, "maximum number of checkpoints to keep", low=1)


@dataclass
class PretrainConfig(TrainConfig):
    tokens: int = setting(1_000_000, "number of training tokens", low=1)
    sources: dict[str, SourceConfig] = setting(dict, "sources of the pre-training mixture, by name")
    snapshots: int = setting(0, "models to keep during training, at even intervals", low=0)


@dataclass
class RemitConfig:
    """ReMiT's options. Defaults are the paper's, or our choice where the paper says nothing."""

    eps: float = setting(0.2, "clips weights to [1 - eps, 1 + eps] (paper, eq. 5)", above=0, high=1)
    center: Literal["none", "sequence", "document", "batch"] = setting(
        "sequence", "group over which the mean of d is subtracted (paper, eq. 4)"
    )
    map: Literal["sigmoid", "identity", "tanh"] = setting(
        "sigmoid",
        "map from the centered c to a weight: 2 sigmoid(c) (paper, eq. 5), 1 + c, or 1 + tanh(c)",
    )
    standardize: bool = setting(False, "divide c by the standard deviation of d")
    detach: bool = setting(True, "stop the gradient through the weights")
    divisor: Literal["targets", "weights"] = setting(
        "targets", "divide the loss by the number of targets, or by the sum of the weights"
    )


@dataclass
class Rho1Config:
    keep: float = setting(0.6, "fraction of the targets to train on", above=0, high=1)


@dataclass
class KdConfig:
    alpha: float = setting(0.5, "weight of the KL term, from 0 to 1", low=0, high=1)


@dataclass
class MidTrainConfig(TrainConfig):
    tokens: int = setting(1_900_000, "number of training tokens", low=1)
    sources: dict[str, SourceConfig] = setting(dict, "sources of the mid-training mixture, by name")
    objective: Literal[
        "auto",
        "ntp",
        "remit",
        "rho1",
        "miniplm",
        "kd",
    ] = setting("auto", "training objective; auto: remit with a reference, ntp without")
    remit: RemitConfig = setting(RemitConfig, "token weights and loss of ReMiT")
    rho1: Rho1Config = setting(Rho1Config, "options of RHO-1")
    kd: KdConfig = setting(KdConfig, "options of knowledge distillation")
    scope: Literal["micro_batch", "step"] = setting(
        "micro_batch",
        "tokens over which RHO-1 ranks and remit.center=batch, remit.divisor=weights and "
        "remit.standardize with remit.center=none compute: one rank's micro-batch, or the whole "
        "step, which takes one more forward",
    )
    snapshots: int = setting(
        0, "models to keep during annealing, at even intervals before the last step", low=0
    )
    reference: Literal["inline", "cached"] = setting(
        "inline",
        "run the reference's forward during training, or read its scores from a score stage",
    )


@dataclass
class PostTrainConfig(TrainConfig):
    """Keys that SFT, DPO and RLVR share."""

    enabled: bool = setting(True, "run this step of post-training")
    max_steps: int = setting(200, "number of optimizer steps; 0: train by num_train_epochs", low=0)
    sources: dict[str, SourceConfig] = setting(dict, "data sources, by name")
    weight_decay: float = setting(0.0, "weight decay of AdamW", low=0)
    adam_beta2: float = setting(0.999, "beta2 of AdamW", low=0, below=1)


@dataclass
class SftConfig(PostTrainConfig):
    RECORDS: ClassVar[Records] = "conversations"

    num_train_epochs: float = setting(0.0, "with max_steps=0, passes over all records", low=0)
    max_length: int = setting(
        0, "tokens of a conversation, the rest is cut off; 0: sequence_length", low=0
    )


@dataclass
class DpoConfig(PostTrainConfig):
    RECORDS: ClassVar[Records] = "pairs"

    num_train_epochs: float = setting(
        0.0, "with max_steps=0, passes over all pairs that are not held out", low=0
    )
    max_length: int = setting(
        0, "tokens of a prompt with one answer; the rest is cut off; 0: sequence_length", low=0
    )
    beta: float = setting(
        0.1, "strength of the KL penalty to the reference policy (DPO, eq. 7)", above=0
    )
    heldout_pairs: int = setting(256, "pairs held out of training to measure pair accuracy", low=1)


@dataclass
class RlvrConfig(PostTrainConfig):
    """GRPO with verifiable rewards. `global_batch_size` counts completions."""

    RECORDS: ClassVar[Records] = "problems"

    max_steps: int = setting(200, "number of optimizer steps", low=1)
    num_generations: int = setting(8, "completions per prompt: the group size of GRPO", low=2)
    max_prompt_length: int = setting(
        0,
        "longer prompts are dropped; 0: the room that max_completion_length leaves in "
        "sequence_length",
        low=0,
    )
    max_completion_length: int = setting(64, "maximum number of tokens per completion", low=1)
    temperature: float = setting(1.0, "sampling temperature of the rollouts", above=0)
    beta: float = setting(0.0, "weight of the KL term to the starting policy", low=0)
    epsilon: float = setting(0.2, "PPO clip range", above=0)
    max_zero_variance: float = setting(
        0.9,
        "end the stage as 'no signal' if more than this fraction of groups have zero variance",
        low=0,
        high=1,
    )
    use_vllm: bool = runtime_setting(
        False, "generate rollouts with vLLM (needs a GPU and the extra [vllm])"
    )


@dataclass
class ScoreConfig:
    batch_size: int = runtime_setting(64, "sequences per forward on one rank", low=1)
    shard_sequences: int = runtime_setting(
        1024,
        "sequences per file of the score cache; scoring resumes after the last complete file",
        low=1,
    )


def steps_of_epochs(settings: SftConfig | DpoConfig, num_records: int) -> int:
    """Optimizer steps of `num_train_epochs` over so many records, rounded up to a whole step."""
    return math.ceil(settings.num_train_epochs * num_records / settings.global_batch_size)


def max_length(settings: SftConfig | DpoConfig, sequence_length: int) -> int:
    """Tokens of the longest sequence of an SFT or a DPO; what is longer is cut off."""
    return settings.max_length or sequence_length


def max_prompt_length(settings: RlvrConfig, sequence_length: int) -> int:
    """Tokens of the longest prompt of an RLVR, with those of the chat template."""
    return settings.max_prompt_length or sequence_length - settings.max_completion_length


def longest_sequence(settings: TrainConfig, sequence_length: int) -> int:
    """Positions that a training stage needs of its model."""
    if isinstance(settings, (SftConfig, DpoConfig)):
        return max_length(settings, sequence_length)
    if isinstance(settings, RlvrConfig):
        return max_prompt_length(settings, sequence_length) + settings.max_completion_length
    return sequence_length


def micro_batch_rows(train: TrainConfig, world_size: int) -> int:
    """Sequences per forward on one rank: the largest divisor of its share up to `micro_batch_size`.

    Raises:
        ValueError: the global batch cannot be divided by the number of ranks.
    """
    share, rest = divmod(train.global_batch_size, world_size)
    if rest or not share:
        raise ValueError(
            f"a global batch of {train.global_batch_size} cannot be divided by {world_size} ranks"
        )
    largest = min(train.micro_batch_size, share)
    return next(rows for rows in range(largest, 0, -1) if share % rows == 0)


def sees_micro_batches(mid: MidTrainConfig) -> bool:
    """Whether the loss depends on how a step is split into micro-batches."""
    if mid.scope == "step":
        return False
    remit = mid.remit
    over_a_batch = remit.center == "batch" or (remit.center == "none" and remit.standardize)
    return mid.objective == "rho1" or (
        mid.objective == "remit" and (over_a_batch or remit.divisor == "weights")
    )


def num_steps(settings: PretrainConfig | MidTrainConfig, sequence_length: int) -> int:
    """Optimizer steps for the requested tokens, rounded up to whole steps."""
    return -(-settings.tokens // (settings.global_batch_size * sequence_length))


def whole_step_tokens(settings: PretrainConfig | MidTrainConfig, sequence_length: int) -> int:
    """Tokens that are trained on: those of all steps."""
    return num_steps(settings, sequence_length) * settings.global_batch_size * sequence_length


def uses_score_cache(mid: MidTrainConfig) -> bool:
    """Whether a mid-training reads the scores of a score stage."""
    kind = objective_kind(mid.objective)
    return kind.selects_sequences or (kind.needs_reference and mid.reference == "cached")


def pool_factor(mid: MidTrainConfig) -> int:
    """Sequences in the pool for each one trained on: MiniPLM keeps half of its pool."""
    return 2 if mid.objective == "miniplm" else 1
