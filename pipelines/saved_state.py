"""Checkpoints of a stage as files: which are complete, how they were split, what they were made by.

No torch: the launcher's side looks here before it starts a stage.
"""

from __future__ import annotations

import shutil
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipelines.errors import DamagedFile, UserError
from pipelines.run_dir import StageDir, read_json

MARKER = "complete.json"
VERSIONED = ("torch", "transformers", "trl", "deepspeed", "datasets", "tokenizers", "accelerate")


def complete_checkpoints(checkpoints: Path) -> list[Path]:
    """Checkpoint folders with a marker, oldest first."""
    found = [p for p in checkpoints.glob("checkpoint-*") if (p / MARKER).is_file()]
    return sorted(found, key=lambda p: int(p.name.split("-")[1]))


def remove_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint, its marker first: what is half removed must not count."""
    (checkpoint / MARKER).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def check_split(folder: Path, ranks: int, zero_stage: int, section: str = "") -> None:
    """Refuse a checkpoint whose optimizer state is split otherwise.

    Raises:
        UserError: another number of ranks, or another ZeRO stage, with the way out.
    """
    marker = read_json(folder / MARKER, needs=("world_size", "zero_stage"))
    saved_ranks, saved_stage = marker["world_size"], marker["zero_stage"]
    if (saved_ranks, saved_stage) != (ranks, zero_stage):
        key = f"{section}.zero_stage" if section else "zero_stage"
        raise UserError(
            f"{folder} was saved by {saved_ranks} ranks under ZeRO-{saved_stage}, and this start "
            f"has {ranks} ranks under ZeRO-{zero_stage}: the optimizer state is split otherwise. "
            f"Go on as it was saved (--gpus {saved_ranks} or a hostfile of {saved_ranks} slots, "
            f"{key}={saved_stage}), or remove {folder.parent} to start the stage from step 0."
        )


@cache
def package_versions() -> dict[str, str]:
    """Versions of the packages that can move a result in its last bits."""
    found = {}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def changed_versions(stage_dir: StageDir) -> list[str]:
    """`package old -> new` for what is not as it was when a stage was made or last saved."""
    try:
        if stage_dir.is_complete():
            made_by = stage_dir.read_result().get("environment", {}).get("versions", {})
        else:
            saved = complete_checkpoints(stage_dir.checkpoints)
            made_by = read_json(saved[-1] / MARKER).get("versions", {}) if saved else {}
    except DamagedFile:
        # Who reads it for its own sake refuses it.
        return []
    now = package_versions()
    return [
        f"{name} {old} -> {now[name]}"
        for name, old in made_by.items()
        if name in now and now[name] != old
    ]
