"""The command on all nodes but the first of a hostfile without ssh (`--no_ssh`).

The user runs the same `remit` line on every node with its `--node_rank`. The first node plans,
holds the lock and writes the ledger. The others start their ranks when they see its launch spec.
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
    """Rank of this node in the hostfile; 0 if ssh or srun starts the ranks."""
    given = " ".join(launch.runner_args)
    found = re.search(r"--node_rank[= ](\d+)", given)
    return int(found[1]) if launch.hostfile and "--no_ssh" in given and found else 0


def follow(stages: list[Stage], run: RunDir) -> None:
    """Run this node's ranks of all stages, each when the first node has written its launch spec.

    Raises:
        StageFailed: ranks of this node failed.
        Interrupted: a signal arrived; the ranks have ended.
    """
    with signals_raise():
        for stage in stages:
            if number := node_rank(stage.config.launch):
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
