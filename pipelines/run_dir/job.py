"""The job of a rank, read from `config.yaml` of its stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.recipe.load import from_dict
from pipelines.recipe.schema import Config
from pipelines.run_dir.paths import RunDir, StageDir


@dataclass(frozen=True)
class StageJob:
    """One stage, ready to run.

    Attributes:
        module: module with the `run(job)` of the stage.
        name: the stage's name in the ledger, such as `round-1/10-mid-train`.
        inputs: model folder by role: base, ref or model.
        hashes: content hash of each input.
        data_sha256: content hash by config key of the source, such as `mid_train.sources.books`.
        chat: evaluate only: use the chat template.
    """

    kind: str
    module: str
    name: str
    identity: str
    config: Config
    inputs: dict[str, Path]
    hashes: dict[str, str]
    data_sha256: dict[str, str]
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
