"""One command from its options to its exit code: load the config, plan, check, run, show."""

from __future__ import annotations

import shlex
import sys
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.comparison import arm_rules, arm_stages, arms, rows, study
from pipelines.errors import Interrupted, StageFailed, UserError
from pipelines.launch import follower
from pipelines.launch.runner import Observer, Runner
from pipelines.machine import slurm
from pipelines.machine.signals import signals_raise
from pipelines.models import checkpoint
from pipelines.plan import commands, flywheel, preflight, selection
from pipelines.plan.epochs import counted
from pipelines.plan.estimate import base_parameters, estimate
from pipelines.plan.identity import check_unchanged
from pipelines.plan.per_stage import placed
from pipelines.plan.plan_file import read_flywheel_plan, write_plan
from pipelines.plan.stage import ANALYSIS, Stage
from pipelines.recipe import load as recipes
from pipelines.report import Wanted, summary, write_report, write_rows_report
from pipelines.run_dir import disk, ledger
from pipelines.run_dir.layout import check_layout
from pipelines.run_dir.paths import RunDir, RunLock
from remit_cli import render


@dataclass
class Session:
    """The options of a command, and the recipe that they result in."""

    plans = commands

    command: str
    config_name: str
    run_dir: Path | None
    gpus: int | None
    hostfile: Path | None
    json: bool
    overrides: list[str]
    until: str | None = None
    only: str | None = None

    def load(self) -> None:
        """Load the recipe; `--gpus` and `--hostfile` take precedence over it."""
        overrides = self.overrides
        if self.command == "analyze":
            assert self.run_dir is not None
            self.run = RunDir(self.run_dir.resolve())
            check_layout(self.run)
            self.config, self.made = read_flywheel_plan(self.run, overrides)
            return
        if self.command == "compare":
            overrides = [arm_rules.whole_key(override) for override in overrides]
        config = recipes.load(self.config_name, overrides)
        launch = config.launch
        if self.gpus is not None:
            launch = replace(launch, gpus=self.gpus)
        if self.hostfile is not None:
            launch = replace(launch, hostfile=str(self.hostfile))
        self.config = replace(config, launch=launch)
        self.run = RunDir((self.run_dir or Path("runs") / config.name).resolve())
        check_layout(self.run)

    def plan_compare(self, base: str | None, ref: str | None) -> list[Stage]:
        """Plan `compare`, and remember the given models, since the rows depend on them."""
        self.compared, self.guided = (
            None if given is None else checkpoint.find_checkpoint(given, option)
            for given, option in ((base, "--base"), (ref, "--ref"))
        )
        return arms.plan_compare(self.config, self.compared, self.guided)

    def plan_analysis(self) -> list[Stage]:
        """Plan `analyze` for the stages that the run has made."""
        return [flywheel.plan_analysis(self.config, self.made)]


def run_and_exit(
    session: Session, make_plan: Callable[[], list[Stage]], *, start: bool = True
) -> None:
    """Run a command and exit: 0 done, 1 failed, 2 wrong input, 130 or 143 by a signal."""
    if slurm.is_extra_task():
        sys.exit(2)  # the first task prints the reason
    screen = render.Screen(session.json)
    try:
        with screen.exits_on_mistake(), signals_raise():
            slurm.check_single_task()
            session.load()
            planned = make_plan()
            if session.command == "flywheel":
                # Includes what --base and --iterations set; `analyze` reads it back.
                session.config = planned[0].config
            stages = [placed(stage) for stage in planned]
            (_run if start else _show_plan)(session, stages, screen)
    except OSError as error:
        if (why := disk.explained(error, session.run.root)) is None:
            raise
        screen.user_error(str(why))
        sys.exit(2)
    except StageFailed as failed:
        screen.stage_failed(failed)
        sys.exit(1)
    except Interrupted as interrupted:
        screen.interrupted(interrupted)
        sys.exit(interrupted.exit_code)


def _run(session: Session, stages: list[Stage], screen: render.Screen) -> None:
    run = session.run
    whole = stages
    chosen = selection.select(stages, session.until, session.only)
    if follower.node_rank(session.config.launch):
        follower.follow(chosen, run)
        screen.followed(run)
        return
    selection.check_inputs(chosen, run)
    stages = [_fetched(stage) for stage in chosen]
    command = shlex.join(["remit", *sys.argv[1:]])
    # Checked before the run directory is created, so that a mistake leaves no files behind.
    facts = preflight.check_plan(stages, run)
    for warning in preflight.version_warnings(stages, run):
        screen.warning(warning)
    data_sha256 = {key: fact.sha256 for key, fact in facts.items()}
    made = None
    if session.command == "compare":
        made = _Rows(session, stages, data_sha256)
        stages = made.stages
        known = {(row.arm, row.seed) for row in [*made.read, *rows.existing_rows(run)]}
        for warning in arm_rules.arms_without_baseline(session.config, known):
            screen.warning(warning)
    with RunLock(run, command) as lock:
        plans = {"flywheel": (run.flywheel_plan, whole), "compare": (run.compared_plan, stages)}
        if session.command in plans:
            file, planned = plans[session.command]
            write_plan(file, session.config, planned)
        with screen.view(stages, run) as view:

            def finished(stage: Stage, result: dict[str, Any]) -> None:
                view.finished(stage, result)
                if made and stage.kind == "evaluate":
                    made.write()

            observer = Observer(view.started, view.tick, finished, view.skipped)
            runner = Runner(run, lock, data_sha256, command, observer)
            results = runner.run_all(stages)
        if made:
            path = made.write()
            # Includes rows of earlier comparisons, which may be the baseline of some arms.
            found = rows.existing_rows(run)
    if made:
        screen.comparison(found, path, run)
    else:
        _show_results(session, results, screen, runner.failure)
    ended = session.command == "flywheel" and all(run.stage(s.name).is_complete() for s in whole)
    if ended or made:
        _report_at_the_end(run, screen)
    if runner.failure is not None:
        screen.failure(runner.failure)
        sys.exit(1)


class _Rows:
    """The rows of a comparison, written after each evaluation, so that a crash loses none.

    `stages` are those still needed, given the rows that were read.

    Raises:
        UserError: rows in the files or in the run directory belong to another study.
    """

    def __init__(self, session: Session, stages: list[Stage], data_sha256: dict[str, str]) -> None:
        self.run = session.run
        base, ref = (
            given and checkpoint.fetch(given, option)
            for given, option in ((session.compared, "--base"), (session.guided, "--ref"))
        )
        self.own = study.Study(stages, data_sha256, session.config, base, ref)
        rows.check_kept(self.run, self.own)
        self.read = rows.read_rows(session.config.compare.rows, self.own)
        self.stages = arm_stages.needed(stages, {row.place for row in self.read})
        self.parameters = base_parameters(session.config, session.compared)

    def write(self) -> Path:
        found = study.result_rows(self.stages, self.run, self.own, self.parameters)
        return rows.write_rows(self.run, [*self.read, *found])


def _report_at_the_end(run: RunDir, screen: render.Screen) -> None:
    """Write the report of a finished run; if that fails, the run still counts as finished."""
    try:
        screen.report(write_report(run))
    except Exception as error:
        screen.no_report(run, error)


def _fetched(stage: Stage) -> Stage:
    """The stage with its hub models downloaded to local folders."""
    inputs = {
        role: given if isinstance(given, str) else checkpoint.fetch(given, f"--{role}")
        for role, given in stage.inputs.items()
    }
    return replace(stage, inputs=inputs)


def _show_results(
    session: Session, results: dict[str, Any], screen: render.Screen, failure: StageFailed | None
) -> None:
    values = {"status": "done", "command": session.command, **summary.as_json(session.run, results)}
    if ANALYSIS in results:
        values["analysis"] = summary.analysis_facts(results[ANALYSIS])
    if failure is not None:
        values |= render.failure_facts(failure)
    checks: list[summary.Expectation] = []
    part = session.until is not None or session.only is not None
    if session.command == "flywheel" and session.config.flywheel.expectations and not part:
        from pipelines.world import CONSTANT_ANSWER_ACCURACY

        checks = summary.expectations(results, CONSTANT_ANSWER_ACCURACY)
        values["expectations"] = [vars(check) for check in checks]
    screen.results(results, checks, session.run, values)


def _show_plan(session: Session, stages: list[Stage], screen: render.Screen) -> None:
    preflight.check_settings(stages)
    check_unchanged(stages, session.run)
    base = stages[0].inputs.get("base")
    given = base if isinstance(base, checkpoint.ModelRef) else None
    predicted = estimate(counted(stages, session.run), session.run, given)
    if session.command == "compare":
        # None, if the rows that are read cover the whole plan.
        left = arm_stages.needed(stages, rows.places(session.config.compare.rows))
        names = {stage.name for stage in left}
        own = [stage for stage in predicted.stages if stage.stage in names]
        predicted = replace(predicted, stages=own)
    screen.plan(predicted, session.run)


def show_status(folder: Path, json: bool, once: bool) -> None:
    """`remit status`: show what a run has done and is doing, read only from its files."""
    screen = render.Screen(json)
    run = RunDir(folder.resolve())
    try:
        with screen.exits_on_mistake():
            if not run.ledger.is_file():
                raise UserError(f"{folder} is not a run directory (it has no ledger.jsonl).")
            _warn_of_ledger(run, screen)
            check_layout(run)
            screen.status(run, once=once or json)
    except Interrupted as interrupted:
        sys.exit(interrupted.exit_code)


def _warn_of_ledger(run: RunDir, screen: render.Screen) -> None:
    if ledger.is_unreadable(run.ledger):
        screen.warning(
            f"{run.ledger}: none of its lines can be read. The state of the stages comes from "
            "their folders alone."
        )


def show_doctor(run_dir: Path | None, json: bool) -> None:
    """`remit doctor`: check this machine; exit 1 if something that training needs is missing."""
    from pipelines.launch.doctor import examine

    checks = examine(run_dir or Path("runs"))
    render.Screen(json).doctor(checks)
    if any(check.state == "missing" for check in checks):
        sys.exit(1)


def draw_report(
    given: list[Path], wanted: Wanted, output: Path | None = None, open_page: bool = False
) -> None:
    """`remit report`: write a report of a run or of rows of comparisons, from files alone."""
    screen = render.Screen(as_json=False)
    with screen.exits_on_mistake():
        if all(path.is_file() for path in given):
            path = write_rows_report(given, wanted, output)
        elif len(given) > 1:
            other = next(path for path in given if not path.is_file())
            raise UserError(
                f"{other} is not a file: report takes one run directory, or one or more files "
                "of rows (rows.jsonl)."
            )
        else:
            run = RunDir(given[0].resolve())
            check_layout(run)
            _warn_of_ledger(run, screen)
            path = write_report(run, wanted, output)
    screen.report(path)
    if open_page:
        webbrowser.open(path.resolve().as_uri())
