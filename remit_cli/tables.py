"""Tables of scores, of the arms of a comparison, and of an analysis."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from pipelines.comparison.arm_stages import AFTER, POINTS
from pipelines.comparison.row import Row
from pipelines.comparison.tables import AVERAGE, Cell, Comparison, Curve, by_seed, p_text
from pipelines.report import summary


def narrow_table(title: str) -> Table:
    """A table with little space between its columns, so that many fit into 80 characters."""
    return Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)


def number_table(title: str, first: str, *headings: str, min_width: int | None = None) -> Table:
    """A narrow table of names, at least `min_width` characters wide, and columns of numbers."""
    table = narrow_table(title)
    table.add_column(first, min_width=min_width)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def with_interval(
    mean: float, half: float | None, digits: int = 1, scale: float = 100, sign: str = ""
) -> str:
    """`12.3+-0.4`, or `12.3` if the interval is unknown."""
    around = "" if half is None else f"+-{scale * half:.{digits}f}"
    return f"{scale * mean:{sign}.{digits}f}{around}"


def score_table(columns: list[summary.Column]) -> Table:
    """Rows: task families, their average, bits per byte. Columns: the evaluated models."""
    titles = (column.title for column in columns)
    table = number_table("accuracy in percent", "task", *titles, min_width=10)
    tasks = list(dict.fromkeys(task for c in columns for task in c.result["tasks"]))
    for task in tasks:
        found = (c.result["tasks"].get(task, {}) for c in columns)
        table.add_row(task, *(_percent(score, "accuracy") for score in found))
    if tasks:
        table.add_section()
        table.add_row("average", *(_percent(c.result, "average") for c in columns))
        table.add_row("95% +-", *(_percent(c.result, "average_half_interval") for c in columns))
    for domain in dict.fromkeys(d for c in columns for d in c.result["bits_per_byte"]):
        bits = (c.result["bits_per_byte"].get(domain) for c in columns)
        table.add_row(
            f"bits/B {domain}", *(f"{v['bits_per_byte']:.3f}" if v else "-" for v in bits)
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
    table = number_table("average accuracy in percent", "arm", "seed", *points, min_width=10)
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
    count = len(found.seeds)
    seeds = f"{count} seeds, 95% interval over seeds" if count > 1 else "1 seed"
    arms = (escape(found.arms[number]) for number in part)
    title = f"accuracy in percent after {AFTER[found.point]}, {seeds}"
    table = number_table(title, "task", *arms, min_width=10)
    plain = {"digits": 3, "scale": 1}
    for name, line, form in [
        *((task, line, {}) for task, line in found.accuracy.items()),
        *((f"bits/B {domain}", line, plain) for domain, line in found.bits_per_byte.items()),
        *((name, line, plain if name == "entropy" else {}) for name, line in found.sampled.items()),
    ]:
        if name == AVERAGE:
            table.add_section()
        table.add_row(name, *(_mean(line.cells[number], **form) for number in part))
    return table


def _gain_table(found: Comparison) -> Table:
    """Rows: arms, each with its difference from its baseline."""
    table = narrow_table(f"average after {AFTER[found.point]}, paired by seed")
    for heading in ("arm", "percent", "vs", "points", "effect", "p", "Holm", "seed: points"):
        left = heading in ("arm", "vs", "seed: points")
        table.add_column(
            heading, justify="left" if left else "right", no_wrap=heading != "seed: points"
        )
    average = found.average
    for arm, baseline, cell, gain in zip(
        found.arms, found.baselines, average.cells, average.gains, strict=True
    ):
        if gain is None:
            table.add_row(
                escape(arm), _mean(cell), "" if arm == baseline else f"({baseline}: no row)"
            )
            continue
        table.add_row(
            escape(arm), _mean(cell), escape(gain.baseline),
            with_interval(gain.mean, gain.half, sign="+"),
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
    arms = (curve.arm for curve in curves)
    table = number_table("average accuracy during mid-training", "done", *arms, min_width=10)
    for i, part in enumerate(curves[0].parts):
        table.add_row(f"{part:.0%}", *(_mean(curve.averages[i]) for curve in curves))
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
        seconds = sum(row.seconds for row in spent) / len(spent)
        table.add_row(
            arm, f"{spent[0].tokens:,}", f"{max(row.passes for row in spent)}",
            f"{spent[0].flops:.3g}", f"{seconds:.0f}",
        )  # fmt: skip
    table.caption = (
        "passes: over the source that was read most often. seconds: measured; cached scores take "
        "no time."
    )
    return table


def _mean(cell: Cell | None, digits: int = 1, scale: float = 100) -> str:
    return "-" if cell is None else with_interval(cell.mean, cell.half, digits, scale)


# How many of the tokens with the highest and with the lowest weights are listed.
LISTED = 8


def analysis_tables(found: dict[str, Any]) -> Iterator[Table]:
    """Tables of the values that `pipelines.report.summary.analysis_facts` returns."""
    if found["dynamics"]:
        yield _gaps(found["dynamics"], found["dynamics_reference"])
    if found["accuracy"]:
        yield _accuracy(found["accuracy"])
    yield from map(_weights, found["rounds"])
    if found["movement"]:
        yield _movement(found["movement"])


def _gaps(dynamics: list[dict[str, Any]], reference: str) -> Table:
    title = f"log p({escape(reference)}) - log p(checkpoint), nats per held-out token"
    table = number_table(title, "checkpoint", "tokens", *dynamics[0]["gap"])
    for entry in dynamics:
        gaps = (_nats(gap["mean"], gap["half_interval"]) for gap in entry["gap"].values())
        table.add_row(escape(entry["checkpoint"]), f"{entry['tokens']:,}", *gaps)
    return table


def _accuracy(along: list[dict[str, Any]]) -> Table:
    questions = sum(task["questions"] for task in along[0]["tasks"].values())
    title = f"average accuracy in percent on {questions:,} questions"
    table = number_table(title, "checkpoint", "mid-training done", "accuracy")
    for entry in along:
        accuracy = with_interval(entry["average"], entry["average_half_interval"])
        table.add_row(escape(entry["checkpoint"]), f"{entry['done']:.0%}", accuracy)
    return table


def _weights(entry: dict[str, Any]) -> Table:
    table = number_table(
        f"weights at the start of {escape(entry['mid'])}, reference {escape(entry['reference'])}",
        "group", "tokens", "mean weight", "at the end", "clipped low", "high",
    )  # fmt: skip
    for key in ("domains", "classes"):
        for name, group in entry[key].items():
            table.add_row(
                escape(name), f"{group['tokens']:,}", f"{group['mean_weight']:.3f}",
                f"{entry['at_end'][key][name]['mean_weight']:.3f}",
                f"{group['clipped_low']:.1%}", f"{group['clipped_high']:.1%}",
            )  # fmt: skip
        table.add_section()
    lists = [f"{end}: {_tokens(entry[end])}" for end in ("highest", "lowest") if entry[end]]
    table.caption = "\n".join(lists)
    return table


def _tokens(listed: list[dict[str, Any]]) -> str:
    return escape(", ".join(f"{t['token']!r} {t['mean_weight']:.2f}" for t in listed[:LISTED]))


def _movement(movement: list[dict[str, Any]]) -> Table:
    title = "how far each part moved the model, KL in nats per held-out token"
    table = number_table(title, "round", "KL(base || mid)", "KL(mid || post)")
    for entry in movement:
        pairs = (entry.get(key) for key in ("base_to_mid", "mid_to_post"))
        cells = (_nats(p["kl"], p["half_interval"]) if p else "-" for p in pairs)
        table.add_row(str(entry["round"]), *cells)
    return table


def _nats(mean: float, half: float | None) -> str:
    return with_interval(mean, half, digits=3, scale=1)
