"""`--until` and `--only`: run a part of a flywheel's plan, for example one stage per job."""

from __future__ import annotations

from pipelines.errors import UserError, did_you_mean
from pipelines.models.checkpoint import ModelRef
from pipelines.plan.stage import Stage
from pipelines.run_dir.paths import RunDir


def select(stages: list[Stage], until: str | None, only: str | None) -> list[Stage]:
    """The stages of a plan that a command runs.

    Args:
        until: a stage, or the first part of its name (`round-1`): all up to the last that matches.
        only: the same: the stages that match.

    Raises:
        UserError: both are given, or no stage matches; the message lists the names.
    """
    if until is not None and only is not None:
        raise UserError("--until and --only: give one of the two.")
    if until is not None:
        return stages[: stages.index(_matching(stages, until, "--until")[-1]) + 1]
    if only is not None:
        return _matching(stages, only, "--only")
    return stages


def _matching(stages: list[Stage], given: str, option: str) -> list[Stage]:
    wanted = given.strip("/")
    found = [stage for stage in stages if f"{stage.name}/".startswith(f"{wanted}/")]
    if not found:
        names = [stage.name for stage in stages]
        raise UserError(
            f"{option} {given}: the plan has no such stage{did_you_mean(wanted, names)} "
            f"Its stages: {', '.join(names)}."
        )
    return found


def check_inputs(chosen: list[Stage], run: RunDir) -> None:
    """Refuse stages whose inputs are not complete and not made by an earlier stage.

    Raises:
        UserError: names the stage, the missing input, and how to make it.
    """
    made: set[str] = set()
    for stage in chosen:
        for given in stage.inputs.values():
            if isinstance(given, ModelRef):
                continue
            name = given.partition("@")[0]
            if name not in made and not run.stage(name).is_complete():
                raise UserError(
                    f"--only {stage.name}: it needs {name}, which has not finished in {run.root}. "
                    f"Run the same command with --only {name} first, or with --until {stage.name}."
                )
        made.add(stage.name)
