"""The table of the paper: objectives side by side, from one base and over seeds."""

from __future__ import annotations

from pipelines.comparison.arm_stages import AFTER
from pipelines.comparison.row import Row
from pipelines.comparison.tables import (
    AVERAGE,
    Comparison,
    Curve,
    Gain,
    Line,
    by_seed,
    chance,
    curves,
    tables,
)
from pipelines.comparison.tables import Cell as Mean
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
from pipelines.report.verdict import points

ARM_COLOURS = {"ntp": 0, "remit": 1, "rho1": 2, "miniplm": 3, "kd": 4, "sft": 5, "more-rl": 6}
# Arms of one's own share a colour that is no arm's of the table.
VARIANT = 7
# Measures that are no share of questions, with their unit.
UNITS = {"entropy": "nats"}


def section(record: Record) -> Section:
    """Objectives from one base, over seeds, as `remit compare` left them."""
    lead = (
        "Arms of one seed share base, data order and settings; they differ in the objective of "
        "mid-training, and variants in what they are named after."
    )
    found = tables(record.rows)
    done = sum(bool(stage.result) for stage in record.compared)
    state = f"{done} of {len(record.compared)} stages of the comparison are complete."
    if not found and not curves(record.rows):
        why, command = "The objectives were not compared in this run directory.", (
            "remit compare --base RUN/base --ref RUN/round-0/40-rlvr --run-dir RUN"
        )  # fmt: skip
        if record.compared:
            why, command = f"{state} No model has been evaluated yet.", record.going_on
        return Section("objectives", "Objectives side by side", lead, [Missing(why, command)])
    blocks: list[Block] = []
    if done < len(record.compared):
        blocks.append(Text(f"{state} To go on, give the same command again."))
    for table in found:
        blocks += [
            *_gain_plot(table), *_gain_table(table), *_alone(table), _levels(table),
            *_by_task(table), _cost(record.rows, table),
        ]  # fmt: skip
    blocks += _annealing(curves(record.rows))
    return Section("objectives", "Objectives side by side", lead, blocks)


def _one_baseline(table: Comparison) -> str:
    """The one arm that all others are held against; empty for several."""
    names = {gain.against for gain in table.average.gains if gain}
    return names.pop() if len(names) == 1 else ""


def _differences(table: Comparison) -> str:
    baseline = _one_baseline(table)
    return f"Difference{f' to {baseline}' if baseline else 's'} after {AFTER[table.point]}"


def _gain_plot(table: Comparison) -> list[Block]:
    several = not _one_baseline(table)
    dots = [
        Dot(
            f"{arm} - {gain.against}" if several else arm,
            100 * gain.mean, None if gain.half is None else 100 * gain.half,
            points(gain.mean, gain.half), ARM_COLOURS.get(arm, VARIANT),
        )
        for arm, gain in zip(table.arms, table.average.gains, strict=True)
        if gain is not None
    ]  # fmt: skip
    if not dots:
        return []
    return [
        DotPlot(
            _differences(table), "difference in average accuracy, percentage points", dots, 0.0,
            _seeds(table),
        )
    ]  # fmt: skip


def _seeds(table: Comparison) -> str:
    """What the differences are means of; of several counts, a column of the table has each."""
    counts = sorted({len(gain.by_seed) for gain in table.average.gains if gain})
    if not counts:
        counts = [len(table.seeds)]
    if counts == [1]:
        return "One seed, so no interval over seeds."
    few = f"{counts[0]} to " if len(counts) > 1 else ""
    return (
        f"Mean over {few}{counts[-1]} seeds, 95% interval over seeds (Student's t), paired by seed."
    )


def _alone(table: Comparison) -> list[Block]:
    """Arms whose baseline has no row of the same seed, which would vanish without a word."""
    named = [
        f"{arm} (against {against})"
        for arm, against, gain in zip(
            table.arms, table.baselines, table.average.gains, strict=True
        )
        if gain is None and arm != against
    ]  # fmt: skip
    return [Text(f"No row of the same seed to hold against: {', '.join(named)}.")] if named else []


def _gain_table(table: Comparison) -> list[Block]:
    """One line for each arm: its difference, how sure it is, and each seed's own."""
    rows = [
        [
            Cell(arm), Cell(gain.against), _gain(gain, 100, 1),
            Cell(str(len(gain.by_seed)), value=len(gain.by_seed)), _plain(gain.effect, 1),
            _chance(gain.p), _chance(gain.holm), Cell(by_seed(gain)),
        ]
        for arm, gain in zip(table.arms, table.average.gains, strict=True)
        if gain is not None
    ]  # fmt: skip
    if not rows:
        return []
    return [
        Table(
            f"Differences of the average after {AFTER[table.point]}",
            ["arm", "less", "points", "seeds", "effect", "p", "Holm", "seed: points"], rows,
            note="effect: mean over standard deviation of the seeds' differences. p: t-test over "
            "seeds, two-sided. Holm: the same adjusted for all arms of this table.",
        )
    ]  # fmt: skip


def _levels(table: Comparison) -> Table:
    """Rows: tasks, average, bits per byte, drawn answers, training. Columns: arms."""
    rows = [
        [Cell(name), *(_mean(cell, scale, digits) for cell in line.cells)]
        for name, line, scale, digits in _lines(table)
    ]
    strong = [list(table.accuracy).index(AVERAGE)]
    title = f"Accuracy in percent after {AFTER[table.point]}"
    if table.same_seeds:
        return Table(title, ["task", *table.arms], rows, strong, _seeds(table))
    counted = zip(table.arms, table.own_seeds, strict=True)
    return Table(
        title, ["task", *(f"{arm} ({len(seeds)})" for arm, seeds in counted)], rows, strong,
        "Means over the seeds of each arm, their number in brackets, with 95% intervals over seeds "
        "(Student's t). Levels of different seeds do not compare; the differences do, which are "
        "paired by seed.",
    )  # fmt: skip


def _by_task(table: Comparison) -> list[Block]:
    """The same, as differences."""
    rows = [
        [Cell(name), *(NO_VALUE if g is None else _gain(g, scale, digits) for g in line.gains)]
        for name, line, scale, digits in _lines(table)
        if any(line.gains)
    ]
    if not rows:
        return []
    return [
        Table(
            _differences(table) + ", by task", ["task", *table.arms], rows,
            note="Accuracy in percentage points, bits per byte, and measures of drawn answers and "
            "of the training. One of twenty true zeros lies outside of its interval.",
        )
    ]  # fmt: skip


def _lines(table: Comparison) -> list[tuple[str, Line, float, int]]:
    """Name, values, what they are multiplied by, digits."""
    return [
        *((task, line, 100, 1) for task, line in table.accuracy.items()),
        *((f"bits/byte {domain}", line, 1, 3) for domain, line in table.bits_per_byte.items()),
        *(
            (f"{name}, {UNITS[name]}", line, 1, 2) if name in UNITS else (name, line, 100, 1)
            for name, line in table.drawn.items()
        ),
        *(
            (f"{name}, nats", line, 1, 2) if "loss" in name else (f"{name}, %", line, 100, 1)
            for name, line in table.training.items()
        ),
    ]


def _plain(value: float | None, digits: int) -> Cell:
    return NO_VALUE if value is None else Cell(f"{value:.{digits}f}", value=value)


def _chance(p: float | None) -> Cell:
    return NO_VALUE if p is None else Cell(chance(p), value=p)


def _gain(gain: Gain, scale: float, digits: int) -> Cell:
    half = "" if gain.half is None else f"± {scale * gain.half:.{digits}f}"
    return Cell(f"{scale * gain.mean:+.{digits}f}", half, gain.mean)


def _mean(cell: Mean | None, scale: float, digits: int) -> Cell:
    if cell is None:
        return NO_VALUE
    half = "" if cell.half is None else f"± {scale * cell.half:.{digits}f}"
    return Cell(f"{scale * cell.mean:.{digits}f}", half, cell.mean)


def _annealing(drawn: list[Curve]) -> list[Block]:
    if not drawn:
        return [Missing("No accuracy along the annealing.", "remit compare ... compare.points=4")]
    series = [
        Series(
            curve.arm,
            [
                Point(100 * part, 100 * c.mean, None if c.half is None else 100 * c.half)
                for part, c in zip(curve.parts, curve.averages, strict=True)
            ],
            ARM_COLOURS.get(curve.arm, VARIANT),
        )
        for curve in drawn
    ]
    reached = [
        f"{c.arm} at step {c.steps_to_ntp:,}"
        for c in drawn
        if c.steps_to_ntp is not None and c.arm != "ntp"
    ]
    notes = []
    if reached:
        notes.append(
            f"Plain mid-training's final accuracy is reached by {', '.join(reached)}: where the "
            "mean over seeds does, on a straight line between two points."
        )
    if any(c.seeds != drawn[0].seeds for c in drawn):
        counts = ", ".join(f"{c.arm} {len(c.seeds)}" for c in drawn)
        notes.append(f"Seeds: {counts}. Lines of different seeds do not compare.")
    return [
        LineChart(
            "Accuracy along the annealing", "percent of the mid-training done",
            "average accuracy, percent", series, note=" ".join(notes), limits=PERCENT,
        )
    ]  # fmt: skip


def _cost(found: list[Row], table: Comparison) -> Table:
    """What the arms took to a point."""
    here = [row for row in found if row.point == table.point]
    spent = {arm: [row for row in here if row.arm == arm] for arm in table.arms}
    least = min(row.flops for row in here)
    return Table(
        f"What the arms cost to the end of {AFTER[table.point]}",
        ["arm", "mid-training tokens", "passes", "FLOPs", "seconds"],
        [
            [
                Cell(arm), Cell(f"{rows[0].tokens:,}", value=rows[0].tokens),
                Cell(str(max(row.passes for row in rows))),
                _plain(rows[0].flops / least if least else None, 2),
                _plain(sum(row.seconds for row in rows) / len(rows), 0),
            ]
            for arm, rows in spent.items()
        ],
        note="FLOPs: of the arm's own stages, without those of the arms that its base and its "
        "reference come from, as a multiple of the least. Passes: over the source that was read "
        "most often, in this mid-training. Seconds: as run, a mean over seeds; scores that were "
        "there cost none.",
    )  # fmt: skip
