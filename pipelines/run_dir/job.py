"""The job of a rank, read from `config.yaml` of its stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.recipe.load import from_dict
from pipelines.recipe.schema import Config
from pipelines.run_dir.paths import RunDir, StageDir


@dataclass(frozen=True)
class StageJob:
    """One stage, ready to run."""

    kind: str
    # The module with the `run(job)` of the stage.
    module: str
    # The stage's name in the ledger, such as `round-1/10-mid-train`.
    name: str
    identity: str
    config: Config
    # Model folder and content hash by role: base, ref or model.
    inputs: dict[str, Path]
    hashes: dict[str, str]
    # Content hash by config key of the source, such as `mid_train.sources.books`.
    data_sha256: dict[str, str]
    # Evaluate only: use the chat template.
    chat: bool
    stage_dir: StageDir
    run: RunDir


def read_job(stage_dir: StageDir) -> StageJob:
    """The job that the launcher wrote into the folder of a stage."""
    spec = stage_dir.read_config()
    return StageJob(
        kind=spec["kind"],
        module=spec["module"],
        name=spec["stage"],
        identity=spec["identity"],
        config=from_dict(spec["config"]),
        inputs={role: Path(given["path"]) for role, given in spec["inputs"].items()},
        hashes={role: given["sha256"] for role, given in spec["inputs"].items()},
        data_sha256=spec["data_sha256"],
        chat=spec["chat"],
        stage_dir=stage_dir,
        run=RunDir(Path(spec["run_dir"])),
    )
