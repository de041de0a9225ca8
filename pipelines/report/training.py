"""Curves of the training: loss, learning rate, token weights, reward, throughput."""

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
    """The value of a curve in a log line; None where a part of it is missing."""
    parts = [line.get(key) for key in curve.keys]
    found = [part for part in parts if part is not None]
    if len(found) < len(parts):
        return None
    total: float = sum(found)
    return 100 * total if curve.unit.startswith("percent") else total


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
