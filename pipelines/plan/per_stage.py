"""The launch settings of each kind of stage: `launch` with the overrides of `stages`."""

from __future__ import annotations

from dataclasses import replace

from pipelines.plan.kinds import kind_of
from pipelines.plan.stage import Stage
from pipelines.recipe.schema import Config, LaunchConfig, StageSettings


def stage_launch(config: Config, kind: str) -> LaunchConfig:
    """`launch` with the overrides of `stages` for a kind of stage."""
    own = config.stages.get(kind_of(kind).launch_key, StageSettings()).launch
    launch = config.launch
    # An override of the number of ranks or nodes would contradict the hostfile of `launch`.
    here = own.hostfile == "none" or (not own.hostfile and bool(own.gpus or own.nodes))
    hostfile = "" if here else own.hostfile or launch.hostfile
    return replace(
        launch,
        gpus=own.gpus or launch.gpus,
        nodes=0 if hostfile else 1 if own.hostfile == "none" else own.nodes or launch.nodes,
        hostfile=hostfile,
        env=launch.env | own.env,
        prologue=[*launch.prologue, *own.prologue],
        slurm=replace(launch.slurm, time=own.time or launch.slurm.time),
    )


def placed(stage: Stage) -> Stage:
    """The stage with the launch settings of its kind; an analysis always has one rank."""
    if not kind_of(stage.kind).launch_key:
        return stage
    launch = stage_launch(stage.config, stage.kind)
    return replace(stage, config=replace(stage.config, launch=launch))
