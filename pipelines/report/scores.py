"""The table of the paper: tasks by models, with intervals; and the objectives side by side."""

from __future__ import annotations

import math

from pipelines import comparison
from pipelines.comparison import Cell as Mean
from pipelines.evals.intervals import bits_difference, paired_difference
from pipelines.report.blocks import (
    NO_VALUE,
    PERCENT,
    Block,
    Cell,
    Dot,
    DotPlot,
    LineChart,
    Missing,
    Point,
    Section,
    Series,
    Table,
    Text,
)
from pipelines.report.record import Record
from pipelines.report.verdict import AFTER, points
from pipelines.summary import Column, not_asked, score_notes

ARM_COLOURS = {"ntp": 0, "remit": 1, "rho1": 2, "miniplm": 3, "kd": 4, "sft": 5, "more-rl": 6}


def section(record: Record) -> Section:
    """Rows: tasks. Columns: base, mid-k, post-k."""
    models = record.columns
    lead = "Accuracy in percent on held-out questions; the small figures are 95% intervals."
    if not models:
        missing = Missing(
            "No model of this run has been evaluated.", "remit eval --model RUN/base --run-dir RUN"
        )
        return Section("scores", "Scores", lead, [missing])
    blocks = [
        _table(models), *map(Text, score_notes(models)), *_not_asked(models),
        *_through_rounds(models), *_differences(models), _drawn(models),
    ]  # fmt: skip
    return Section("scores", "Scores", lead, blocks)


def _table(models: list[Column]) -> Table:
    tasks = list(dict.fromkeys(task for m in models for task in m.result["tasks"]))
    rows = [[Cell(task), *(_accuracy(m, task) for m in models)] for task in tasks]
    strong = []
    if any("average" in m.result for m in models):
        strong.append(len(rows))
        rows.append([Cell("average"), *(_average(m) for m in models)])
    for domain in dict.fromkeys(d for m in models for d in m.result["bits_per_byte"]):
        rows.append([Cell(f"bits/byte {domain}"), *(_bits(m, domain, models) for m in models)])
    return Table(
        "Every task, every model", ["task", *(m.title for m in models)], rows, strong,
        "Intervals: Wilson for a task, normal for the average. Bits per byte of held-out text: "
        "lower is better; intervals over blocks of documents, differences to round 0 paired by "
        "block.",
    )  # fmt: skip


def _accuracy(model: Column, task: str) -> Cell:
    if task not in model.result["tasks"]:
        return NO_VALUE
    found = model.result["tasks"][task]
    low, high = found["interval"]
    return Cell(
        f"{100 * found['accuracy']:.1f}", f"{100 * low:.0f} to {100 * high:.0f}", found["accuracy"]
    )


def _average(model: Column) -> Cell:
    if "average" not in model.result:
        return NO_VALUE
    mean, half = model.result["average"], model.result["average_half_interval"]
    return Cell(f"{100 * mean:.1f}", f"± {100 * half:.1f}", mean)


def _bits(model: Column, domain: str, models: list[Column]) -> Cell:
    """Bits per byte with its interval, and the paired difference to the same part of round 0."""
    found = model.result["bits_per_byte"].get(domain)
    if not found:
        return NO_VALUE
    half = found.get("half_interval")
    notes = [] if half is None else [f"± {half:.3f}"]
    part = model.title.rpartition("-")[0]
    for plain in models:
        if part and plain.title == f"{part}-0" != model.title:
            first, second = (m.result.get("heldout_blocks", {}).get(domain) or {}
                             for m in (plain, model))  # fmt: skip
            if (found_difference := bits_difference(first, second)) is not None:
                mean, spread = found_difference
                around = "" if spread is None else f" ± {spread:.3f}"
                notes.append(f"{mean:+.3f}{around} to {plain.title}")
    return Cell(f"{found['bits_per_byte']:.3f}", "; ".join(notes), found["bits_per_byte"])


def _not_asked(models: list[Column]) -> list[Block]:
    rows = [[Cell(name), Cell(why)] for name, why in not_asked(models).items()]
    if not rows:
        return []
    return [Table("Not asked", ["benchmark", "reason"], rows)]


def _differences(models: list[Column]) -> list[Block]:
    """Every model less every one before it, where both were asked the same questions."""
    bits = [model.bits() for model in models]
    asked = [model.asked() for model in models]
    rows = [
        [
            Cell(model.title),
            *(
                _difference(bits[j], bits[i]) if j < i and asked[j] == asked[i] else NO_VALUE
                for j in range(len(models) - 1)
            ),
        ]
        for i, model in enumerate(models)
        if i and asked[i] and asked[i] in asked[:i]
    ]
    if not rows:
        return []
    return [
        Table(
            "Differences, row less column", ["", *(model.title for model in models[:-1])], rows,
            note="Of the average accuracy, in percentage points, with 95% intervals of a bootstrap "
            "that pairs the questions. One of twenty true zeros lies outside of its interval.",
        )
    ]  # fmt: skip


def _difference(first: dict[str, list[int]], second: dict[str, list[int]]) -> Cell:
    mean, half = paired_difference(first, second)
    return Cell(f"{100 * mean:+.1f}", f"\N{PLUS-MINUS SIGN} {100 * half:.1f}", mean)


def _drawn(models: list[Column]) -> Block:
    """Whether a model got narrower: drawn answers, a mean over tasks with half its interval."""
    found = {
        m.title: [t["sampled"] for t in m.result["tasks"].values() if "sampled" in t]
        for m in models
    }
    names = list(dict.fromkeys(name for of in found.values() for t in of for name in t))
    if not names:
        return Missing(
            "No answers were drawn, so that pass@k and the entropy of the answers are not known; "
            "bits per byte above say whether the model forgot text.",
            "remit eval --model RUN/base --run-dir RUN stage.name=drawn eval.tasks.TASK.samples=16",
        )
    rows = [
        [
            Cell(f"{name}, {'nats' if name == 'entropy' else 'percent'}"),
            *(_mean_drawn([t[name] for t in of if name in t], name) for of in found.values()),
        ]
        for name in names
    ]
    return Table(
        "Drawn answers", ["", *found], rows, note="Several answers were drawn to each question. A "
        "narrower model has a lower entropy, and a pass@k that grows less with k.",
    )  # fmt: skip


def _mean_drawn(scores: list[dict[str, float]], name: str) -> Cell:
    if not scores:
        return NO_VALUE
    unit = 1 if name == "entropy" else 100
    mean = unit * sum(s["mean"] for s in scores) / len(scores)
    half = unit * math.sqrt(sum(s["half_interval"] ** 2 for s in scores)) / len(scores)
    digits = 2 if name == "entropy" else 1
    return Cell(f"{mean:.{digits}f}", f"± {half:.{digits}f}", mean)


def _through_rounds(models: list[Column]) -> list[Block]:
    """Average accuracy by round, where there are two rounds or more."""
    found: dict[str, list[Point]] = {"mid": [], "post": []}
    for model in models:
        part, _, number = model.title.rpartition("-")
        if part in found and "average" in model.result:
            mean, half = model.result["average"], model.result["average_half_interval"]
            found[part].append(Point(int(number), 100 * mean, 100 * half))
    if len(found["mid"]) < 2:
        return []
    series = [
        Series(part, points, 6 if part == "mid" else 1) for part, points in found.items() if points
    ]
    numbers = range(int(max(p.x for s in series for p in s.points)) + 1)
    return [
        LineChart(
            "Average accuracy by round", "round", "percent", series,
            [f"{n}" if n else "0 (plain)" for n in numbers],
            "Whiskers are 95% intervals of each average; differences have the paired ones above.",
            PERCENT,
        )
    ]  # fmt: skip


def comparison_section(record: Record) -> Section:
    """Objectives from one base, over seeds, as `remit compare` left them."""
    lead = "One base, one data order and one budget; only the objective of mid-training differs."
    tables = comparison.tables(record.rows)
    if not tables:
        missing = Missing(
            "The objectives were not compared in this run directory.",
            "remit compare --base RUN/base --ref RUN/round-0/40-rlvr --run-dir RUN",
        )
        return Section("objectives", "Objectives side by side", lead, [missing])
    blocks: list[Block] = []
    for table in tables:
        blocks += _gain_plot(table)
        blocks.append(_arm_table(table))
    blocks += _annealing(record)
    return Section("objectives", "Objectives side by side", lead, blocks)


def _gain_plot(table: comparison.Comparison) -> list[Block]:
    dots = [
        Dot(
            arm, 100 * gain.mean, None if gain.half is None else 100 * gain.half,
            points(gain.mean, gain.half), ARM_COLOURS[arm],
        )
        for arm, gain in zip(table.arms, table.gain, strict=False)
        if arm != "ntp"
    ]  # fmt: skip
    if not dots:
        return []
    return [
        DotPlot(
            f"Difference to ntp after {AFTER[table.point]}",
            "difference in average accuracy, percentage points", dots, 0.0, _seeds(table),
        )
    ]  # fmt: skip


def _seeds(table: comparison.Comparison) -> str:
    count = len(table.seeds)
    if count == 1:
        return "One seed, so no interval over seeds."
    return f"Mean over {count} seeds, 95% interval over seeds (Student's t), paired by seed."


def _arm_table(table: comparison.Comparison) -> Table:
    def percent(title: str, cells: list[Mean]) -> list[Cell]:
        return [Cell(title), *(_mean(cell, 100, 1) for cell in cells)]

    rows = [percent(title, cells) for title, cells in table.cells.items()]
    strong = [len(rows) - 1]
    if table.gain:
        rows.append(percent("less ntp", table.gain))
    for domain, cells in table.bits_per_byte.items():
        rows.append([Cell(f"bits/byte {domain}"), *(_mean(cell, 1, 3) for cell in cells)])
    title = f"Accuracy in percent after {AFTER[table.point]}"
    return Table(title, ["task", *table.arms], rows, strong, _seeds(table))


def _mean(cell: Mean, scale: int, digits: int) -> Cell:
    half = "" if cell.half is None else f"± {scale * cell.half:.{digits}f}"
    return Cell(f"{scale * cell.mean:.{digits}f}", half, cell.mean)


def _annealing(record: Record) -> list[Block]:
    drawn = comparison.curves(record.rows)
    if not drawn:
        return [Missing("No accuracy along the annealing.", "remit compare ... compare.points=4")]
    series = [
        Series(
            curve.arm,
            [
                Point(100 * part, 100 * c.mean, None if c.half is None else 100 * c.half)
                for part, c in zip(curve.parts, curve.averages, strict=True)
            ],
            ARM_COLOURS[curve.arm],
        )
        for curve in drawn
    ]
    reached = [
        f"{c.arm} at step {c.steps_to_ntp:,}"
        for c in drawn
        if c.steps_to_ntp is not None and c.arm != "ntp"
    ]
    note = "Plain mid-training's final accuracy is reached by " + ", ".join(reached) + "."
    return [
        LineChart(
            "Accuracy along the annealing", "percent of the mid-training done",
            "average accuracy, percent", series, note=note if reached else "", limits=PERCENT,
        )
    ]  # fmt: skip
