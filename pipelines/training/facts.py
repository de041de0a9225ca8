"""Facts about training that every gradient stage writes to its result."""

from __future__ import annotations

from typing import Any

from transformers import Trainer


def first_and_last(history: list[dict[str, Any]], key: str, name: str) -> dict[str, Any]:
    """First and last logged value of a metric; empty if it was never logged."""
    values = [line[key] for line in history if key in line]
    return {f"{name}_first": values[0], f"{name}_last": values[-1]} if values else {}


def training_facts(trainer: Trainer) -> dict[str, Any]:
    """Number of steps and parameters, and seconds of the training loop."""
    seconds = [e["train_runtime"] for e in trainer.state.log_history if "train_runtime" in e]
    return {
        "steps": trainer.state.global_step,
        "parameters": sum(getattr(p, "ds_numel", p.numel()) for p in trainer.model.parameters()),
        "train_seconds": seconds[-1] if seconds else None,
    }


def token_facts(trainer: Trainer, num_tokens: int) -> dict[str, Any]:
    """Tokens trained on, tokens per second, and the mean weight statistics if logged."""
    history = trainer.state.log_history
    seconds = [e["train_runtime"] for e in history if "train_runtime" in e]
    facts: dict[str, Any] = {"tokens": num_tokens}
    rates = sorted(line["tokens_per_second"] for line in history if "tokens_per_second" in line)
    if rates:
        # Use the median: after a resume, train_runtime covers only the last part.
        facts["tokens_per_second"] = round(rates[len(rates) // 2], 1)
    elif seconds:
        facts["tokens_per_second"] = round(num_tokens / seconds[-1], 1)
    for key in ("weight_mean", "weight_std", "weight_at_low", "weight_at_high", "d_mean", "d_std"):
        if (mean := _mean_over_steps(history, key)) is not None:
            facts[key] = mean
    return facts


def _mean_over_steps(history: list[dict[str, Any]], key: str) -> float | None:
    """Mean of a metric over steps; each log line is an average since the line before."""
    lines = [line for line in history if key in line]
    ends = [line["step"] for line in lines]
    steps = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    total = sum(steps)
    return (
        sum(n * line[key] for n, line in zip(steps, lines, strict=True)) / total if total else None
    )
