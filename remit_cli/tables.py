"""Tables of scores: evaluated models side by side, and the arms of a comparison."""

from __future__ import annotations

import math
from collections.abc import Callable

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from pipelines.comparison.arm_stages import AFTER, POINTS
from pipelines.comparison.row import Row
from pipelines.comparison.tables import AVERAGE, Cell, Comparison, Curve, Line, by_seed, p_text
from pipelines.report import summary


def score_table(columns: list[summary.Column]) -> Table:
    """Rows: task families, their average, bits per byte. Columns: the evaluated models."""
    # Narrow, so that the base and four rounds fit into 80 characters.
    table = Table(
        title="accuracy in percent", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    table.add_column("task", min_width=10)
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True)
    tasks = list(dict.fromkeys(task for c in columns for task in c.result["tasks"]))
    for task in tasks:
        of = (c.result["tasks"].get(task, {}) for c in columns)
        table.add_row(task, *(_percent(score, "accuracy") for score in of))
    if tasks:
        table.add_section()
        table.add_row("average", *(_percent(c.result, "average") for c in columns))
        table.add_row("95% +-", *(_percent(c.result, "average_half_interval") for c in columns))
    for domain in dict.fromkeys(d for c in columns for d in c.result["bits_per_byte"]):
        found = (c.result["bits_per_byte"].get(domain) for c in columns)
        table.add_row(
            f"bits/B {domain}", *(f"{v['bits_per_byte']:.3f}" if v else "-" for v in found)
        )
    table.caption = _notes(columns)
    return table


def _percent(scores: dict[str, float], key: str) -> str:
    return f"{100 * scores[key]:.1f}" if key in scores else "-"


def _notes(columns: list[summary.Column]) -> str | None:
    missing = summary.not_asked(columns).items()
    lines = [*summary.score_notes(columns), *(f"not evaluated: {k}: {why}" for k, why in missing)]
    return escape("\n".join(lines)) or None


def task_table(column: summary.Column) -> Table:
    """One model: accuracy per task with its interval."""
    table = Table(title=column.stage)
    for heading in ("task", "accuracy", "95% interval", "questions"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for task, score in column.result["tasks"].items():
        low, high = score["interval"]
        table.add_row(
            task, f"{score['accuracy']:.1%}", f"{low:.1%} to {high:.1%}", str(score["questions"])
        )
    if "average" in column.result:
        half = column.result["average_half_interval"]
        table.add_section()
        table.add_row("average", f"{column.result['average']:.1%}", f"+- {half:.1%}", "")
    for domain, value in column.result["bits_per_byte"].items():
        table.add_row(f"bits/byte {domain}", f"{value['bits_per_byte']:.4f}", "", "")
    table.caption = _notes([column])
    return table


# How many points of an arm fit into 80 characters; the last ones are shown.
MOST_POINTS = 8


def arm_table(averages: dict[tuple[str, int, str], float]) -> Table:
    """Average accuracy by arm, seed and point. Rows: arms of a seed. Columns: points."""
    points = sorted({point for _, _, point in averages}, key=_place)[-MOST_POINTS:]
    table = Table(
        title="average accuracy in percent", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    table.add_column("arm", min_width=10)
    for heading in ("seed", *points):
        table.add_column(heading, justify="right", no_wrap=True)
    for arm, seed in dict.fromkeys((arm, seed) for arm, seed, _ in averages):
        found = [averages.get((arm, seed, point)) for point in points]
        shown = ("-" if average is None else f"{100 * average:.1f}" for average in found)
        table.add_row(escape(arm), str(seed), *shown)
    return table


def _place(point: str) -> tuple[int, float]:
    """Sort key of a point of an arm: those during mid-training come first."""
    done, _, whole = point.partition("/")
    return (0, int(done) / int(whole)) if whole else (1 + POINTS.index(point), 0)


# How many arms fit side by side into 80 characters, with and without intervals; and the most
# tables of them to print. With more arms, only the report shows the tasks.
FIT, FIT_ALONE, MOST_TABLES = 5, 7, 2


def comparison_tables(found: Comparison) -> list[Table]:
    """Accuracy by task with the arms side by side, if they fit, and one line for each arm."""
    arms = range(len(found.arms))
    count = math.ceil(len(arms) / (FIT if len(found.seeds) > 1 else FIT_ALONE))
    each = math.ceil(len(arms) / count)
    shown = [arms[i : i + each] for i in arms[::each]] if count <= MOST_TABLES else []
    return [*(_side_by_side(found, part) for part in shown), _gain_table(found)]


def _side_by_side(found: Comparison, part: range) -> Table:
    """Rows: tasks, their average, bits per byte, samples. Columns: some of the arms."""
    table = Table(
        title=f"accuracy in percent after {AFTER[found.point]}, {_seeds(found)}",
        box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False,
    )  # fmt: skip
    table.add_column("task", min_width=10)
    for number in part:
        table.add_column(escape(found.arms[number]), justify="right", no_wrap=True)

    def add(title: str, line: Line, text: Callable[[Cell | None], str]) -> None:
        table.add_row(title, *(text(line.cells[number]) for number in part))

    for title, line in found.accuracy.items():
        if title == AVERAGE:
            table.add_section()
        add(title, line, _cell)
    for domain, line in found.bits_per_byte.items():
        add(f"bits/B {domain}", line, _number)
    for name, line in found.sampled.items():
        add(name, line, _number if name == "entropy" else _cell)
    return table


def _seeds(found: Comparison) -> str:
    count = len(found.seeds)
    return f"{count} seeds, 95% interval over seeds" if count > 1 else "1 seed"


def _gain_table(found: Comparison) -> Table:
    """Rows: arms, each with its difference from its baseline."""
    table = Table(
        title=f"average after {AFTER[found.point]}, paired by seed",
        box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False,
    )  # fmt: skip
    for heading in ("arm", "percent", "vs", "points", "effect", "p", "Holm", "seed: points"):
        left = heading in ("arm", "vs", "seed: points")
        table.add_column(
            heading, justify="left" if left else "right", no_wrap=heading != "seed: points"
        )
    lines = zip(
        found.arms, found.baselines, found.average.cells, found.average.gains, strict=True
    )  # fmt: skip
    for arm, baseline, cell, gain in lines:
        if gain is None:
            table.add_row(
                escape(arm), _cell(cell), "" if arm == baseline else f"({baseline}: no row)"
            )
            continue
        around = "" if gain.half is None else f"+-{100 * gain.half:.1f}"
        table.add_row(
            escape(arm), _cell(cell), escape(gain.baseline), f"{100 * gain.mean:+.1f}{around}",
            "-" if gain.effect is None else f"{gain.effect:.1f}",
            *("-" if p is None else p_text(p) for p in (gain.p_value, gain.holm)), by_seed(gain),
        )  # fmt: skip
    table.caption = (
        "points: difference from the baseline with its 95% interval (Student's t). effect: mean "
        "divided by standard deviation of the seeds' differences. p: two-sided paired t-test. "
        "Holm: p adjusted for all arms of this table."
    )
    return table


def curve_table(curves: list[Curve]) -> Table:
    """Rows: share of the mid-training that is done. Columns: arms."""
    table = Table(
        title="average accuracy during mid-training", box=SIMPLE_HEAD, padding=(0, 1, 0, 0),
        pad_edge=False,
    )  # fmt: skip
    table.add_column("done", min_width=10)
    for curve in curves:
        table.add_column(curve.arm, justify="right", no_wrap=True)
    for i, part in enumerate(curves[0].parts):
        table.add_row(f"{part:.0%}", *(_cell(curve.averages[i]) for curve in curves))
    reached = [curve.steps_to_ntp for curve in curves]
    if any(step is not None for step in reached):
        table.add_section()
        table.add_row("reaches ntp", *("-" if s is None else f"step {s:,}" for s in reached))
    return table


def cost_table(found: list[Row], point: str, arms: list[str]) -> Table:
    """Tokens, passes, FLOPs and mean seconds over seeds of each arm up to a point."""
    table = Table(title=f"cost to the end of {AFTER[point]}", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("arm", "tokens", "passes", "FLOPs", "seconds"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for arm in arms:
        spent = [row for row in found if row.arm == arm and row.point == point]
        table.add_row(
            arm,
            f"{spent[0].tokens:,}",
            f"{max(row.passes for row in spent)}",
            f"{spent[0].flops:.3g}",
            f"{sum(row.seconds for row in spent) / len(spent):.0f}",
        )
    table.caption = (
        "passes: over the source that was read most often. seconds: measured; cached scores take "
        "no time."
    )
    return table


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    return f"{100 * cell.mean:.1f}" + (f"+-{100 * cell.half:.1f}" if cell.half is not None else "")


def _number(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    return f"{cell.mean:.3f}" + (f"+-{cell.half:.3f}" if cell.half is not None else "")
