"""Everything that remit prints: live view, tables, errors. No other module prints.

On a terminal it shows a live table; elsewhere it prints one line per event without colour. With
`--json` it prints one JSON object on standard output, and everything else on standard error.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipelines.comparison import tables as comparison
from pipelines.comparison.arm_stages import FOLDER
from pipelines.comparison.row import Row
from pipelines.errors import Interrupted, StageFailed, UserError
from pipelines.launch.doctor import Check
from pipelines.plan.estimate import Estimate
from pipelines.plan.kinds import headline
from pipelines.plan.stage import Stage
from pipelines.quantities import duration, quantity
from pipelines.report import summary
from pipelines.run_dir.paths import RunDir, lock_holder
from pipelines.run_dir.progress import read_progress
from remit_cli import tables
from remit_cli.status import status_of

MARKS = {
    "done": "[green]done[/]",
    "skip": "[dim]done earlier[/]",
    "run": "[yellow]running[/]",
    "no signal": "[red]no signal[/]",
}
# How many characters of a stage's name fit next to the other columns of a plan, of 80 in all.
MOST_NAME = 38


def _planned_name(stage: str) -> str:
    """The stage's name without the folder shared by a comparison; a long one takes two lines."""
    name = stage.removeprefix(f"{FOLDER}/")
    folder, _, last = name.rpartition("/")
    return name if len(name) <= MOST_NAME else f"{folder}/\n  {last}"


def failure_facts(failed: StageFailed) -> dict[str, Any]:
    """Facts about a failed stage for the JSON of a command."""
    return {
        "status": "failed", "stage": failed.stage, "log": failed.log_path,
        "exit_code": failed.returncode, "reason": failed.reason,
    }  # fmt: skip


class Screen:
    """Where a command prints."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.console = Console(stderr=as_json, highlight=False, soft_wrap=True)
        self.errors = Console(stderr=True, highlight=False, soft_wrap=True)

    def _emit(self, values: dict[str, Any]) -> None:
        if self.as_json:
            print(json.dumps(values))

    def followed(self, run: RunDir) -> None:
        """Say that a command has ended on a node other than the first."""
        self.console.print(f"This node's ranks have ended. Run directory: {escape(str(run.root))}")
        self._emit({"status": "done", "run_dir": str(run.root)})

    def doctor(self, checks: list[Check]) -> None:
        """Print what was checked on this machine, and what to do about problems."""
        table = Table(box=None, pad_edge=False)
        for heading in ("", "state", "found", "what to do"):
            table.add_column(heading, overflow="fold")
        colours = {"ok": "green", "warning": "yellow", "missing": "red"}
        for c in checks:
            state = f"[{colours[c.state]}]{c.state}[/]"
            table.add_row(c.name, state, escape(c.found), escape(c.advice))
        self.console.print(table)
        status = "missing" if any(c.state == "missing" for c in checks) else "ok"
        self._emit({"status": status, "checks": [asdict(c) for c in checks]})

    def scripts(self, paths: list[Path], chain: bool) -> None:
        """Print the paths of written batch scripts and how to submit them."""
        for path in paths:
            self.console.print(escape(str(path)))
        start = f"bash {paths[-1]}" if chain else f"sbatch {paths[0]}"
        self.console.print(
            f"Nothing was started. Read and edit the scripts, then run: {escape(start)}"
        )
        self._emit({"status": "written", "scripts": [str(path) for path in paths]})

    def user_error(self, message: str) -> None:
        self.errors.print(f"[bold red]error:[/] {escape(message)}")
        self._emit({"status": "wrong input", "error": message})

    @contextmanager
    def exits_on_mistake(self) -> Iterator[None]:
        """Print a `UserError` and exit with 2."""
        try:
            yield
        except UserError as error:
            self.user_error(str(error))
            sys.exit(2)

    def warning(self, message: str) -> None:
        self.errors.print(f"[yellow]warning:[/] {escape(message)}")

    def stage_failed(self, failed: StageFailed) -> None:
        self.failure(failed)
        self._emit(failure_facts(failed))

    def failure(self, failed: StageFailed) -> None:
        """Print a failed stage with the end of its log; no JSON."""
        self.errors.print(f"[bold red]failed:[/] {escape(str(failed))}")
        self.errors.print("Last lines of the log:")
        self.errors.print(Text(failed.last_lines))
        self.errors.print("Run the same command again to resume from the last checkpoint.")

    def interrupted(self, interrupted: Interrupted) -> None:
        name = signal.Signals(interrupted.signum).name
        cause = interrupted.why or name
        saved = "" if interrupted.step is None else f"; step {interrupted.step} is saved"
        self.errors.print(f"interrupted by {cause}{saved}. Run the same command again to resume.")
        self._emit({
            "status": "interrupted", "signal": name, "why": interrupted.why,
            "saved_step": interrupted.step,
        })  # fmt: skip

    @contextmanager
    def view(self, stages: list[Stage], run: RunDir) -> Iterator[View]:
        """The view of a running plan: a live table on a terminal, otherwise lines."""
        view = View(stages, run, self.console)
        live = Live(console=self.console, get_renderable=view.table, refresh_per_second=4)
        with live if self.console.is_terminal else nullcontext():
            yield view

    def results(
        self, results: dict[str, Any], checks: list[summary.Expectation], run: RunDir,
        values: dict[str, Any],
    ) -> None:  # fmt: skip
        columns = summary.columns(results)
        if len(columns) > 1:
            self.console.print(tables.score_table(columns))
            self.console.print(step_table(results))
        elif columns:
            self.console.print(tables.task_table(columns[0]))
        if values["command"] == "analyze":
            for table in tables.analysis_tables(values["analysis"]):
                self.console.print(table)
            for sentence in values["analysis"]["missing"]:
                self.console.print(escape(sentence))
        if checks:
            self.console.print("Expected behaviour of the built-in world (a generated task suite):")
        for check in checks:
            mark = "[green]met[/]    " if check.met else "[red]not met[/]"
            self.console.print(f"  {mark} {check.text}: {check.measured}")
        self.console.print(f"run directory: {escape(str(run.root))}")
        self._emit(values)

    def comparison(self, rows: list[Row], path: Path, run: RunDir) -> None:
        compared, drawn = comparison.tables(rows), comparison.curves(rows)
        for table in compared:
            for part in tables.comparison_tables(table):
                self.console.print(part)
        if drawn:
            self.console.print(tables.curve_table(drawn))
        for table in compared:
            self.console.print(tables.cost_table(rows, table.point, table.arms))
        self.console.print(f"rows: {escape(str(path))}")
        self._emit({
            "status": "done", "command": "compare", "run_dir": str(run.root),
            "tables": [asdict(table) for table in compared],
            "curves": [asdict(curve) for curve in drawn], "rows": [asdict(row) for row in rows],
        })  # fmt: skip

    def plan(self, predicted: Estimate, run: RunDir) -> None:
        table = tables.narrow_table(f"plan, {quantity(predicted.parameters)} parameters")
        for heading in ("stage", "tokens", "FLOPs", "disk", "time", "state"):
            left = heading in ("stage", "state")
            table.add_column(heading, justify="left" if left else "right", overflow="fold")
        for s in predicted.stages:
            tokens, flops = (
                quantity(work) if s.steps_known else "unknown" for work in (s.tokens, s.flops)
            )
            disk, seconds = f"{quantity(s.disk_bytes)}B", duration(s.seconds)
            table.add_row(_planned_name(s.stage), tokens, flops, disk, seconds, s.state)
        totals = {
            key: sum(getattr(stage, key) for stage in predicted.stages)
            for key in ("tokens", "flops", "disk_bytes", "seconds")
        }
        table.add_section()
        table.add_row(
            f"{len(predicted.stages)} stages", quantity(totals["tokens"]),
            quantity(totals["flops"]), f"{quantity(totals['disk_bytes'])}B",
            duration(totals["seconds"]), "",
        )  # fmt: skip
        self.console.print(table)
        if unknown := [_planned_name(s.stage) for s in predicted.stages if not s.steps_known]:
            self.console.print(
                f"{', '.join(unknown)}: trains by epochs, and the number of steps is not known "
                "before the data is read; the totals are without it."
            )
        self.console.print(
            f"{duration(predicted.seconds_left)} left, assuming "
            f"{quantity(predicted.flops_per_second)}FLOP/s ({predicted.rate_source}). "
            f"Run directory: {escape(str(run.root))}. Nothing was started."
        )
        self._emit({
            "status": "planned", "run_dir": str(run.root), "parameters": predicted.parameters,
            "stages": [vars(s) for s in predicted.stages], "total": totals,
            "seconds_left": predicted.seconds_left,
            "rate": {"flops_per_second": predicted.flops_per_second,
                     "source": predicted.rate_source},
        })  # fmt: skip

    def report(self, path: Path) -> None:
        self.console.print(f"report: {escape(str(path))}")

    def no_report(self, run: RunDir, error: Exception) -> None:
        # A UserError explains itself; for any other error its class name helps most.
        what = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}."
        self.errors.print(
            f"[bold red]no report:[/] {escape(what)} The run itself is complete. Try again with: "
            f"remit report {escape(str(run.root))}"
        )

    def status(self, run: RunDir, *, once: bool) -> None:
        """Print the state of a run; on a terminal, follow a running one until it ends."""
        if self.console.is_terminal and not once and lock_holder(run):
            with Live(console=self.console, get_renderable=lambda: status_of(run)[0]):
                while lock_holder(run):
                    time.sleep(0.5)
        shown, values = status_of(run)
        self.console.print(shown)
        self._emit(values)


class View:
    """Watches a plan: a live table on a terminal, otherwise a line for each event."""

    def __init__(self, stages: list[Stage], run: RunDir, console: Console) -> None:
        self.stages, self.run, self.console = stages, run, console
        self.states: dict[str, str] = {}
        self.words: dict[str, str] = {}
        self.began: dict[str, float] = {}
        self.took: dict[str, float] = {}
        self.start = time.monotonic()

    def started(self, stage: Stage, how: Literal["start", "resume"]) -> None:
        self.states[stage.name] = "run"
        self.began[stage.name] = time.monotonic()
        self._line(stage, "resumes" if how == "resume" else "starts")

    def tick(self, stage: Stage) -> None:
        at = read_progress(self.run.stage(stage.name))
        if at:
            self.words[stage.name] = str(at)

    def finished(self, stage: Stage, result: dict[str, Any]) -> None:
        state = "no signal" if result.get("status") == "no signal" else "done"
        seconds = result["wall_seconds"]
        self._ended(stage, result, state, seconds, f"{state} in {duration(seconds)}")

    def skipped(self, stage: Stage, result: dict[str, Any]) -> None:
        self._ended(stage, result, "skip", result["seconds"], "is complete, skipped")

    def _ended(
        self, stage: Stage, result: dict[str, Any], state: str, seconds: float, words: str
    ) -> None:
        self.states[stage.name] = state
        self.words[stage.name] = headline(result)
        self.took[stage.name] = seconds
        self._line(stage, f"{words}: {headline(result)}")

    def _line(self, stage: Stage, words: str) -> None:
        """Print an event, unless the table shows it."""
        if self.console.is_terminal:
            return
        number = 1 + [s.name for s in self.stages].index(stage.name)
        place = f"[{number}/{len(self.stages)}]"
        self.console.print(
            Text(f"{duration(time.monotonic() - self.start):>7} {place} {stage.name} {words}")
        )

    def table(self) -> Group:
        """The stages with their states and results, and a bar."""
        table = Table(box=None, pad_edge=False)
        for heading in ("stage", "", "time", ""):
            justify: Literal["right", "left"] = "right" if heading == "time" else "left"
            table.add_column(heading, justify=justify, overflow="ellipsis", no_wrap=True)
        for stage in self.stages:
            state = self.states.get(stage.name)
            took = self.took.get(stage.name)
            if state == "run":
                took = time.monotonic() - self.began[stage.name]
            table.add_row(
                stage.name, MARKS.get(state or "", "[dim]to do[/]"),
                duration(took) if took is not None else "", escape(self.words.get(stage.name, "")),
            )  # fmt: skip
        done = sum(state != "run" for state in self.states.values())
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=len(self.stages), completed=done, width=40),
            f"{done}/{len(self.stages)} stages, {duration(time.monotonic() - self.start)}",
        )
        return Group(table, bar)


def step_table(results: dict[str, dict[str, Any]]) -> Table:
    """Time and result of each stage other than evaluations."""
    table = Table(title="stages")
    for heading in ("stage", "time", "result"):
        table.add_column(heading)
    for name, result in results.items():
        if result["kind"] != "evaluate":
            seconds = result.get("wall_seconds", result["seconds"])
            table.add_row(name, duration(seconds), escape(headline(result)))
    return table
