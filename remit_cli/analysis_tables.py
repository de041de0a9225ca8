"""Tables of an analysis: gaps during training, weights by group of tokens, movement."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

LISTED = 8


def analysis_tables(found: dict[str, Any]) -> Iterator[Table]:
    """Tables of the values that `pipelines.report.summary.analysis_facts` returns."""
    if found["dynamics"]:
        yield _gaps(found["dynamics"], found["dynamics_reference"])
    if found["accuracy"]:
        yield _accuracy(found["accuracy"])
    for entry in found["rounds"]:
        yield _weights(entry)
    if found["movement"]:
        yield _movement(found["movement"])


def _table(title: str, first: str, *headings: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(first)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _gaps(dynamics: list[dict[str, Any]], reference: str) -> Table:
    domains = list(dynamics[0]["gap"])
    table = _table(
        f"log p({escape(reference)}) - log p(checkpoint), nats per held-out token",
        "checkpoint", "tokens", *domains,
    )  # fmt: skip
    for entry in dynamics:
        cells = (_cell(gap["mean"], gap["half_interval"]) for gap in entry["gap"].values())
        table.add_row(escape(entry["checkpoint"]), f"{entry['tokens']:,}", *cells)
    return table


def _accuracy(along: list[dict[str, Any]]) -> Table:
    questions = sum(task["questions"] for task in along[0]["tasks"].values())
    table = _table(
        f"average accuracy in percent on {questions:,} questions", "checkpoint",
        "mid-training done", "accuracy",
    )  # fmt: skip
    for entry in along:
        table.add_row(
            escape(entry["checkpoint"]), f"{entry['done']:.0%}",
            f"{100 * entry['average']:.1f}+-{100 * entry['average_half_interval']:.1f}",
        )  # fmt: skip
    return table


def _weights(entry: dict[str, Any]) -> Table:
    table = _table(
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
    table = _table(
        "how far each part moved the model, KL in nats per held-out token",
        "round",
        "KL(base || mid)",
        "KL(mid || post)",
    )
    for entry in movement:
        pairs = (entry.get(key) for key in ("base_to_mid", "mid_to_post"))
        cells = (_cell(p["kl"], p["half_interval"]) if p else "-" for p in pairs)
        table.add_row(str(entry["round"]), *cells)
    return table


def _cell(mean: float, half: float | None) -> str:
    return f"{mean:.3f}" + (f"+-{half:.3f}" if half is not None else "")
