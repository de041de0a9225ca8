"""Tables of an analysis: gaps during training, weights by group of tokens, movement."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.markup import escape
from rich.table import Table

from remit_cli.tables import number_table, with_interval

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
