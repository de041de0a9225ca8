"""Rows and variants for the tests of `remit compare`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.comparison.row import Row

TINY = ("--config", "world-tiny", "mid_train.tokens=2048", "eval.tasks.world.limit=20",
        "eval.bits_per_byte_tokens=500", "compare.points=0")  # fmt: skip


def row(arm: str, seed: int, *accuracies: float, point: str = "mid") -> Row:
    accuracies = accuracies or (0.0,)
    rights = [round(1000 * accuracy) for accuracy in accuracies]
    tasks = {
        f"t{i}": {"accuracy": a, "questions": 1000, "bits": "1" * n + "0" * (1000 - n)}
        for i, (a, n) in enumerate(zip(accuracies, rights, strict=True))
    }
    average = sum(accuracies) / max(1, len(accuracies))
    return Row(
        arm,
        seed,
        point,
        "ntp",
        "id",
        {},
        average,
        tasks,
        {"web": 2 - average},
        {},
        100,
        40,
        1,
        1.0,
        2.0,
    )


def write(path: Path, *found: Row) -> Path:
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in found))
    return path


def variants(**arms: dict[str, Any]) -> list[str]:
    return [f"compare.variants={json.dumps(arms)}", f"compare.arms={json.dumps([*arms])}"]
