"""`remit launch --slurm`: one batch script for a command, or one per stage of a flywheel."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from pipelines.errors import UserError
from pipelines.launch.batch_script import Job, write_scripts
from pipelines.plan.kinds import by_launch_key
from pipelines.plan.per_stage import placed, stage_launch
from pipelines.plan.stage import Stage
from remit_cli import render
from remit_cli.session import Session

# Commands that run no stage.
NOT_FOR_A_JOB = ("launch", "doctor", "status", "report", "plan")


def write_batch_scripts(
    group: Any, words: list[str], *, per_stage: bool, output: Path | None, json: bool
) -> None:
    """Write the scripts and print their paths; exit with 2 if the command is wrong."""
    screen = render.Screen(json)
    with screen.exits_on_mistake():
        session, jobs = _jobs(group, words, per_stage)
        folder = (output or session.run.root / "slurm").resolve()
        paths = write_scripts(jobs, folder, Path.cwd(), chain=per_stage)
    screen.scripts(paths, per_stage)


def _jobs(group: Any, words: list[str], per_stage: bool) -> tuple[Session, list[Job]]:
    if not words or words[0].startswith("-") or "=" in words[0]:
        words = ["flywheel", *words]
    name, *rest = words
    if name not in group.commands or name in NOT_FOR_A_JOB:
        raise UserError(f"remit launch --slurm: '{name}' cannot run as a job.")
    if per_stage and name != "flywheel":
        raise UserError(f"--per-stage works only with flywheel, not with {name}.")
    context: click.Context = group.commands[name].make_context(name, list(rest))
    given = context.params
    session = Session(
        name, given.get("config", ""), given.get("run_dir") or given.get("run"), given.get("gpus"),
        given.get("hostfile"), False, given.get("overrides") or [],
    )  # fmt: skip
    session.load()
    if session.config.launch.hostfile:
        raise UserError("remit launch --slurm: SLURM chooses the nodes; leave the hostfile out.")
    remit = [sys.executable, "-m", "remit_cli", name, *rest]
    if not per_stage:
        return session, [_command_job(session, name, remit)]
    if given["until"] is not None or given["only"] is not None:
        raise UserError("--per-stage sets --only for each job; leave --until and --only out.")
    stages = session.plans.whole_flywheel(
        session.config, given["iterations"], given["base"], given["ref"]
    )
    return session, [_stage_job(placed(stage), n, remit) for n, stage in enumerate(stages, start=1)]


def _command_job(session: Session, name: str, remit: list[str]) -> Job:
    """One job, as large as its largest stage."""
    config = session.config
    sizes = [config.launch, *(stage_launch(config, kind.name) for kind in by_launch_key().values())]
    nodes, gpus = max(launch.nodes for launch in sizes), max(launch.gpus for launch in sizes)
    title = f"remit-{session.run.root.name}-{name}"
    return Job(title, remit, max(1, nodes), gpus, config.launch.slurm)


def _stage_job(stage: Stage, number: int, remit: list[str]) -> Job:
    launch, command = stage.config.launch, [*remit, "--only", stage.name]
    return Job(
        f"{number:02d}-{stage.name}", command, max(1, launch.nodes), launch.gpus, launch.slurm
    )
