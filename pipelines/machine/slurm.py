"""What SLURM says of this process through its environment: the job, the step, the rank.

The variables are those of sbatch(1) and srun(1).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping

from pipelines.errors import UserError


def num_nodes(env: Mapping[str, str] = os.environ) -> int:
    """Machines of the job that this process is in; 1 outside of SLURM."""
    return int(env.get("SLURM_JOB_NUM_NODES") or env.get("SLURM_NNODES") or 1)


def in_job(env: Mapping[str, str] = os.environ) -> bool:
    return "SLURM_JOB_ID" in env


def is_extra_task(env: Mapping[str, str] = os.environ) -> bool:
    """Whether srun started this command several times, and this is not the first.

    SLURM_NTASKS does not tell: a batch script has it too, and is one process.
    """
    return int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and env.get("SLURM_PROCID", "0") != "0"


def check_single_task(env: Mapping[str, str] = os.environ) -> None:
    """Refuse to be one of several commands.

    Raises:
        UserError: srun started this command more than once.
    """
    tasks = int(env.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks > 1:
        raise UserError(
            f"srun started this command {tasks} times, and one run has one writer. Leave srun out: "
            "write 'remit ...' once into the script for sbatch, with --gpus for the ranks on each "
            "machine; remit starts them on all machines of the job, through srun itself."
        )


def step_command(nodes: int, ranks_per_node: int, cores_per_node: int) -> list[str]:
    """The srun command line that starts every rank of a stage, one task each."""
    options = [
        f"--nodes={nodes}",
        f"--ntasks={nodes * ranks_per_node}",
        f"--ntasks-per-node={ranks_per_node}",
        f"--cpus-per-task={max(1, cores_per_node // ranks_per_node)}",
        # Rank r of a machine takes GPU r of all that are there: none may be hidden from it.
        "--distribution=block",
        "--kill-on-bad-exit=1",
        "--input=none",
        "--export=ALL",
    ]
    if "SLURM_STEP_ID" in os.environ:
        # This command is itself a step, of salloc or srun, and holds what the ranks need.
        options.append("--overlap")
    return ["srun", *options]


# What a job says of its own tasks, and srun would take for the ranks'.
NOT_INHERITED = (
    "SLURM_NTASKS", "SLURM_NPROCS", "SLURM_NTASKS_PER_NODE", "SLURM_CPUS_PER_TASK",
    "SLURM_TASKS_PER_NODE", "SLURM_DISTRIBUTION", "SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK",
    "SRUN_CPUS_PER_TASK",
)  # fmt: skip


def rank_environment(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a rank has to know, said by srun to its task; MASTER_PORT comes with the stage.

    Raises:
        UserError: this process is no task of srun.
    """
    try:
        rank, local_rank = env["SLURM_PROCID"], env["SLURM_LOCALID"]
        size, nodes = env["SLURM_STEP_NUM_TASKS"], env["SLURM_STEP_NODELIST"]
        num_nodes = int(env["SLURM_STEP_NUM_NODES"])
    except KeyError as error:
        raise UserError(f"srun has not set {error.args[0]}: the rank cannot be known.") from error
    return {
        "RANK": rank,
        "LOCAL_RANK": local_rank,
        "WORLD_SIZE": size,
        "LOCAL_SIZE": str(int(size) // num_nodes),
        "MASTER_ADDR": first_host(nodes),
    }


def first_host(nodelist: str) -> str:
    """The first machine of a list such as `gpu[03-05,9],login1`.

    Raises:
        UserError: an empty list.
    """
    found = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodelist.strip())
    if not found:
        raise UserError(f"SLURM names no machine: {nodelist!r}.")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", found[0])


def seconds_of_job(stop_before_walltime: float) -> float:
    """Seconds until a stage has to stop for the end of its SLURM job; infinite where none is told.

    Raises:
        UserError: the whole job is shorter than what is kept free at its end.
    """
    told = os.environ.get("SLURM_JOB_END_TIME", "")
    if not stop_before_walltime or not told.isdigit():
        return float("inf")
    begun = os.environ.get("SLURM_JOB_START_TIME", "")
    if begun.isdigit() and int(told) - int(begun) <= stop_before_walltime:
        raise UserError(
            f"the SLURM job lasts {int(told) - int(begun)} s, and launch.stop_before_walltime = "
            f"{stop_before_walltime:g} s of it are kept for stopping: nothing would run. "
            "Give the job more time, or set launch.stop_before_walltime lower (0: never stop)."
        )
    return int(told) - stop_before_walltime - time.time()
