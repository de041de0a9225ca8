"""The comparison of objectives from one base over seeds, as in the paper's table."""

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
    curves,
    p_text,
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
# Variants share a colour that no built-in arm has.
VARIANT = 7
# Measures that are not shares of questions, with their unit.
UNITS = {"entropy": "nats"}


def section(record: Record) -> Section:
    """The results of `remit compare`."""
    lead = (
        "Arms of one seed share base model, data order and settings. They differ in the "
        "mid-training objective, and variants also in the settings that they override."
    )
    found = tables(record.rows)
    done = sum(bool(stage.result) for stage in record.compared)
    state = f"{done} of {len(record.compared)} stages of the comparison are complete."
    if not found and not curves(record.rows):
        why, command = "This run directory has no comparison of objectives.", (
            "remit compare --base RUN/base --ref RUN/round-0/40-rlvr --run-dir RUN"
        )  # fmt: skip
        if record.compared:
            why, command = f"{state} No model has been evaluated yet.", record.resume_command
        return Section("objectives", "Objectives side by side", lead, [Missing(why, command)])
    blocks: list[Block] = []
    if done < len(record.compared):
        blocks.append(Text(f"{state} Run the same command again to resume."))
    for table in found:
        blocks += [
            *_gain_plot(table), *_gain_table(table), *_without_baseline(table), _levels(table),
            *_by_task(table), _cost(record.rows, table),
        ]  # fmt: skip
    blocks += _during_mid_training(curves(record.rows))
    return Section("objectives", "Objectives side by side", lead, blocks)


def _one_baseline(table: Comparison) -> str:
    """The baseline of all arms; empty if they have several."""
    names = {gain.baseline for gain in table.average.gains if gain}
    return names.pop() if len(names) == 1 else ""


def _differences(table: Comparison) -> str:
    baseline = _one_baseline(table)
    return f"Difference{f' from {baseline}' if baseline else 's'} after {AFTER[table.point]}"


def _gain_plot(table: Comparison) -> list[Block]:
    several = not _one_baseline(table)
    dots = [
        Dot(
            f"{arm} - {gain.baseline}" if several else arm,
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
    """How many seeds the differences are means of; a column of the table has the count per arm."""
    counts = sorted({len(gain.by_seed) for gain in table.average.gains if gain})
    if not counts:
        counts = [len(table.seeds)]
    if counts == [1]:
        return "There is one seed, so no interval over seeds."
    few = f"{counts[0]} to " if len(counts) > 1 else ""
    return f"Mean and 95% interval (Student's t) over {few}{counts[-1]} seeds, paired by seed."


def _without_baseline(table: Comparison) -> list[Block]:
    """A note on arms whose baseline has no row of the same seed, which the table cannot show."""
    named = [
        f"{arm} (baseline {baseline})"
        for arm, baseline, gain in zip(
            table.arms, table.baselines, table.average.gains, strict=True
        )
        if gain is None and arm != baseline
    ]  # fmt: skip
    if not named:
        return []
    return [Text(f"No difference can be shown, since the baseline has no row of the same seed: "
                 f"{', '.join(named)}.")]  # fmt: skip


def _gain_table(table: Comparison) -> list[Block]:
    """One line per arm: its difference from the baseline with statistics, and for each seed."""
    rows = [
        [
            Cell(arm), Cell(gain.baseline), _gain(gain, 100, 1),
            Cell(str(len(gain.by_seed)), value=len(gain.by_seed)), _plain(gain.effect, 1),
            _p_value(gain.p_value), _p_value(gain.holm), Cell(by_seed(gain)),
        ]
        for arm, gain in zip(table.arms, table.average.gains, strict=True)
        if gain is not None
    ]  # fmt: skip
    if not rows:
        return []
    return [
        Table(
            f"Differences of the average after {AFTER[table.point]}",
            ["arm", "baseline", "points", "seeds", "effect", "p", "Holm", "seed: points"], rows,
            note="points: difference from the baseline in percentage points. effect: mean divided "
            "by standard deviation of the seeds' differences. p: two-sided paired t-test over "
            "seeds. Holm: p adjusted for all arms of this table.",
        )
    ]  # fmt: skip


def _levels(table: Comparison) -> Table:
    """Rows: tasks, average, bits per byte, samples, training. Columns: arms."""
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
        "Means over the seeds of each arm (their number in brackets) with 95% intervals over seeds "
        "(Student's t). Means over different seeds are not comparable: use the differences, which "
        "are paired by seed.",
    )  # fmt: skip


def _by_task(table: Comparison) -> list[Block]:
    """Differences from the baselines, with the same rows and columns as `_levels`."""
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
            note="Accuracy in percentage points, bits per byte, and measures of the samples and of "
            "the training. A 95% interval misses a true difference of 0 once in twenty times.",
        )
    ]  # fmt: skip


def _lines(table: Comparison) -> list[tuple[str, Line, float, int]]:
    """Name, values, factor and number of digits of each row."""
    return [
        *((task, line, 100, 1) for task, line in table.accuracy.items()),
        *((f"bits/byte {domain}", line, 1, 3) for domain, line in table.bits_per_byte.items()),
        *(
            (f"{name}, {UNITS[name]}", line, 1, 2) if name in UNITS else (name, line, 100, 1)
            for name, line in table.sampled.items()
        ),
        *(
            (f"{name}, nats", line, 1, 2) if "loss" in name else (f"{name}, %", line, 100, 1)
            for name, line in table.training.items()
        ),
    ]


def _plain(value: float | None, digits: int) -> Cell:
    return NO_VALUE if value is None else Cell(f"{value:.{digits}f}", value=value)


def _p_value(p: float | None) -> Cell:
    return NO_VALUE if p is None else Cell(p_text(p), value=p)


def _gain(gain: Gain, scale: float, digits: int) -> Cell:
    half = "" if gain.half is None else f"± {scale * gain.half:.{digits}f}"
    return Cell(f"{scale * gain.mean:+.{digits}f}", half, gain.mean)


def _mean(cell: Mean | None, scale: float, digits: int) -> Cell:
    if cell is None:
        return NO_VALUE
    half = "" if cell.half is None else f"± {scale * cell.half:.{digits}f}"
    return Cell(f"{scale * cell.mean:.{digits}f}", half, cell.mean)


def _during_mid_training(found: list[Curve]) -> list[Block]:
    if not found:
        missing = "Accuracy during mid-training was not measured."
        return [Missing(missing, "remit compare ... compare.points=4")]
    series = [
        Series(
            curve.arm,
            [
                Point(100 * part, 100 * c.mean, None if c.half is None else 100 * c.half)
                for part, c in zip(curve.parts, curve.averages, strict=True)
            ],
            ARM_COLOURS.get(curve.arm, VARIANT),
        )
        for curve in found
    ]
    reached = [
        f"{c.arm} at step {c.steps_to_ntp:,}"
        for c in found
        if c.steps_to_ntp is not None and c.arm != "ntp"
    ]
    notes = []
    if reached:
        notes.append(
            f"Reached the final accuracy of plain mid-training: {', '.join(reached)} (mean over "
            "seeds, interpolated linearly between points)."
        )
    if any(c.seeds != found[0].seeds for c in found):
        counts = ", ".join(f"{c.arm} {len(c.seeds)}" for c in found)
        notes.append(f"Number of seeds: {counts}. Lines of different seeds are not comparable.")
    return [
        LineChart(
            "Accuracy during mid-training", "percent of the mid-training done",
            "average accuracy, percent", series, note=" ".join(notes), limits=PERCENT,
        )
    ]  # fmt: skip


def _cost(found: list[Row], table: Comparison) -> Table:
    """The cost of the arms up to a point."""
    here = [row for row in found if row.point == table.point]
    spent = {arm: [row for row in here if row.arm == arm] for arm in table.arms}
    least = min(row.flops for row in here)
    return Table(
        f"Cost of the arms up to the end of {AFTER[table.point]}",
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
        note="FLOPs: as a multiple of the cheapest arm; they exclude the arms that the base and "
        "the reference come from. Passes: over the source that was read most often in this "
        "mid-training. Seconds: measured, mean over seeds; cached scores take no time.",
    )  # fmt: skip
