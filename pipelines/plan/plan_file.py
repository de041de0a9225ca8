"""The plan file of a flywheel or comparison, written to its run directory and read by `analyze`."""

from __future__ import annotations

import re
from pathlib import Path

from pipelines.errors import UserError
from pipelines.models.checkpoint import find_checkpoint
from pipelines.plan.kinds import kind_of
from pipelines.plan.stage import Stage
from pipelines.recipe.load import override_keys, resolved, to_dict
from pipelines.recipe.schema import Config
from pipelines.run_dir.layout import made_by
from pipelines.run_dir.paths import RunDir, write_yaml

# Keys that `analyze` may change: what it measures, where and how fast it runs, what it may show.
OF_ANALYSIS = re.compile(
    r"(analysis|launch|eval\.tasks|eval\.bits_per_byte)\..+"
    r"|eval\.(bits_per_byte_tokens|batch_size)|chunk_bytes|data_root"
    r"|mid_train\.sources\.[^.]+\.(licence|publish)"
)


def write_plan(path: Path, config: Config, stages: list[Stage]) -> None:
    """Write a plan file: the resolved config and every stage with its inputs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = []
    for stage in stages:
        given = stage.inputs.items()
        inputs = {role: one if isinstance(one, str) else one.location for role, one in given}
        entries.append({"name": stage.name, "kind": stage.kind, "inputs": inputs})
    # Last: a file that was cut short lacks it.
    write_yaml({"config": to_dict(config), "stages": entries, **made_by()}, path)


def read_flywheel_plan(run: RunDir, overrides: list[str]) -> tuple[Config, list[Stage]]:
    """The config of a finished flywheel, with overrides, and its complete stages.

    Raises:
        UserError: the folder is not the run directory of a flywheel, or an override is refused.
    """
    if not run.flywheel_plan.is_file():
        raise UserError(
            f"{run.root} is not a run directory of a flywheel: it has no {run.flywheel_plan.name}. "
            "Give the run directory of a `remit flywheel` command."
        )
    written = run.read_plan(run.flywheel_plan)
    # The plan file already contains the tasks and benchmarks of the suite.
    written["config"]["eval"]["suite"] = ""
    config = resolved(written["config"], overrides, run.flywheel_plan)
    fixed = [key for key in override_keys(overrides) if not OF_ANALYSIS.fullmatch(key)]
    if fixed:
        raise UserError(
            f"analyze {run.root}: {', '.join(fixed)} is a setting of what was trained or "
            "evaluated, which is finished. Only these keys may be changed: analysis.*, launch.*, "
            "eval.tasks.*, eval.bits_per_byte*, eval.batch_size, chunk_bytes, data_root, and "
            "licence and publish of mid_train.sources."
        )
    names = {entry["name"] for entry in written["stages"]}
    stages = [
        Stage(
            entry["kind"], entry["name"], config,
            {
                role: given if given in names else find_checkpoint(given, f"--{role}")
                for role, given in entry["inputs"].items()
            },
        )
        for entry in written["stages"]
        if run.stage(entry["name"]).is_complete() and not kind_of(entry["kind"]).derived
    ]  # fmt: skip
    return config, stages
