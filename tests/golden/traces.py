"""What a run logged of every step of its gradient stages and scored, to six digits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

FILE = Path(__file__).with_name("traces.json")
DIGITS = 6
LOG_EVERY_STEP = tuple(
    f"{section}.logging_steps=1" for section in ("pretrain", "mid_train", "sft", "dpo", "rlvr")
)
TINY = ("flywheel", "--config", "world-tiny", "--iterations", "1", "--gpus", "1")
# Two vocabularies: characters, and byte pairs.
RUNS = {
    "tiny": (*TINY, *LOG_EVERY_STEP),
    "bpe": (
        *TINY, *LOG_EVERY_STEP, "tokenizer.kind=bpe", "tokenizer.vocab_size=300",
        "tokenizer.train_characters=20_000", "pretrain.tokens=6000", "mid_train.tokens=6000",
    ),
}  # fmt: skip
KEYS = ("loss", "grad_norm", "learning_rate", "weight_mean", "weight_std", "weight_at_low",
        "weight_at_high", "d_mean", "d_std", "rewards/margins", "logps/chosen", "reward",
        "entropy")  # fmt: skip


def rounded(value: Any) -> Any:
    """A number, or each number of a table."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def machine(threads: int) -> dict[str, Any]:
    """What the last digits depend on."""
    return {
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__.split("+")[0],
        "threads": threads,
    }


def trace(run: Path) -> dict[str, Any]:
    """By stage: each logged quantity as a list over the steps, and the scores of evaluations."""
    found: dict[str, Any] = {}
    for metrics in sorted(run.rglob("metrics.jsonl")):
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        steps = [line for line in lines if "grad_norm" in line]
        if steps:
            name = str(metrics.parent.relative_to(run))
            found[name] = {
                key: [rounded(line[key]) for line in steps] for key in KEYS if key in steps[0]
            }
    for path in sorted(run.rglob("result.json")):
        result = json.loads(path.read_text())
        if result["kind"] == "evaluate":
            found[result["stage"]] = {
                "accuracy": {name: task["accuracy"] for name, task in result["tasks"].items()},
                "bits_per_byte": rounded(result["bits_per_byte"]),
            }
    return found


def write(recorded: dict[str, Any]) -> None:
    """Write the file with a list a line."""
    text = json.dumps(recorded, indent=1)
    FILE.write_text(re.sub(r"\[[^\]]*\]", lambda found: " ".join(found[0].split()), text) + "\n")
