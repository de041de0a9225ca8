"""Training curves: loss, learning rate, token weights, reward, throughput."""

from __future__ import annotations

import math
from typing import Any

from pipelines.plan.kinds import KINDS, Curve
from pipelines.plan.stage import COMPARISON as FOLDER
from pipelines.report.blocks import PERCENT, Block, LineChart, Missing, Point, Section, Series, Text
from pipelines.report.objectives import ARM_COLOURS, accuracy_chart
from pipelines.report.record import Record, StageRecord

MOST_POINTS = 150
# A stage with the name and the colour of its line.
Line = tuple[StageRecord, str, int]


def section(record: Record) -> Section:
    """Small charts with one line per round, and per objective of a comparison."""
    rounds = [
        (stage, stage.name, 1) if stage.round is None
        else (stage, f"round {stage.round}", stage.round % 7)
        for stage in record.own
    ]  # fmt: skip
    compared = _first_seed(record)
    seed = compared[0][0].name.split("/")[1].replace("-", " ") if compared else ""
    blocks: list[Block] = [*_charts(rounds), *_charts(compared, f", {seed}")]
    if record.columns or record.analysis:
        blocks.insert(0, _during_mid_training(record.analysis or {}))
    if not blocks:
        blocks = [Missing("No stage has trained yet.", record.resume_command)]
    lines = "Each line is a round; round 0 is plain training." if rounds else ""
    if compared:
        lines += f" For the comparison, each line is an objective, {seed}."
    lead = (
        f"{lines.strip()} Do not compare a weighted loss with a plain one, since they are "
        "different quantities: compare models by their scores."
    )
    return Section("training", "Training", lead, blocks)


def _during_mid_training(analysis: dict[str, Any]) -> Block:
    """Accuracy of the snapshots of each round's mid-training, starting with the base."""
    along = analysis.get("accuracy", [])
    if not along:
        why = analysis.get("accuracy_missing", "")
        missing = Missing("Accuracy during mid-training was not measured.", "remit analyze RUN")
        return Text(why) if why else missing
    points: dict[int | None, list[Point]] = {}
    for entry in along:
        measured = (entry["done"], entry["average"], entry["average_half_interval"])
        points.setdefault(entry["round"], []).append(Point(*(100 * value for value in measured)))
    series = [
        Series(f"round {number}", [*points.get(None, []), *own], number % 7)
        for number, own in points.items()
        if number is not None
    ]
    questions = sum(task["questions"] for task in along[0]["tasks"].values())
    return accuracy_chart(
        series,
        f"Greedy answers to the first questions of each task, {questions:,} in all; 0 percent is "
        "the base. Whiskers are 95% intervals over questions.",
    )


def _first_seed(record: Record) -> list[Line]:
    """The first seed's stages of a comparison, without variants, of which there may be many."""
    compared = [s for s in record.compared if s.name.startswith(f"{FOLDER}/seed-")]
    parts = [stage.name.split("/") for stage in compared]
    return [
        (stage, arm, ARM_COLOURS[arm])
        for stage, (_, seed, arm, *_) in zip(compared, parts, strict=True)
        if seed == parts[0][1] and arm in ARM_COLOURS
    ]


def _charts(lines: list[Line], where: str = "") -> list[LineChart]:
    """The charts of all curves with two points or more."""
    found = []
    for kind, curve in [(row.name, curve) for row in KINDS for curve in row.curves]:
        series = [
            Series(name, thinned(_points(stage, curve)), colour)
            for stage, name, colour in lines
            if stage.kind == kind
        ]
        drawn = [each for each in series if len(each.points) > 1]
        if drawn:
            limits = PERCENT if curve.unit.startswith("percent") else None
            found.append(LineChart(curve.title + where, "step", curve.unit, drawn, limits=limits))
    return found


def _points(stage: StageRecord, curve: Curve) -> list[Point]:
    """The values of a curve by step, where the log has all of its keys."""
    factor = 100 if curve.unit.startswith("percent") else 1
    found = []
    for line in stage.metrics:
        parts = [line[key] for key in curve.keys if line.get(key) is not None]
        if len(parts) == len(curve.keys):
            found.append(Point(line["step"], factor * sum(parts)))
    return found


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
