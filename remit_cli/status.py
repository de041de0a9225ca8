"""The state of a run, read only from its files, so that every process sees the same."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape

from pipelines.comparison.arm_stages import FOLDER, place_of
from pipelines.plan.kinds import headline
from pipelines.quantities import duration
from pipelines.report import summary
from pipelines.run_dir import ledger
from pipelines.run_dir.paths import RunDir, lock_holder
from pipelines.run_dir.progress import read_progress, stage_state
from remit_cli import tables


def status_of(run: RunDir) -> tuple[RenderableType, dict[str, Any]]:
    """The started stages, how much of the plan is done, what is running, and the scores so far:
    as a table, and as values for JSON.
    """
    last = {e["stage"]: e for e in ledger.read(run.ledger) if e["event"] != "skip"}
    holder = lock_holder(run)
    table = tables.narrow_table(str(run.root))
    for heading in ("stage", "state", "time", "result"):
        table.add_column(heading, overflow="fold")
    stages: dict[str, Any] = {}
    for name, entry in last.items():
        state, seconds, words = _stage_status(run, name, entry, running=bool(holder))
        time_shown = "" if seconds is None else duration(seconds)
        table.add_row(name.removeprefix(f"{FOLDER}/"), state, time_shown, escape(words))
        stages[name] = {"state": state, "seconds": seconds, "result": words}
        if state == "running" and (at := read_progress(run.stage(name))):
            stages[name] |= vars(at)
    plans = _plans(run)
    shown: list[RenderableType] = [
        table,
        *(f"{name}: {p['done']} of {p['stages']} stages" for name, p in plans.items()),
        escape(f"running: {holder}") if holder else "Nothing is running.",
    ]
    results = summary.read_results(run, list(last))
    columns = summary.columns({n: r for n, r in results.items() if place_of(n) is None})
    if columns:
        shown.append(tables.score_table(columns))
    averages = {
        place: result["average"]
        for name, result in results.items()
        if (place := place_of(name)) is not None and "average" in result
    }
    if averages:
        shown.append(tables.arm_table(averages))
    return Group(*shown), {
        "status": "running" if holder else "idle", "holder": holder, "run_dir": str(run.root),
        "plans": plans, "stages": stages,
    }  # fmt: skip


def _plans(run: RunDir) -> dict[str, dict[str, int]]:
    """For each command, how many stages its plan has and how many of them are done."""
    paths = {"flywheel": run.flywheel_plan, "compare": run.compared_plan}
    found = {}
    for command, path in paths.items():
        if path.is_file():
            names = _planned(path, path.stat().st_mtime_ns)
            done = sum(run.stage(name).is_complete() for name in names)
            found[command] = {"done": done, "stages": len(names)}
    return found


@cache
def _planned(path: Path, written: int) -> list[str]:
    """The names of a plan's stages; cached, since following a run reads them twice a second.

    `written` is the modification time, so that a new plan is read again.
    """
    names = [stage["name"] for stage in RunDir.read_plan(path)["stages"]]
    return [name for name in names if ledger.is_name(name)]


def _stage_status(
    run: RunDir, name: str, entry: dict[str, Any], running: bool
) -> tuple[str, float | None, str]:
    """State, wall time (None if unknown) and result, progress or path of the log."""
    stage_dir = run.stage(name)
    state = stage_state(stage_dir, entry["event"], running=running)
    if stage_dir.is_complete():
        result = stage_dir.read_result()
        # Includes the start of the process, as in the report.
        return state, entry.get("wall_seconds", result["seconds"]), headline(result)
    if entry["event"] in ("start", "resume"):
        return state, time.time() - entry["time"], str(read_progress(stage_dir) or "no steps yet")
    return state, entry.get("seconds"), str(stage_dir.log)
