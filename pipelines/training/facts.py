"""Facts about training that every gradient stage writes to its result."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from transformers import Trainer

from pipelines.training.callbacks import num_parameters


def first_and_last(history: list[dict[str, Any]], key: str, name: str) -> dict[str, Any]:
    """First and last logged value of a metric; empty if it was never logged."""
    values = [line[key] for line in history if key in line]
    return {f"{name}_first": values[0], f"{name}_last": values[-1]} if values else {}


def training_facts(trainer: Trainer) -> dict[str, Any]:
    """Facts about the engine, number of steps and parameters, and seconds of the training loop."""
    engine = trainer.model_wrapped
    return {
        "engine": type(engine).__name__,
        "zero_stage": engine.zero_optimization_stage(),
        "offload_optimizer": engine.zero_offload_optimizer() is not None,
        "world_size": engine.dp_world_size,
        "micro_batch_size": engine.train_micro_batch_size_per_gpu(),
        "accumulation": engine.gradient_accumulation_steps(),
        "steps": trainer.state.global_step,
        "parameters": num_parameters(trainer.model),
        "train_seconds": _train_seconds(trainer),
    }


def _train_seconds(trainer: Trainer) -> float | None:
    found = [line["train_runtime"] for line in trainer.state.log_history if "train_runtime" in line]
    return found[-1] if found else None


def token_facts(trainer: Trainer, num_tokens: int) -> dict[str, Any]:
    """Tokens trained on, tokens per second, and the mean weight statistics if logged."""
    history = trainer.state.log_history
    facts: dict[str, Any] = {"tokens": num_tokens}
    rates = sorted(line["tokens_per_second"] for line in history if "tokens_per_second" in line)
    if rates:
        # Use the median: after a resume, train_runtime covers only the last part.
        facts["tokens_per_second"] = round(rates[len(rates) // 2], 1)
    elif seconds := _train_seconds(trainer):
        facts["tokens_per_second"] = round(num_tokens / seconds, 1)
    for key in ("weight_mean", "weight_std", "weight_at_low", "weight_at_high", "d_mean", "d_std"):
        if (mean := _mean_over_steps(history, key)) is not None:
            facts[key] = mean
    return facts


def _mean_over_steps(history: list[dict[str, Any]], key: str) -> float | None:
    """Mean of a metric over steps; each log line is an average since the line before."""
    lines = [line for line in history if key in line]
    ends = [line["step"] for line in lines]
    steps = [end - begin for begin, end in pairwise([0, *ends])]
    weighted = sum(n * line[key] for n, line in zip(steps, lines, strict=True))
    return weighted / sum(steps) if sum(steps) else None
