"""Training curves: loss, learning rate, token weights, reward, throughput."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from pipelines.plan.kinds import KINDS, Curve
from pipelines.plan.stage import COMPARISON as FOLDER
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


def section(record: Record) -> Section:
    """Small charts with one line per round, and per objective of a comparison."""
    own = [s for s in record.stages.values() if not s.name.startswith(f"{FOLDER}/")]
    compared = _first_seed(record)
    blocks: list[Block] = [*_charts(own, _round_series), *_charts(compared, _arm_series)]
    if record.columns or record.analysis:
        blocks.insert(0, _during_mid_training(record.analysis))
    if not blocks:
        blocks = [Missing("No stage has trained yet.", record.resume_command)]
    lines = "Each line is a round; round 0 is plain training." if own else ""
    if compared:
        lines += f" For the comparison, each line is an objective, {_seed_folder(compared)}."
    lead = (
        f"{lines.strip()} Do not compare a weighted loss with a plain one, since they are "
        "different quantities: compare models by their scores."
    )
    return Section("training", "Training", lead, blocks)


def _during_mid_training(analysis: dict[str, Any] | None) -> Block:
    """Accuracy of the snapshots of each round's mid-training, starting with the base."""
    along = (analysis or {}).get("accuracy", [])
    if not along:
        why = (analysis or {}).get("accuracy_missing", "")
        missing = Missing("Accuracy during mid-training was not measured.", "remit analyze RUN")
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
        "Accuracy during mid-training", "percent of the mid-training done",
        "average accuracy, percent", series,
        note=f"Greedy answers to the first questions of each task, {questions:,} in all; 0 percent "
        "is the base. Whiskers are 95% intervals over questions.",
        limits=PERCENT,
    )  # fmt: skip


def _seed_folder(stages: Sequence[StageRecord]) -> str:
    """`seed 0` for stages in `compare/seed-0/`."""
    return stages[0].name.split("/")[1].replace("-", " ")


def _first_seed(record: Record) -> list[StageRecord]:
    """The first seed's stages of a comparison, without variants, of which there may be many."""
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
    for kind, curve in [(row.name, curve) for row in KINDS for curve in row.curves]:
        series = [_series(stage, named, curve) for stage in stages if stage.kind == kind]
        drawn = [one for one in series if len(one.points) > 1]
        if not drawn:
            continue
        of_arms = named is _arm_series
        where = f", {_seed_folder(stages)}" if of_arms else ""
        limits = PERCENT if curve.unit.startswith("percent") else None
        found.append(LineChart(curve.title + where, "step", curve.unit, drawn, limits=limits))
    return found


def _series(
    stage: StageRecord,
    named: Callable[[StageRecord], tuple[str, int]],
    curve: Curve,
) -> Series:
    name, colour = named(stage)
    points = [
        Point(line["step"], number)
        for line in stage.metrics
        if (number := _value(curve, line)) is not None
    ]
    return Series(name, thinned(points), colour)


def _value(curve: Curve, line: Line) -> float | None:
    """The value of a curve in a log line; None if a key of the curve is missing."""
    parts = [line.get(key) for key in curve.keys]
    found = [part for part in parts if part is not None]
    if len(found) < len(parts):
        return None
    total: float = sum(found)
    return 100 * total if curve.unit.startswith("percent") else total


def thinned(points: list[Point]) -> list[Point]:
    """At most MOST_POINTS points, each the mean of consecutive ones."""
    width = math.ceil(len(points) / MOST_POINTS)
    if width < 2:
        return points
    parts = [points[i : i + width] for i in range(0, len(points), width)]
    return [
        Point(sum(p.x for p in part) / len(part), sum(p.y for p in part) / len(part))
        for part in parts
    ]
