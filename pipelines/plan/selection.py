"""A part of a flywheel's plan, `--until` and `--only`: each stage can be a job of its own."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from pipelines.errors import UserError
from pipelines.models.checkpoint import ModelRef
from pipelines.plan.stage import Stage
from pipelines.run_dir.paths import RunDir


def select(stages: list[Stage], until: str | None, only: str | None) -> list[Stage]:
    """The stages of a plan that a command runs.

    Args:
        until: a stage by its name in the ledger, or the first part of it (`round-1`): everything
            up to its last stage.
        only: the same: these stages alone.

    Raises:
        UserError: both are given, or there is no such stage; the message lists the right ones.
    """
    if until is not None and only is not None:
        raise UserError("--until and --only: give one of the two.")
    if until is not None:
        last = max(_matching(stages, until, "--until"))
        return stages[: last + 1]
    if only is not None:
        return [stages[index] for index in _matching(stages, only, "--only")]
    return stages


def _matching(stages: Sequence[Stage], given: str, option: str) -> list[int]:
    wanted = given.strip("/")
    found = [
        index
        for index, stage in enumerate(stages)
        if stage.name == wanted or stage.name.startswith(f"{wanted}/")
    ]
    if not found:
        names = [stage.name for stage in stages]
        close = difflib.get_close_matches(wanted, names, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise UserError(
            f"{option} {given}: this plan has no such stage.{hint} Its stages: {', '.join(names)}."
        )
    return found


def check_inputs(chosen: list[Stage], run: RunDir) -> None:
    """Refuse stages whose inputs are neither made before them nor complete.

    Raises:
        UserError: names the stage, what it needs, and how to make that.
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
