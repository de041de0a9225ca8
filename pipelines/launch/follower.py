"""The command on the second and later machines of a hostfile without ssh (`--no_ssh`).

The same `remit` line runs on every machine, with another `--node_rank`. The first one plans, holds
the lock and writes the ledger; the others start their ranks of each stage when it has given orders.
"""

from __future__ import annotations

import re
import time

from pipelines.errors import StageFailed
from pipelines.launch.launcher import POLL_SECONDS, end_group, spawn
from pipelines.machine.signals import signals_raise
from pipelines.plan.placement import command_line, environment
from pipelines.plan.stage import Stage
from pipelines.recipe.schema import LaunchConfig
from pipelines.run_dir.paths import RunDir, StageDir, read_json
from pipelines.run_dir.progress import tail


def node_rank(launch: LaunchConfig) -> int:
    """This machine's number among those of the hostfile; 0 where ssh or srun starts the ranks."""
    given = " ".join(launch.runner_args)
    found = re.search(r"--node_rank[= ](\d+)", given)
    return int(found[1]) if launch.hostfile and "--no_ssh" in given and found else 0


def follow(stages: list[Stage], run: RunDir) -> None:
    """Run this machine's ranks of each stage, as the first machine orders them, to the last.

    Raises:
        StageFailed: this machine's ranks failed.
        Interrupted: a signal came; the ranks are gone.
    """
    with signals_raise():
        for stage in stages:
            number = node_rank(stage.config.launch)
            if number:
                _follow(stage, run.stage(stage.name), number)


def _follow(stage: Stage, stage_dir: StageDir, number: int) -> None:
    launch = stage.config.launch
    log = stage_dir.root / f"log-node-{number}.txt"
    done = ""
    while not stage_dir.is_complete():
        spec = read_json(stage_dir.launch_spec) if stage_dir.launch_spec.is_file() else {}
        if spec.get("token", done) == done:
            time.sleep(POLL_SECONDS)
            continue
        done, port = str(spec["token"]), int(spec["port"])
        command = command_line(launch, stage_dir, port, done)
        process = spawn(command, log, environment(launch, port, offline=False), ())
        try:
            while process.poll() is None and read_json(stage_dir.launch_spec)["token"] == done:
                time.sleep(POLL_SECONDS)
            failed = process.poll()
        finally:
            end_group(process)
        if failed:
            raise StageFailed(stage.name, str(log), tail(log), failed)
