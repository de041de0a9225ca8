"""Keys of where and how ranks run. None of them can change a result."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.recipe.schema.setting import setting


@dataclass
class SlurmConfig:
    """What `remit launch --slurm` writes into its scripts, beside the size that `launch` gives."""

    partition: str = setting("", "empty: the cluster's default", result=False)
    account: str = setting("", "empty: your default", result=False)
    time: str = setting("24:00:00", "time limit of a job", result=False)
    gpu_type: str = setting("", "such as h100; none: ask for no GPU", result=False)
    cpus_per_node: int = setting(
        0, "cores of a machine; 0: 8 for each rank", result=False, low=0
    )  # fmt: skip
    signal_seconds: int = setting(
        300, "SIGUSR1 comes this long before the time limit", result=False, low=30
    )
    requeue: bool = setting(True, "queue a job again that saved and stopped", result=False)
    lines: list[str] = setting(
        list, "more options of sbatch, such as --constraint=ib", result=False
    )  # fmt: skip
    setup: list[str] = setting(
        list, "shell lines of the script before remit starts (the ranks' own: launch.prologue)",
        result=False,
    )  # fmt: skip


@dataclass
class LaunchConfig:
    gpus: int = setting(1, "ranks on each machine", result=False)
    hostfile: str = setting("", "DeepSpeed hostfile for several machines", result=False)
    runner_args: list[str] = setting(
        list, "with a hostfile: options of DeepSpeed's runner, such as --no_ssh", result=False
    )
    nodes: int = setting(
        0, "machines of a SLURM job, ranks started by srun; 0: all that the job has",
        result=False, low=0,
    )  # fmt: skip
    srun_args: list[str] = setting(list, "more options of srun", result=False)
    prologue: list[str] = setting(
        list, "bash lines run before each rank, such as 'module load cuda'", result=False
    )
    local_cache: str = setting(
        "", "folder on each machine to copy packed data to, such as $TMPDIR; empty: none",
        result=False,
    )  # fmt: skip
    slurm: SlurmConfig = setting(SlurmConfig, "remit launch --slurm", result=False)
    env: dict[str, str] = setting(dict, "environment variables for the ranks", result=False)
    grace_seconds: float = setting(
        120.0,
        "after a signal, time to reach the end of a step and save; then the ranks are killed",
        result=False,
        low=0,
    )
    stop_before_walltime: float = setting(
        300.0,
        "seconds before the end of the SLURM job at which a stage saves and stops; 0: never",
        result=False,
        low=0,
    )
    hang_seconds: float = setting(
        1800.0,
        "a training without a step for so long is ended, and the rank that hangs named; 0: never",
        result=False,
        low=0,
    )
    hang_seconds_outside: float = setting(
        7200.0,
        "the same outside of steps: start, loading, a batch of packing, scoring or evaluation, the "
        "first step, a checkpoint, export; 0: never",
        result=False,
        low=0,
    )


@dataclass
class StageLaunchConfig:
    """What one kind of stage has in place of the keys of `launch`."""

    gpus: int = setting(
        0,
        "0: launch.gpus; with a number, launch.hostfile is not for this kind",
        result=False,
        low=0,
    )
    nodes: int = setting(
        0, "machines of the SLURM job; 0: launch.nodes", result=False, low=0
    )  # fmt: skip
    hostfile: str = setting(
        "", "empty: launch.hostfile; none: this machine alone", result=False
    )  # fmt: skip
    prologue: list[str] = setting(list, "after those of launch.prologue", result=False)
    time: str = setting(
        "", "time limit of its own job (remit launch --per-stage); empty: launch.slurm.time",
        result=False,
    )  # fmt: skip
    env: dict[str, str] = setting(dict, "over those of launch.env", result=False)


@dataclass
class StageSettings:
    launch: StageLaunchConfig = setting(
        StageLaunchConfig, "ranks, machines, environment of this kind of stage", result=False
    )
