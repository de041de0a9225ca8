"""SLURM's variables about this process: its job, step and rank; see sbatch(1) and srun(1)."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping

from pipelines.errors import UserError


def num_nodes() -> int:
    """Number of nodes of this SLURM job; 1 outside of SLURM."""
    return int(os.environ.get("SLURM_JOB_NUM_NODES") or os.environ.get("SLURM_NNODES") or 1)


def in_job() -> bool:
    return "SLURM_JOB_ID" in os.environ


def is_extra_task(env: Mapping[str, str] = os.environ) -> bool:
    """Whether srun started this command more than once and this is not the first process.

    SLURM_NTASKS cannot tell, since a batch script has it too and is a single process.
    """
    return int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and env.get("SLURM_PROCID", "0") != "0"


def check_single_task(env: Mapping[str, str] = os.environ) -> None:
    """Raise a UserError if srun started this command more than once."""
    tasks = int(env.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks > 1:
        raise UserError(
            f"srun started this command {tasks} times, but a run allows one writer. Remove srun: "
            "put one 'remit ...' line into the sbatch script, with --gpus for processes per node. "
            "remit calls srun itself to start the ranks on the nodes of the job."
        )


def step_command(nodes: int, ranks_per_node: int, cores_per_node: int) -> list[str]:
    """The srun command line that starts the ranks of a stage, one task each."""
    # This command may run in a step of salloc or srun, which holds the resources of the ranks.
    overlap = ["--overlap"] if "SLURM_STEP_ID" in os.environ else []
    return [
        "srun",
        f"--nodes={nodes}",
        f"--ntasks={nodes * ranks_per_node}",
        f"--ntasks-per-node={ranks_per_node}",
        f"--cpus-per-task={max(1, cores_per_node // ranks_per_node)}",
        # Local rank r takes GPU r, so every rank must see all GPUs of its node.
        "--distribution=block",
        "--kill-on-bad-exit=1",
        "--input=none",
        "--export=ALL",
        *overlap,
    ]


# Variables about the tasks of the job, which srun would apply to the ranks.
NOT_INHERITED = (
    "SLURM_NTASKS", "SLURM_NPROCS", "SLURM_NTASKS_PER_NODE", "SLURM_CPUS_PER_TASK",
    "SLURM_TASKS_PER_NODE", "SLURM_DISTRIBUTION", "SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK",
    "SRUN_CPUS_PER_TASK",
)  # fmt: skip


def rank_environment(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a rank from its srun task, except MASTER_PORT (see the launch spec).

    Raises:
        UserError: this process was not started by srun.
    """
    try:
        return {
            "RANK": env["SLURM_PROCID"],
            "LOCAL_RANK": env["SLURM_LOCALID"],
            "WORLD_SIZE": env["SLURM_STEP_NUM_TASKS"],
            "LOCAL_SIZE": str(int(env["SLURM_STEP_NUM_TASKS"]) // int(env["SLURM_STEP_NUM_NODES"])),
            "MASTER_ADDR": first_host(env["SLURM_STEP_NODELIST"]),
        }
    except KeyError as error:
        raise UserError(
            f"srun did not set {error.args[0]}, so this process does not know its rank."
        ) from error


def first_host(nodelist: str) -> str:
    """The first node of a list such as `gpu[03-05,9],login1`; UserError if it is empty."""
    found = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodelist.strip())
    if not found:
        raise UserError(f"SLURM's list of nodes is empty: {nodelist!r}.")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", found[0])


def seconds_of_job(stop_before_walltime: float) -> float:
    """Seconds until a stage must stop before the end of its SLURM job; infinite if that is unknown.

    Raises:
        UserError: the whole job is shorter than the time reserved for stopping.
    """
    end = os.environ.get("SLURM_JOB_END_TIME", "")
    if not stop_before_walltime or not end.isdigit():
        return float("inf")
    start = os.environ.get("SLURM_JOB_START_TIME", "")
    if start.isdigit() and (seconds := int(end) - int(start)) <= stop_before_walltime:
        raise UserError(
            f"the SLURM job lasts {seconds} s, but launch.stop_before_walltime = "
            f"{stop_before_walltime:g} reserves that many seconds for stopping, so nothing would "
            "run. Give the job more time, or lower launch.stop_before_walltime (0: never stop)."
        )
    return int(end) - stop_before_walltime - time.time()
