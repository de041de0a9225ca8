"""Checkpoints of a stage as files: which are complete, how they were split, what they were made by.

No torch: the launcher's side looks here before it starts a stage.
"""

from __future__ import annotations

import re
import shutil
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipelines.errors import DamagedFile, UserError
from pipelines.run_dir.markers import read_marker, write_marker
from pipelines.run_dir.paths import StageDir

MARKER = "complete.json"
_NAME = re.compile(r"checkpoint-[0-9]+")
_TYPES = {"step": int, "world_size": int, "zero_stage": int, "versions": dict, "files": dict}
VERSIONED = ("torch", "transformers", "trl", "deepspeed", "datasets", "tokenizers", "accelerate")


def checkpoint_folders(checkpoints: Path) -> list[Path]:
    """The folders that a trainer saved into or began to, oldest first; nothing else that is there.

    A link, a file or a copy of another name is somebody's own.
    """
    if not checkpoints.is_dir():
        return []
    found = [
        path
        for path in checkpoints.iterdir()
        if _NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    ]
    return sorted(found, key=_step)


def complete_checkpoints(checkpoints: Path) -> list[Path]:
    """Checkpoint folders with a marker, oldest first."""
    return [p for p in checkpoint_folders(checkpoints) if (p / MARKER).is_file()]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def write_checkpoint_marker(
    checkpoint: Path, stage_dir: StageDir, values: dict[str, Any], files: dict[str, list[Any]]
) -> None:
    """Write a checkpoint's marker.

    Args:
        values: `world_size` and `zero_stage`, by which its state is split.
        files: size and SHA-256 by name.
    """
    write_marker(
        checkpoint / MARKER,
        {
            "step": _step(checkpoint),
            **values,
            "versions": package_versions(),
            **_identity(stage_dir),
            "files": files,
        },
    )


def _identity(stage_dir: StageDir) -> dict[str, Any]:
    """What a stage was started as; empty where it was not started by a command."""
    if not stage_dir.config.is_file():
        return {}
    spec = stage_dir.read_config()
    return {"identity": spec["identity"], "identity_fields": spec["identity_fields"]}


def read_checkpoint_marker(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint's marker says.

    Raises:
        DamagedFile: it is not what was written, or was written for another checkpoint.
    """
    path = checkpoint / MARKER
    marker = read_marker(path, _TYPES)
    if marker["step"] != _step(checkpoint):
        raise DamagedFile(f"{path} is damaged: it is of step {marker['step']}.")
    for name, facts in marker["files"].items():
        if not isinstance(facts, list) or [type(fact) for fact in facts] != [int, str]:
            raise DamagedFile(f"{path} is damaged: {name} has no size and checksum.")
    return marker


def newest_marker(checkpoints: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint whose marker is whole, and what that says; its files are not read."""
    for folder in reversed(complete_checkpoints(checkpoints)):
        try:
            return folder, read_checkpoint_marker(folder)
        except DamagedFile:
            # The stage's ranks name it, and remove it.
            continue
    return None


def made_with(stage_dir: StageDir) -> dict[str, Any] | None:
    """What a begun stage was made with, as identity fields; None where nothing says it."""
    if stage_dir.config.is_file():
        fields: dict[str, Any] = stage_dir.read_config()["identity_fields"]
        return fields
    newest = newest_marker(stage_dir.checkpoints)
    return newest[1].get("identity_fields") if newest else None


def check_identity(checkpoint: Path, stage_dir: StageDir) -> None:
    """Refuse a checkpoint of a stage with other settings, inputs or data.

    Raises:
        UserError: what differs, and the way out.
    """
    marker, now = read_checkpoint_marker(checkpoint), _identity(stage_dir)
    if "identity" in marker and now and marker["identity"] != now["identity"]:
        old, new = marker.get("identity_fields", {}), now["identity_fields"]
        changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        raise UserError(
            f"{checkpoint} was saved with other settings ({', '.join(changed)}). Give the old "
            f"values again to go on with it, or remove {checkpoint.parent} to start the stage "
            "from step 0."
        )


def remove_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint, its marker first: what is half removed must not count."""
    (checkpoint / MARKER).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def check_split(folder: Path, ranks: int, zero_stage: int, section: str = "") -> None:
    """Refuse a checkpoint whose optimizer state is split otherwise.

    Raises:
        UserError: another number of ranks, or another ZeRO stage, with the way out.
    """
    marker = read_checkpoint_marker(folder)
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
            newest = newest_marker(stage_dir.checkpoints)
            made_by = newest[1]["versions"] if newest else {}
    except DamagedFile:
        # Who reads it for its own sake refuses it.
        return []
    now = package_versions()
    return [
        f"{name} {old} -> {now[name]}"
        for name, old in made_by.items()
        if name in now and now[name] != old
    ]
