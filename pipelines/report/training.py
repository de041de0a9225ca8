"""Curves of the training: loss, learning rate, token weights, reward, throughput."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from pipelines.comparison.arm_stages import FOLDER
from pipelines.report.blocks import (
    PERCENT,
    Block,
    LineChart,
    Missing,
    Point,
    Section,
    Series,
    Text,
)
from pipelines.report.objectives import ARM_COLOURS, VARIANT
from pipelines.report.record import Record, StageRecord

MOST_POINTS = 150
Line = dict[str, Any]
# Kind of stage, title, unit, and the value of a log line.
CURVES: tuple[tuple[str, str, str, Callable[[Line], Any]], ...] = (
    ("pretrain", "Pre-training: loss", "nats per token", lambda x: x.get("loss")),
    ("mid_train", "Mid-training: loss", "nats per token", lambda x: x.get("loss")),
    ("mid_train", "Mid-training: learning rate", "learning rate", lambda x: x.get("learning_rate")),
    ("mid_train", "Token weights: spread", "standard deviation", lambda x: x.get("weight_std")),
    ("mid_train", "Token weights: at the clip", "percent of tokens", lambda x: _clipped(x)),
    ("mid_train", "Reference less learner", "mean of d, nats", lambda x: x.get("d_mean")),
    ("sft", "SFT: loss", "nats per token", lambda x: x.get("loss")),
    ("dpo", "DPO: loss", "nats", lambda x: x.get("loss")),
    ("rlvr", "RLVR: reward", "mean reward", lambda x: x.get("reward")),
    ("rlvr", "RLVR: silent groups", "percent of groups", lambda x: _silent(x)),
    ("mid_train", "Mid-training: throughput", "tokens per second",
     lambda x: x.get("tokens_per_second")),
)  # fmt: skip


def section(record: Record) -> Section:
    """Small charts, one line for each round (and for each objective of a comparison)."""
    own = [s for s in record.stages.values() if not s.name.startswith(f"{FOLDER}/")]
    compared = _first_seed(record)
    blocks: list[Block] = [*_charts(own, _round_series), *_charts(compared, _arm_series)]
    if record.columns or record.analysis:
        blocks.insert(0, _along_annealing(record.analysis))
    if not blocks:
        blocks = [Missing("No stage has trained yet.", record.going_on)]
    lines = "One line for each round; round 0 is the plain one." if own else ""
    if compared:
        lines += f" Of the comparison, one line for each objective, {_seed_folder(compared)}."
    lead = (
        f"{lines.strip()} A weighted loss and a plain one are different quantities: compare models "
        "by their scores."
    )
    return Section("training", "Training", lead, blocks)


def _along_annealing(analysis: dict[str, Any] | None) -> Block:
    """Accuracy of the models kept along the annealing of each round, from the base on."""
    along = (analysis or {}).get("accuracy", [])
    if not along:
        why = (analysis or {}).get("accuracy_missing", "")
        missing = Missing("Accuracy along the annealing was not measured.", "remit analyze RUN")
        return Text(why) if why else missing
    base = [entry for entry in along if entry["round"] is None]
    rounds = dict.fromkeys(entry["round"] for entry in along if entry["round"] is not None)
    series = [
        Series(
            f"round {number}",
            [
                Point(
                    100 * entry["done"], 100 * entry["average"],
                    100 * entry["average_half_interval"],
                )
                for entry in [*base, *(e for e in along if e["round"] == number)]
            ],
            number % 7,
        )
        for number in rounds
    ]  # fmt: skip
    tasks = along[0]["tasks"]
    questions = sum(task["questions"] for task in tasks.values())
    return LineChart(
        "Accuracy along the annealing", "percent of the annealing done",
        "average accuracy, percent", series,
        note=f"From the base on, greedy answers to the first questions of each task, {questions:,} "
        "in all. Whiskers are 95% intervals over questions.",
        limits=PERCENT,
    )  # fmt: skip


def _clipped(line: Line) -> float | None:
    low, high = line.get("weight_at_low"), line.get("weight_at_high")
    return None if low is None or high is None else 100 * (low + high)


def _silent(line: Line) -> float | None:
    found = line.get("frac_reward_zero_std")
    return None if found is None else 100 * found


def _seed_folder(stages: Sequence[StageRecord]) -> str:
    """`seed 0` of stages in `compare/seed-0/`."""
    return stages[0].name.split("/")[1].replace("-", " ")


def _first_seed(record: Record) -> list[StageRecord]:
    """The stages of the first seed of a comparison, of arms of the table: variants may be many."""
    compared = [s for s in record.stages.values() if s.name.startswith(f"{FOLDER}/seed-")]
    return [
        s for s in compared
        if s.name.split("/")[1] == compared[0].name.split("/")[1]
        and s.name.split("/")[2] in ARM_COLOURS
    ]  # fmt: skip


def _round_series(stage: StageRecord) -> tuple[str, int]:
    if stage.round is None:
        return stage.name, 1
    return f"round {stage.round}", stage.round % 7


def _arm_series(stage: StageRecord) -> tuple[str, int]:
    arm = stage.name.split("/")[2]
    return arm, ARM_COLOURS.get(arm, VARIANT)


def _charts(
    stages: Sequence[StageRecord], named: Callable[[StageRecord], tuple[str, int]]
) -> list[LineChart]:
    found = []
    for kind, title, unit, value in CURVES:
        series = [_series(stage, named, value) for stage in stages if stage.kind == kind]
        drawn = [one for one in series if len(one.points) > 1]
        if not drawn:
            continue
        of_arms = named is _arm_series
        where = f", {_seed_folder(stages)}" if of_arms else ""
        limits = PERCENT if unit.startswith("percent") else None
        found.append(LineChart(title + where, "step", unit, drawn, limits=limits))
    return found


def _series(
    stage: StageRecord,
    named: Callable[[StageRecord], tuple[str, int]],
    value: Callable[[Line], Any],
) -> Series:
    name, colour = named(stage)
    points = [
        Point(line["step"], number) for line in stage.metrics if (number := value(line)) is not None
    ]
    return Series(name, thinned(points), colour)


def thinned(points: list[Point]) -> list[Point]:
    """At most MOST_POINTS, each the mean of its neighbours."""
    width = math.ceil(len(points) / MOST_POINTS)
    if width < 2:
        return points
    parts = [points[i : i + width] for i in range(0, len(points), width)]
    return [
        Point(sum(p.x for p in part) / len(part), sum(p.y for p in part) / len(part))
        for part in parts
    ]
