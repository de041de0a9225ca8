"""Keys that say where and how ranks run. None of them can change a result."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.recipe.schema.setting import setting


@dataclass
class SlurmConfig:
    """Options of the scripts of `remit launch --slurm`; `launch` gives nodes and GPUs."""

    partition: str = setting("", "partition; empty: the default of the cluster", result=False)
    account: str = setting("", "account to charge; empty: your default", result=False)
    time: str = setting("24:00:00", "time limit of a job", result=False)
    gpu_type: str = setting(
        "", "GPU type to request, such as h100; empty: any GPU; none: no GPU", result=False
    )
    cpus_per_node: int = setting(
        0, "CPU cores per node; 0: 8 per rank", result=False, low=0
    )  # fmt: skip
    signal_seconds: int = setting(
        300, "seconds before the time limit at which SLURM sends SIGUSR1", result=False, low=30
    )
    requeue: bool = setting(True, "requeue a job that saved and stopped", result=False)
    lines: list[str] = setting(
        list, "additional sbatch options, such as --constraint=ib", result=False
    )  # fmt: skip
    setup: list[str] = setting(
        list, "shell lines to run in the script before remit (before each rank: launch.prologue)",
        result=False,
    )  # fmt: skip


@dataclass
class LaunchConfig:
    gpus: int = setting(1, "processes per node, one per GPU", result=False)
    hostfile: str = setting(
        "",
        "DeepSpeed hostfile that lists the nodes; empty: this node, or launch.nodes",
        result=False,
    )
    runner_args: list[str] = setting(
        list,
        "with a hostfile: additional options of DeepSpeed's runner, such as --no_ssh",
        result=False,
    )
    nodes: int = setting(
        0, "number of nodes of a SLURM job; srun starts the ranks; 0: all nodes of the job",
        result=False, low=0,
    )  # fmt: skip
    srun_args: list[str] = setting(list, "additional srun options", result=False)
    prologue: list[str] = setting(
        list, "bash lines to run before each rank, such as 'module load cuda'", result=False
    )
    local_cache: str = setting(
        "", "folder on a node's local disk to copy packed data to, such as $TMPDIR; empty: no copy",
        result=False,
    )  # fmt: skip
    slurm: SlurmConfig = setting(SlurmConfig, "options of remit launch --slurm", result=False)
    env: dict[str, str] = setting(dict, "environment variables of the ranks", result=False)
    grace_seconds: float = setting(
        120.0,
        "seconds that ranks get to finish a step and save after a signal, before they are killed",
        result=False,
        low=0,
    )
    stop_before_walltime: float = setting(
        300.0,
        "seconds before the end of the SLURM job at which the stage saves and stops; 0: never",
        result=False,
        low=0,
    )
    hang_seconds: float = setting(
        1800.0,
        "seconds without a training step after which the stage is stopped and the hanging rank "
        "reported; 0: never",
        result=False,
        low=0,
    )
    hang_seconds_outside: float = setting(
        7200.0,
        "the same limit outside of training steps: startup, loading, the first step, a checkpoint, "
        "export, one batch of packing, scoring or evaluation; 0: never",
        result=False,
        low=0,
    )


@dataclass
class StageLaunchConfig:
    """Launch overrides of one kind of stage."""

    gpus: int = setting(
        0,
        "processes per node; 0: launch.gpus; a number also turns launch.hostfile off",
        result=False,
        low=0,
    )
    nodes: int = setting(
        0, "number of nodes of the SLURM job; 0: launch.nodes", result=False, low=0
    )  # fmt: skip
    hostfile: str = setting(
        "", "DeepSpeed hostfile; empty: launch.hostfile; none: this node only", result=False
    )  # fmt: skip
    prologue: list[str] = setting(
        list, "bash lines to run after those of launch.prologue", result=False
    )
    time: str = setting(
        "", "time limit of its job (remit launch --per-stage); empty: launch.slurm.time",
        result=False,
    )  # fmt: skip
    env: dict[str, str] = setting(
        dict, "environment variables added to launch.env; on conflict these win", result=False
    )


@dataclass
class StageSettings:
    launch: StageLaunchConfig = setting(
        StageLaunchConfig, "launch overrides of this kind of stage", result=False
    )
