"""Predicted cost of each kind of stage; the table of kinds names these functions.

FLOPs: 2 N per token forward, 6 N forward and backward (N parameters); the reference's forward
adds 2 N.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipelines.plan.stage import Stage
from pipelines.recipe.schema import (
    DpoConfig,
    SftConfig,
    TaskConfig,
    max_length,
    pool_factor,
    whole_step_tokens,
)

# Generation reads all weights for each token: slower than training at equal FLOPs.
GENERATION_SLOWDOWN = 6.0
# Assumed number of families of a task with `split_by`: that of the built-in world.
FAMILIES = 10
# Average length of a conversation, as a fraction of the context.
CHAT_FILL = 0.6


@dataclass(frozen=True)
class Work:
    """
    Attributes:
        tokens: number trained on, or scored and generated.
        flops: floating point operations.
        slowdown: how many times slower than training these FLOPs run.
    """

    tokens: int = 0
    flops: float = 0.0
    slowdown: float = 1.0


def none(stage: Stage, parameters: int) -> Work:
    """Cost of a kind that runs no model."""
    return Work()


def pretrain(stage: Stage, parameters: int) -> Work:
    if stage.inputs:
        return Work()
    tokens = whole_step_tokens(stage.config.pretrain, stage.config.sequence_length)
    return Work(tokens, 6 * float(parameters) * tokens)


def mid_train(stage: Stage, parameters: int) -> Work:
    tokens = whole_step_tokens(stage.config.mid_train, stage.config.sequence_length)
    return Work(tokens, training_flops(stage) * parameters * tokens)


def score(stage: Stage, parameters: int) -> Work:
    mid = stage.config.mid_train
    tokens = whole_step_tokens(mid, stage.config.sequence_length) * pool_factor(mid)
    return Work(tokens, 2 * float(parameters) * tokens)


def sft(stage: Stage, parameters: int) -> Work:
    settings = stage.config.sft
    sequences = (settings.max_steps or stage.num_steps) * settings.global_batch_size
    tokens = _chat_tokens(stage, settings, sequences)
    return Work(tokens, 6 * float(parameters) * tokens)


def dpo(stage: Stage, parameters: int) -> Work:
    """Counts two answers per pair, and the forward of the reference policy."""
    settings = stage.config.dpo
    sequences = 2 * (settings.max_steps or stage.num_steps) * settings.global_batch_size
    tokens = _chat_tokens(stage, settings, sequences)
    return Work(tokens, 8 * float(parameters) * tokens)


def _chat_tokens(stage: Stage, settings: SftConfig | DpoConfig, sequences: int) -> int:
    return math.ceil(sequences * max_length(settings, stage.config.sequence_length) * CHAT_FILL)


def rlvr(stage: Stage, parameters: int) -> Work:
    """Counts each prompt as long as its completion."""
    settings, n = stage.config.rlvr, float(parameters)
    tokens = settings.max_steps * settings.global_batch_size * settings.max_completion_length
    training, generation = 6 * n * 2 * tokens, 2 * n * tokens
    flops = training + generation
    return Work(tokens, flops, (training + generation * GENERATION_SLOWDOWN) / flops)


def evaluate(stage: Stage, parameters: int) -> Work:
    settings = stage.config.eval
    tasks = [task for task in settings.tasks.values() if task.enabled]
    longest = max((task.max_new_tokens for task in tasks), default=0)
    scored = settings.bits_per_byte_tokens * len(settings.bits_per_byte)
    return _forwards(scored, sum(_answers(task) for task in tasks) * longest, parameters)


def analyze(stage: Stage, parameters: int) -> Work:
    return _forwards(_analysis_tokens(stage), _analysis_answers(stage), parameters)


def _forwards(scored: int, generated: int, parameters: int) -> Work:
    tokens = scored + generated
    as_if = scored + generated * GENERATION_SLOWDOWN
    return Work(tokens, 2 * float(parameters) * tokens, as_if / max(1, tokens))


def training_flops(stage: Stage) -> float:
    """FLOPs per parameter and token: 6, plus 2 for each additional forward."""
    if stage.kind != "mid_train":
        return 6.0
    mid = stage.config.mid_train
    if mid.objective in ("ntp", "miniplm"):
        return 6.0
    forwards = (mid.reference == "inline") + (mid.scope == "step" and mid.objective != "kd")
    return 6.0 + 2.0 * forwards


def _answers(task: TaskConfig) -> int:
    """Greedy answers and samples of a task. The number of its families is a guess."""
    asked = task.limit or task.source.limit or 2000
    sampled = task.sampled_questions * (FAMILIES if task.split_by else 1) or asked
    return asked + task.samples * min(asked, sampled)


def _analysis_tokens(stage: Stage) -> int:
    """Tokens that an analysis scores: held-out text by every model, training text by the rounds."""
    config = stage.config
    heldout = config.analysis.heldout_tokens * len(config.eval.bits_per_byte)
    mids = _num_rounds(stage)
    kept = config.pretrain.snapshots + config.mid_train.snapshots * mids
    training = min(config.analysis.tokens, config.mid_train.tokens)
    # Movement takes two pairs of models per round. The base scores the training text once, then two
    # models per round do.
    return heldout * (len(stage.inputs) + kept + 4 * mids) + training * (2 * mids - 1)


def _analysis_answers(stage: Stage) -> int:
    """Tokens that an analysis generates: answers of the base and of each annealing's models."""
    config, mids = stage.config, _num_rounds(stage)
    each = config.analysis.accuracy_questions
    tokens = sum(
        min(each * (FAMILIES if task.split_by else 1), task.limit or each * FAMILIES)
        * task.max_new_tokens
        for task in config.eval.tasks.values()
        if task.enabled
    )
    return tokens * (1 + mids * (1 + config.mid_train.snapshots))


def _num_rounds(stage: Stage) -> int:
    """Number of rounds whose annealed model an analysis reads."""
    return sum(name.endswith("mid-train") for name in stage.inputs)
