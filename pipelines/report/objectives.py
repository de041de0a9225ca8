"""The comparison of objectives from one base over seeds, as in the paper's table."""

from __future__ import annotations

from pipelines.comparison import tables as comparison
from pipelines.comparison.arm_stages import AFTER
from pipelines.comparison.row import Row
from pipelines.comparison.tables import Comparison
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
    count,
    filled,
    number,
)
from pipelines.report.record import Record

ARM_COLOURS = {"ntp": 0, "remit": 1, "rho1": 2, "miniplm": 3, "kd": 4, "sft": 5, "more-rl": 6}
# Variants share a colour that no built-in arm has.
VARIANT = 7


def section(record: Record) -> Section:
    """The results of `remit compare`."""
    lead = (
        "Arms of one seed share base model, data order and settings. They differ in the "
        "mid-training objective, and variants also in the settings that they override."
    )
    found, curves = comparison.tables(record.rows), comparison.curves(record.rows)
    done = sum(bool(stage.result) for stage in record.compared)
    state = f"{done} of {len(record.compared)} stages of the comparison are complete."
    if not found and not curves:
        missing = Missing(
            "This run directory has no comparison of objectives.",
            "remit compare --base RUN/base --ref RUN/round-0/40-rlvr --run-dir RUN",
        )
        if record.compared:
            missing = Missing(f"{state} No model has been evaluated yet.", record.resume_command)
        return Section("objectives", "Objectives side by side", lead, [missing])
    blocks: list[Block] = []
    if done < len(record.compared):
        blocks.append(Text(f"{state} Run the same command again to resume."))
    for table in found:
        blocks += filled(
            _gain_plot(table), _gain_table(table), *_without_baseline(table), _levels(table),
            _by_task(table), _cost(record.rows, table),
        )  # fmt: skip
    blocks.append(_during_mid_training(curves))
    return Section("objectives", "Objectives side by side", lead, blocks)


def _one_baseline(table: Comparison) -> str:
    """The baseline of all arms; empty if they have several."""
    names = {gain.baseline for gain in table.average.gains if gain}
    return names.pop() if len(names) == 1 else ""


def _differences(table: Comparison) -> str:
    baseline = _one_baseline(table)
    return f"Difference{f' from {baseline}' if baseline else 's'} after {AFTER[table.point]}"


def _gain_plot(table: Comparison) -> DotPlot:
    several = not _one_baseline(table)
    dots = [
        Dot(
            f"{arm} - {gain.baseline}" if several else arm, *_percent(gain),
            _mean(gain, 100, 1, "+").line, ARM_COLOURS.get(arm, VARIANT),
        )
        for arm, gain in zip(table.arms, table.average.gains, strict=True)
        if gain is not None
    ]  # fmt: skip
    return DotPlot(
        _differences(table), "difference in average accuracy, percentage points", dots, 0.0,
        _seeds(table),
    )  # fmt: skip


def _seeds(table: Comparison) -> str:
    """How many seeds the differences are means of; a column of the table has the count per arm."""
    counts = sorted({len(gain.by_seed) for gain in table.average.gains if gain})
    counts = counts or [len(table.seeds)]
    if counts == [1]:
        return "There is one seed, so no interval over seeds."
    few = f"{counts[0]} to " if len(counts) > 1 else ""
    return f"Mean and 95% interval (Student's t) over {few}{counts[-1]} seeds, paired by seed."


def _without_baseline(table: Comparison) -> list[Block]:
    """A note on arms whose baseline has no row of the same seed, which the table cannot show."""
    arms = zip(table.arms, table.baselines, table.average.gains, strict=True)
    named = [f"{arm} (baseline {of})" for arm, of, gain in arms if gain is None and arm != of]
    if not named:
        return []
    return [Text(f"No difference can be shown, since the baseline has no row of the same seed: "
                 f"{', '.join(named)}.")]  # fmt: skip


def _gain_table(table: Comparison) -> Table:
    """One line per arm: its difference from the baseline with statistics, and for each seed."""
    rows = [
        [
            Cell(arm), Cell(gain.baseline), _mean(gain, 100, 1, "+"),
            count(len(gain.by_seed)), number(gain.effect, 1),
            _p_value(gain.p_value), _p_value(gain.holm), Cell(comparison.by_seed(gain)),
        ]
        for arm, gain in zip(table.arms, table.average.gains, strict=True)
        if gain is not None
    ]  # fmt: skip
    return Table(
        f"Differences of the average after {AFTER[table.point]}",
        ["arm", "baseline", "points", "seeds", "effect", "p", "Holm", "seed: points"], rows,
        note="points: difference from the baseline in percentage points. effect: mean divided "
        "by standard deviation of the seeds' differences. p: two-sided paired t-test over "
        "seeds. Holm: p adjusted for all arms of this table.",
    )  # fmt: skip


def _mean(
    found: comparison.Cell | comparison.Gain | None, scale: float, digits: int, sign: str = ""
) -> Cell:
    return NO_VALUE if found is None else number(found.mean, digits, found.half, scale, sign)


def _percent(found: comparison.Cell | comparison.Gain) -> tuple[float, float | None]:
    return 100 * found.mean, None if found.half is None else 100 * found.half


def _p_value(p: float | None) -> Cell:
    return NO_VALUE if p is None else Cell(comparison.p_text(p), value=p)


def _levels(table: Comparison) -> Table:
    """Rows: tasks, average, bits per byte, samples, training. Columns: arms."""
    rows = [
        [Cell(name), *(_mean(cell, scale, digits) for cell in line.cells)]
        for name, line, scale, digits in _lines(table)
    ]
    arms, note = table.arms, _seeds(table)
    if not table.same_seeds:
        counted = zip(table.arms, table.own_seeds, strict=True)
        arms = [f"{arm} ({len(seeds)})" for arm, seeds in counted]
        note = (
            "Means over the seeds of each arm (their number in brackets) with 95% intervals over "
            "seeds (Student's t). Means over different seeds are not comparable: use the "
            "differences, which are paired by seed."
        )
    strong = [list(table.accuracy).index(comparison.AVERAGE)]
    title = f"Accuracy in percent after {AFTER[table.point]}"
    return Table(title, ["task", *arms], rows, strong, note)


def _by_task(table: Comparison) -> Table:
    """Differences from the baselines, with the same rows and columns as `_levels`."""
    rows = [
        [Cell(name), *(_mean(gain, scale, digits, "+") for gain in line.gains)]
        for name, line, scale, digits in _lines(table)
        if any(line.gains)
    ]
    return Table(
        _differences(table) + ", by task", ["task", *table.arms], rows,
        note="Accuracy in percentage points, bits per byte, and measures of the samples and of "
        "the training. A 95% interval misses a true difference of 0 once in twenty times.",
    )  # fmt: skip


def _lines(table: Comparison) -> list[tuple[str, comparison.Line, float, int]]:
    """Name, values, factor and number of digits of each row; shares of questions in percent."""
    return [
        *((task, line, 100, 1) for task, line in table.accuracy.items()),
        *((f"bits/byte {domain}", line, 1, 3) for domain, line in table.bits_per_byte.items()),
        *(
            ("entropy, nats", line, 1, 2) if name == "entropy" else (name, line, 100, 1)
            for name, line in table.sampled.items()
        ),
        *(
            (f"{name}, nats", line, 1, 2) if "loss" in name else (f"{name}, %", line, 100, 1)
            for name, line in table.training.items()
        ),
    ]


def _during_mid_training(found: list[comparison.Curve]) -> Block:
    if not found:
        missing = "Accuracy during mid-training was not measured."
        return Missing(missing, "remit compare ... compare.points=4")
    series = []
    for curve in found:
        averages = zip(curve.parts, curve.averages, strict=True)
        points = [Point(100 * part, *_percent(average)) for part, average in averages]
        series.append(Series(curve.arm, points, ARM_COLOURS.get(curve.arm, VARIANT)))
    reached = [
        f"{c.arm} at step {c.steps_to_ntp:,}" for c in found
        if c.steps_to_ntp is not None and c.arm != "ntp"
    ]  # fmt: skip
    notes = []
    if reached:
        notes.append(
            f"Reached the final accuracy of plain mid-training: {', '.join(reached)} (mean over "
            "seeds, interpolated linearly between points)."
        )
    if any(c.seeds != found[0].seeds for c in found):
        counts = ", ".join(f"{c.arm} {len(c.seeds)}" for c in found)
        notes.append(f"Number of seeds: {counts}. Lines of different seeds are not comparable.")
    return accuracy_chart(series, " ".join(notes))


def accuracy_chart(series: list[Series], note: str) -> LineChart:
    """Average accuracy by share of the mid-training, both in percent."""
    return LineChart(
        "Accuracy during mid-training", "percent of the mid-training done",
        "average accuracy, percent", series, note=note, limits=PERCENT,
    )  # fmt: skip


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
                Cell(arm), count(rows[0].tokens), Cell(str(max(row.passes for row in rows))),
                number(rows[0].flops / least if least else None, 2),
                number(sum(row.seconds for row in rows) / len(rows), 0),
            ]
            for arm, rows in spent.items()
        ],
        note="FLOPs: as a multiple of the cheapest arm; they exclude the arms that the base and "
        "the reference come from. Passes: over the source that was read most often in this "
        "mid-training. Seconds: measured, mean over seeds; cached scores take no time.",
    )  # fmt: skip
