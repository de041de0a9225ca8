"""Reading a run directory: its stages with state, metrics and result, rows and analyses."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from pipelines.comparison import rows
from pipelines.comparison.arm_stages import CHECK, FOLDER
from pipelines.comparison.row import Row
from pipelines.errors import UserError
from pipelines.plan.stage import ANALYSIS, CONTAMINATION, Stage
from pipelines.recipe.load import from_dict
from pipelines.recipe.schema import Config
from pipelines.report import summary
from pipelines.run_dir import ledger
from pipelines.run_dir.paths import RunDir, json_objects, lock_holder
from pipelines.run_dir.progress import finite_number, stage_state

ROUND = re.compile(r"round-(\d+)/")
_CONFIG = re.compile(r"--config[ =]('[^']*'|\S+)")


@cache
def _config(text: str) -> Config | None:
    """The config in a JSON text; cached, since parsing is slow and most stages share one."""
    try:
        return from_dict(json.loads(text))
    except OmegaConfBaseException:
        return None


@dataclass(frozen=True)
class StageRecord:
    """One stage, read from its folder and the ledger.

    Attributes:
        state: see `stage_state`.
        result: result of a complete stage, otherwise empty.
        spec: the stage's config.yaml; empty if it never started.
        start: the newest ledger line of a start or resume; empty if it never started.
    """

    name: str
    kind: str
    state: str
    result: dict[str, Any]
    spec: dict[str, Any]
    start: dict[str, Any]
    metrics_path: Path

    @property
    def round(self) -> int | None:
        found = ROUND.match(self.name)
        return int(found.group(1)) if found else None

    @property
    def seconds(self) -> float | None:
        """Wall time of a complete stage."""
        found = self.result.get("wall_seconds", self.result.get("seconds"))
        return None if found is None else float(found)

    def inside(self, path: str) -> str:
        """A path in the run directory, relative to where that was when the stage ran."""
        return path.removeprefix(f"{self.spec['run_dir']}/")

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """Log lines of the training by step; the later one of a repeated step.

        A value that is not a finite number is None.
        """
        path = self.metrics_path
        lines = path.read_text("utf-8", errors="replace").splitlines() if path.is_file() else []
        by_step = {}
        for entry in json_objects(lines):
            values = {key: finite_number(value) for key, value in entry.items()}
            if "loss" in entry and (step := values.get("step")) is not None:
                by_step[step] = values
        return [by_step[step] for step in sorted(by_step)]

    @cached_property
    def plan(self) -> Stage | None:
        """The stage as planned; None if this version of remit cannot read its settings."""
        config = _config(json.dumps(self.spec["config"]))
        if config is None:
            return None
        inputs, chat = dict(self.spec["inputs"]), bool(self.spec["chat"])
        return Stage(self.kind, self.name, config, inputs, chat)


@dataclass(frozen=True)
class Record:
    """What a run directory has.

    Attributes:
        stages: by name, in the order of the plan, followed by stages that are in no plan.
        entries: lines of the ledger.
        rows: rows of `remit compare`, if it ran.
        analysis, contamination: results of these commands; None without.
    """

    run: RunDir
    stages: dict[str, StageRecord]
    entries: list[dict[str, Any]]
    config: dict[str, Any]
    rows: list[Row]
    analysis: dict[str, Any] | None
    contamination: dict[str, Any] | None

    @property
    def compared(self) -> list[StageRecord]:
        """The planned and finished stages of a comparison."""
        return [s for name, s in self.stages.items() if name.startswith(f"{FOLDER}/")]

    @property
    def own(self) -> list[StageRecord]:
        """The other stages."""
        return [s for name, s in self.stages.items() if not name.startswith(f"{FOLDER}/")]

    @cached_property
    def columns(self) -> list[summary.Column]:
        """The evaluated models, except those of a comparison."""
        return summary.columns({stage.name: stage.result for stage in self.own if stage.result})

    @property
    def only_compares(self) -> bool:
        """Whether the run consists only of a comparison."""
        return not self.own and self.run.compared_plan.is_file()

    @property
    def resume_command(self) -> str:
        """The command that resumes the run."""
        if self.only_compares:
            return "remit compare, with the same arguments"
        return "remit flywheel --run-dir RUN"

    def command(self, words: str) -> str:
        """A command with the run's path for RUN and its recipe; empty if it cannot work here."""
        of_flywheel = re.match("remit (flywheel|analyze)", words)
        lacking = [
            n for n in re.findall(r"RUN/(\S+)", words) if not self.run.stage(n).is_complete()
        ]
        if lacking or (of_flywheel and not self.run.flywheel_plan.is_file()):
            return ""
        given = [_CONFIG.search(str(entry.get("command"))) for entry in self.entries]
        config = [f"--config {found[1]} --run-dir" for found in given if found]
        words = words.replace("--run-dir", (config or ["--run-dir"])[-1])
        return words.replace("RUN", shlex.quote(str(self.run.root)))


def read_record(run: RunDir) -> Record:
    """Everything that a report shows, read only from the run directory.

    Raises:
        UserError: not a run directory, or a file in it is damaged.
    """
    # A comparison whose rows were all read from files ran no stage, and has only a plan.
    if not run.ledger.is_file() and not run.compared_plan.is_file():
        raise UserError(f"{run.root} is not a run directory (it has no ledger.jsonl).")
    entries = list(ledger.read(run.ledger))
    plans = [run.read_plan(p) for p in (run.flywheel_plan, run.compared_plan) if p.is_file()]
    names = {stage["name"]: stage["kind"] for plan in plans for stage in plan["stages"]}
    if stray := [name for name in names if not ledger.is_name(name)]:
        raise UserError(
            f"{run.root}: its plan names a stage {stray[0]!r}, which is not a valid folder name."
        )
    names |= {e["stage"]: e["kind"] for e in entries if "kind" in e}
    running = bool(lock_holder(run))
    stages = {name: _stage(run, name, kind, entries, running) for name, kind in names.items()}
    configs = [plan["config"] for plan in plans]
    configs += [stage.spec["config"] for stage in stages.values() if stage.spec]
    return Record(
        run, stages, entries, configs[0] if configs else {}, rows.existing_rows(run),
        _result(run, ANALYSIS), _result(run, CONTAMINATION) or _result(run, CHECK),
    )  # fmt: skip


def record_of_rows(paths: Sequence[Path], found: list[Row]) -> Record:
    """A comparison of which only the rows are known, from some files."""
    named = RunDir(Path(paths[0].stem if len(paths) == 1 else f"{len(paths)} files of rows"))
    return Record(named, {}, [], {}, found, None, None)


def _stage(
    run: RunDir, name: str, kind: str, entries: list[dict[str, Any]], running: bool
) -> StageRecord:
    folder = run.stage(name)
    own = [e for e in entries if e["stage"] == name and e["event"] != "skip"]
    starts = [e for e in own if e["event"] in ("start", "resume")]
    finishes = [e for e in own if e["event"] == "finish"]
    result = folder.read_result() if folder.is_complete() else {}
    if result and finishes and "wall_seconds" in finishes[-1]:
        result.setdefault("wall_seconds", finishes[-1]["wall_seconds"])
    spec = folder.read_config() if folder.config.is_file() else {}
    state = stage_state(folder, own[-1]["event"] if own else "", running=running)
    return StageRecord(
        name, kind, state, result, spec, starts[-1] if starts else {}, folder.metrics
    )


def _result(run: RunDir, name: str) -> dict[str, Any] | None:
    stage = run.stage(name)
    return stage.read_result() if stage.is_complete() else None
