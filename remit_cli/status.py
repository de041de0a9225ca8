"""The state of a run, from its files alone: the same for whoever looks, from wherever."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from pipelines import ledger, summary
from pipelines.progress import read_progress, stage_state
from pipelines.quantities import duration
from pipelines.run_dir import RunDir, lock_holder
from remit_cli.headline import headline
from remit_cli.tables import score_table


def status_of(run: RunDir) -> tuple[RenderableType, dict[str, Any]]:
    """Every stage that was begun, what runs now, and the scores so far; and the same as values."""
    last = {e["stage"]: e for e in ledger.read(run.ledger) if e["event"] != "skip"}
    holder = lock_holder(run)
    table = Table(title=str(run.root))
    for heading in ("stage", "state", "time", "result"):
        table.add_column(heading)
    stages: dict[str, Any] = {}
    for name in last:
        state, seconds, words = _stage_status(run, name, last[name], running=bool(holder))
        time_shown = "" if seconds is None else duration(seconds)
        table.add_row(name, state, time_shown, escape(words))
        stages[name] = {"state": state, "seconds": seconds, "result": words}
        at = read_progress(run.stage(name)) if state == "running" else None
        if at:
            stages[name] |= vars(at)
    shown: list[RenderableType] = [
        table,
        escape(f"running: {holder}") if holder else "nothing is running.",
    ]
    columns = summary.columns(summary.read_results(run, list(last)))
    if columns:
        shown.append(score_table(columns))
    values = {
        "status": "running" if holder else "idle",
        "holder": holder,
        "run_dir": str(run.root),
        "stages": stages,
    }
    return Group(*shown), values


def _stage_status(
    run: RunDir, name: str, entry: dict[str, Any], running: bool
) -> tuple[str, float | None, str]:
    """State, wall time, and what there is to say; no time where it is not known."""
    stage_dir = run.stage(name)
    state = stage_state(stage_dir, entry["event"], running=running)
    if stage_dir.is_complete():
        result = stage_dir.read_result()
        # With the start of its process, as in the report.
        return state, entry.get("wall_seconds", result["seconds"]), headline(result)
    if entry["event"] in ("start", "resume"):
        return state, time.time() - entry["time"], str(read_progress(stage_dir) or "no steps yet")
    return state, entry.get("seconds"), str(stage_dir.log)
