"""Keys that say where and how ranks run. None of them can change a result."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.recipe.schema.setting import runtime_setting


@dataclass
class SlurmConfig:
    """Options of the scripts of `remit launch --slurm`; `launch` gives nodes and GPUs."""

    partition: str = runtime_setting("", "partition; empty: the default of the cluster")
    account: str = runtime_setting("", "account to charge; empty: your default")
    time: str = runtime_setting("24:00:00", "time limit of a job")
    gpu_type: str = runtime_setting("", "GPU type, such as h100; empty: any GPU; none: no GPU")
    cpus_per_node: int = runtime_setting(0, "CPU cores per node; 0: 8 per rank", low=0)
    signal_seconds: int = runtime_setting(
        300, "seconds before the time limit at which SLURM sends SIGUSR1", low=30
    )
    requeue: bool = runtime_setting(True, "requeue a job that saved and stopped")
    lines: list[str] = runtime_setting(list, "additional sbatch options, such as --constraint=ib")
    setup: list[str] = runtime_setting(
        list, "shell lines to run in the script before remit (before each rank: launch.prologue)"
    )


@dataclass
class LaunchConfig:
    gpus: int = runtime_setting(1, "processes per node, one per GPU")
    hostfile: str = runtime_setting(
        "", "DeepSpeed hostfile that lists the nodes; empty: this node, or launch.nodes"
    )
    runner_args: list[str] = runtime_setting(
        list, "with a hostfile: additional options of DeepSpeed's runner, such as --no_ssh"
    )
    nodes: int = runtime_setting(
        0, "number of nodes of a SLURM job; srun starts the ranks; 0: all nodes of the job", low=0
    )
    srun_args: list[str] = runtime_setting(list, "additional srun options")
    prologue: list[str] = runtime_setting(
        list, "bash lines to run before each rank, such as 'module load cuda'"
    )
    local_cache: str = runtime_setting(
        "", "folder on a node's local disk to copy packed data to, such as $TMPDIR; empty: no copy"
    )
    slurm: SlurmConfig = runtime_setting(SlurmConfig, "options of remit launch --slurm")
    env: dict[str, str] = runtime_setting(dict, "environment variables of the ranks")
    grace_seconds: float = runtime_setting(
        120.0,
        "seconds that ranks get to finish a step and save after a signal, before they are killed",
        low=0,
    )
    stop_before_walltime: float = runtime_setting(
        300.0,
        "seconds before the end of the SLURM job at which the stage saves and stops; 0: never",
        low=0,
    )
    hang_seconds: float = runtime_setting(
        1800.0,
        "seconds without a training step after which the stage is stopped and the hanging rank "
        "reported; 0: never",
        low=0,
    )
    hang_seconds_outside: float = runtime_setting(
        7200.0,
        "the same limit outside of training steps: startup, loading, the first step, a checkpoint, "
        "export, one batch of packing, scoring or evaluation; 0: never",
        low=0,
    )


@dataclass
class StageLaunchConfig:
    """Launch overrides of one kind of stage."""

    gpus: int = runtime_setting(
        0, "processes per node; 0: launch.gpus; a number also turns launch.hostfile off", low=0
    )
    nodes: int = runtime_setting(0, "number of nodes of the SLURM job; 0: launch.nodes", low=0)
    hostfile: str = runtime_setting("", "hostfile; empty: launch.hostfile; none: this node only")
    prologue: list[str] = runtime_setting(list, "bash lines to run after those of launch.prologue")
    time: str = runtime_setting(
        "", "time limit of its job (remit launch --per-stage); empty: launch.slurm.time"
    )
    env: dict[str, str] = runtime_setting(
        dict, "environment variables added to launch.env; on conflict these win"
    )


@dataclass
class StageSettings:
    launch: StageLaunchConfig = runtime_setting(
        StageLaunchConfig, "launch overrides of this kind of stage"
    )
