"""Tables of scores: of evaluated models side by side, and of the arms of a comparison."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from pipelines import summary
from pipelines.comparison import Cell, Comparison, Curve
from pipelines.rows import Row


def score_table(columns: list[summary.Column]) -> Table:
    """Rows: task families, their average, bits per byte. Columns: the evaluated models."""
    # Narrow, so that base and four rounds fit into 80 characters.
    table = Table(
        title="accuracy in percent", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    table.add_column("task", min_width=10)
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True)
    tasks = list(dict.fromkeys(task for c in columns for task in c.result["tasks"]))
    for task in tasks:
        table.add_row(
            task,
            *(f"{100 * c.accuracy(task):.1f}" if task in c.result["tasks"] else "-"
              for c in columns),
        )  # fmt: skip
    if tasks:
        table.add_section()
        table.add_row("average", *(_percent(c, "average") for c in columns))
        table.add_row("95% +-", *(_percent(c, "average_half_interval") for c in columns))
    for domain in dict.fromkeys(d for c in columns for d in c.result["bits_per_byte"]):
        found = (c.result["bits_per_byte"].get(domain) for c in columns)
        table.add_row(
            f"bits/B {domain}", *(f"{v['bits_per_byte']:.3f}" if v else "-" for v in found)
        )
    table.caption = _notes(columns)
    return table


def _percent(column: summary.Column, key: str) -> str:
    return f"{100 * column.result[key]:.1f}" if key in column.result else "-"


def _notes(columns: list[summary.Column]) -> str | None:
    missing = summary.not_asked(columns).items()
    lines = [*summary.score_notes(columns), *(f"not asked: {k}: {why}" for k, why in missing)]
    return escape("\n".join(lines)) or None


def task_table(column: summary.Column) -> Table:
    """One model: accuracy with interval per task."""
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


def comparison_table(found: Comparison) -> Table:
    """Rows: tasks, their average, the gain over NTP. Columns: arms."""
    after = {"mid": "mid-training", "post": "post-training"}[found.point]
    many = len(found.seeds) > 1
    seeds = f"{len(found.seeds)} seeds, 95% interval over seeds" if many else "1 seed"
    table = Table(
        title=f"accuracy in percent after {after}, {seeds}",
        box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False,
    )  # fmt: skip
    table.add_column("task", min_width=10)
    for arm in found.arms:
        table.add_column(arm, justify="right", no_wrap=True)
    for title, cells in found.cells.items():
        if title == "average":
            table.add_section()
        table.add_row(title, *map(_cell, cells))
    if found.gain:
        table.add_row("less ntp", *map(_cell, found.gain))
    for domain, cells in found.bits_per_byte.items():
        table.add_row(f"bits/B {domain}", *map(_bits, cells))
    return table


def curve_table(curves: list[Curve]) -> Table:
    """Rows: how much of the mid-training is done. Columns: arms."""
    table = Table(
        title="average accuracy along the mid-training", box=SIMPLE_HEAD, padding=(0, 1, 0, 0),
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
        table.add_row("ntp's end", *("-" if s is None else f"step {s:,}" for s in reached))
    return table


def cost_table(found: list[Row], point: str, arms: list[str]) -> Table:
    """Tokens, passes, FLOPs and seconds of each arm up to a point, a mean over seeds."""
    what = {"mid": "mid-training", "post": "mid- and post-training"}[point]
    table = Table(title=f"cost of {what}", box=SIMPLE_HEAD, pad_edge=False)
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
        "passes: over the source that was read most often; seconds: as run, scores that were there "
        "cost none"
    )
    return table


def _cell(cell: Cell) -> str:
    return f"{100 * cell.mean:.1f}" + (f"+-{100 * cell.half:.1f}" if cell.half is not None else "")


def _bits(cell: Cell) -> str:
    return f"{cell.mean:.3f}" + (f"+-{cell.half:.3f}" if cell.half is not None else "")
