"""Stands in for srun, which is not at hand: starts the tasks of a step on this machine.

Takes the options that `pipelines.machine.slurm.step_command` writes and sets for each task the
variables that srun(1) documents. A task that fails ends the others, as with --kill-on-bad-exit.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time


def main() -> int:
    words = sys.argv[1:]
    count = next(i for i, word in enumerate(words) if not word.startswith("--"))
    options = dict(word.removeprefix("--").partition("=")[::2] for word in words[:count])
    nodes, tasks = int(options["nodes"]), int(options["ntasks"])
    per_node = int(options["ntasks-per-node"])
    assert tasks == nodes * per_node and options["distribution"] == "block", words
    running = []
    for task in range(tasks):
        env = os.environ | {
            "SLURM_PROCID": str(task),
            "SLURM_LOCALID": str(task % per_node),
            "SLURM_NODEID": str(task // per_node),
            "SLURM_STEP_ID": "0",
            "SLURM_STEP_NUM_TASKS": str(tasks),
            "SLURM_STEP_NUM_NODES": str(nodes),
            # Both names lead to this machine.
            "SLURM_STEP_NODELIST": "localhost,localhost",
        }
        command = words[count:]
        running.append(subprocess.Popen(command, env=env))
    failure = 0
    while running and not failure:
        time.sleep(0.05)
        ended = [process for process in running if process.poll() is not None]
        failure = next((process.returncode for process in ended if process.returncode), 0)
        running = [process for process in running if process.poll() is None]
    for process in running:
        process.kill()
    return failure if failure >= 0 else 128 - failure


if __name__ == "__main__":
    sys.exit(main())
