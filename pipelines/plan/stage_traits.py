"""What a stage is before it runs: made already, made anew where it differs, without a network."""

from __future__ import annotations

from pathlib import Path

from pipelines.comparison.arm_stages import CHECK
from pipelines.errors import DamagedFile
from pipelines.evals.availability import needs_hub
from pipelines.plan.flywheel import Stage, sources_of
from pipelines.run_dir.markers import read_marker
from pipelines.run_dir.paths import StageDir


def is_made(stage_dir: StageDir) -> bool:
    """Whether a stage is complete, and the scores that a score stage made are still there."""
    if not stage_dir.is_complete() or not stage_dir.config.is_file():
        return False
    result = stage_dir.read_result()
    if "scores" not in result:
        return True
    try:
        read_marker(Path(result["scores"]) / "complete.json", {})
    except (FileNotFoundError, DamagedFile):
        return False
    return True


def is_derived(stage: Stage) -> bool:
    """Whether a stage only reads others."""
    return stage.kind == "analyze"


def is_remade(stage: Stage) -> bool:
    """Whether a stage is made anew where what it reads has changed: nothing is made of it.

    Comparisons in one run directory, block by block, read more and more sources.
    """
    counts = stage.name == CHECK and stage.config.eval.contamination == "report"
    return is_derived(stage) or counts


def is_offline(stage: Stage) -> bool:
    """Whether everything a stage reads is local, so that nothing may ask a hub."""
    hub_data = [s for s in sources_of(stage).values() if s.kind == "hub"]
    config = stage.config
    asks = stage.kind in ("evaluate", "contamination")
    return not (hub_data or (asks and needs_hub(config.eval, config.data_root)))
