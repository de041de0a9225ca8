"""The section of scores: tasks by models, with intervals."""

from __future__ import annotations

import math
from dataclasses import replace

from pipelines.evals.intervals import bits_difference, paired_difference
from pipelines.report.blocks import (
    NO_VALUE,
    PERCENT,
    Block,
    Cell,
    LineChart,
    Missing,
    Point,
    Section,
    Series,
    Table,
    Text,
    filled,
    number,
)
from pipelines.report.record import Record
from pipelines.report.summary import Column, not_asked, score_notes


def section(record: Record) -> Section:
    """Rows: tasks. Columns: base, mid-k, post-k."""
    models = record.columns
    lead = "Accuracy in percent on held-out questions. The small figures are 95% intervals."
    if not models:
        missing = Missing(
            "No model of this run has been evaluated.", "remit eval --model RUN/base --run-dir RUN"
        )
        return Section("scores", "Scores", lead, [missing])
    reasons = [[Cell(name), Cell(why)] for name, why in not_asked(models).items()]
    blocks = filled(
        _table(models), *map(Text, score_notes(models)),
        Table("Not evaluated", ["benchmark", "reason"], reasons), *_through_rounds(models),
        _differences(models), _sampled(models),
    )  # fmt: skip
    return Section("scores", "Scores", lead, blocks)


def _table(models: list[Column]) -> Table:
    tasks = list(dict.fromkeys(task for m in models for task in m.result["tasks"]))
    rows = [[Cell(task), *(_accuracy(m, task) for m in models)] for task in tasks]
    strong = []
    if any("average" in m.result for m in models):
        strong.append(len(rows))
        rows.append([
            Cell("average"),
            *(number(m.result.get("average"), 1, m.result.get("average_half_interval"), scale=100)
              for m in models),
        ])  # fmt: skip
    for domain in dict.fromkeys(d for m in models for d in m.result["bits_per_byte"]):
        rows.append([Cell(f"bits/byte {domain}"), *(_bits(m, domain, models) for m in models)])
    return Table(
        "Scores by task and model", ["task", *(m.title for m in models)], rows, strong,
        "Intervals: Wilson for a task, normal for the average. Bits per byte of held-out text "
        "(lower is better): intervals over blocks of documents; differences from round 0 are "
        "paired by block.",
    )  # fmt: skip


def _accuracy(model: Column, task: str) -> Cell:
    if task not in model.result["tasks"]:
        return NO_VALUE
    found = model.result["tasks"][task]
    low, high = found["interval"]
    interval = f"{100 * low:.0f} to {100 * high:.0f}"
    return Cell(f"{100 * found['accuracy']:.1f}", interval, found["accuracy"])


def _bits(model: Column, domain: str, models: list[Column]) -> Cell:
    """Bits per byte with its interval, and the paired difference from the same part of round 0."""
    found = model.result["bits_per_byte"].get(domain)
    if not found:
        return NO_VALUE
    cell = number(found["bits_per_byte"], 3, found.get("half_interval"))
    notes = [cell.interval] if cell.interval else []
    part = model.title.rpartition("-")[0]
    for plain in (m for m in models if part and m.title == f"{part}-0" != model.title):
        pair = (m.result.get("heldout_blocks", {}).get(domain) or {} for m in (plain, model))
        if difference := bits_difference(*pair):
            mean, half = difference
            notes.append(f"{number(mean, 3, half, sign='+').line} vs {plain.title}")
    return replace(cell, interval="; ".join(notes))


def _differences(models: list[Column]) -> Table:
    """Each model minus each earlier one, if both answered the same questions."""
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
    return Table(
        "Differences, row minus column", ["", *(model.title for model in models[:-1])], rows,
        note="Differences of the average accuracy in percentage points, with 95% intervals of "
        "a bootstrap paired by question. An interval misses a true difference of 0 once in "
        "twenty times.",
    )  # fmt: skip


def _difference(first: dict[str, list[int]], second: dict[str, list[int]]) -> Cell:
    mean, half = paired_difference(first, second)
    return number(mean, 1, half, scale=100, sign="+")


def _sampled(models: list[Column]) -> Block:
    """pass@k and entropy of the samples, means over tasks with half their intervals."""
    found = {
        m.title: [t["sampled"] for t in m.result["tasks"].values() if "sampled" in t]
        for m in models
    }
    names = list(dict.fromkeys(name for of in found.values() for t in of for name in t))
    if not names:
        return Missing(
            "No answers were sampled, so pass@k and the entropy of the answers are unknown.",
            "remit eval --model RUN/base --run-dir RUN stage.name=sampled "
            "eval.tasks.TASK.samples=16",
        )
    rows = [
        [
            Cell(f"{name}, {'nats' if name == 'entropy' else 'percent'}"),
            *(_mean_sampled([t[name] for t in of if name in t], name) for of in found.values()),
        ]
        for name in names
    ]
    return Table(
        "Samples", ["", *found], rows, note="Several answers were sampled per question. A model "
        "whose answers vary less has a lower entropy, and its pass@k grows less with k.",
    )  # fmt: skip


def _mean_sampled(scores: list[dict[str, float]], name: str) -> Cell:
    if not scores:
        return NO_VALUE
    unit, digits = (1, 2) if name == "entropy" else (100, 1)
    mean = unit * sum(s["mean"] for s in scores) / len(scores)
    half = unit * math.sqrt(sum(s["half_interval"] ** 2 for s in scores)) / len(scores)
    return number(mean, digits, half)


def _through_rounds(models: list[Column]) -> list[Block]:
    """Average accuracy by round, if the run has two rounds or more."""
    found: dict[str, list[Point]] = {"mid": [], "post": []}
    for model in models:
        part, _, at = model.title.rpartition("-")
        if part in found and "average" in model.result:
            mean, half = model.result["average"], model.result["average_half_interval"]
            found[part].append(Point(int(at), 100 * mean, 100 * half))
    if len(found["mid"]) < 2:
        return []
    series = [
        Series(part, points, 6 if part == "mid" else 1) for part, points in found.items() if points
    ]
    rounds = range(int(max(p.x for s in series for p in s.points)) + 1)
    return [
        LineChart(
            "Average accuracy by round", "round", "percent", series,
            [f"{n}" if n else "0 (plain)" for n in rounds],
            "Whiskers are 95% intervals of each average; compare rounds by the differences above.",
            PERCENT,
        )
    ]  # fmt: skip
