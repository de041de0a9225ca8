"""The checkpoints of a stage as files: which are complete, how they are sharded, who wrote them.

This module does not import torch, since the launcher uses it before it starts a stage.
"""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
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
    """The checkpoint folders of a trainer, complete or not, oldest first.

    Links, files and folders with other names belong to the user and are left out.
    """
    named = (path for path in checkpoints.glob("checkpoint-*") if _NAME.fullmatch(path.name))
    return sorted((p for p in named if p.is_dir() and not p.is_symlink()), key=_step)


def complete_checkpoints(checkpoints: Path) -> list[Path]:
    """The checkpoint folders with a completion marker, oldest first."""
    return [p for p in checkpoint_folders(checkpoints) if (p / MARKER).is_file()]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def write_checkpoint_marker(
    checkpoint: Path, stage_dir: StageDir, values: dict[str, Any], files: dict[str, list[Any]]
) -> None:
    """Write the completion marker of a checkpoint.

    `values` are `world_size` and `zero_stage`, which determine how the state is sharded; `files`
    has the size and SHA-256 of each file, by name.
    """
    begin = {"step": _step(checkpoint), **values, "versions": package_versions()}
    write_marker(checkpoint / MARKER, begin | _identity(stage_dir) | {"files": files})


def _identity(stage_dir: StageDir) -> dict[str, Any]:
    """The identity that a stage was started with; empty if no command started it."""
    if not stage_dir.config.is_file():
        return {}
    spec = stage_dir.read_config()
    return {"identity": spec["identity"], "identity_fields": spec["identity_fields"]}


def read_checkpoint_marker(checkpoint: Path) -> dict[str, Any]:
    """The content of the marker of a checkpoint.

    Raises:
        DamagedFile: the marker is corrupt or belongs to another checkpoint.
    """
    path = checkpoint / MARKER
    marker = read_marker(path, _TYPES)
    if marker["step"] != _step(checkpoint):
        raise DamagedFile(f"{path} is damaged: it belongs to step {marker['step']}.")
    for name, facts in marker["files"].items():
        if not isinstance(facts, list) or [type(fact) for fact in facts] != [int, str]:
            raise DamagedFile(f"{path} is damaged: it has no size and checksum of {name}.")
    return marker


def newest_marker(checkpoints: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint with a valid marker, and its content. Other files are not read."""
    for folder in reversed(complete_checkpoints(checkpoints)):
        # The ranks of the stage will report a damaged one and remove it.
        with suppress(DamagedFile):
            return folder, read_checkpoint_marker(folder)
    return None


def made_with(stage_dir: StageDir) -> dict[str, Any] | None:
    """The identity fields that a begun stage was started with; None if unknown."""
    fields: dict[str, Any] | None = None
    if stage_dir.config.is_file():
        fields = stage_dir.read_config()["identity_fields"]
    elif newest := newest_marker(stage_dir.checkpoints):
        fields = newest[1].get("identity_fields")
    return fields


def check_identity(checkpoint: Path, stage_dir: StageDir) -> None:
    """Raise a `UserError` for a checkpoint that was made with other settings, inputs or data."""
    marker, now = read_checkpoint_marker(checkpoint), _identity(stage_dir)
    if "identity" in marker and now and marker["identity"] != now["identity"]:
        old, new = marker.get("identity_fields", {}), now["identity_fields"]
        changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        raise UserError(
            f"{checkpoint} was saved with other settings ({', '.join(changed)}). Give the old "
            f"values to resume from it, or remove {checkpoint.parent} to start the stage "
            "from step 0."
        )


def remove_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint, its marker first, so that a partly removed one does not count."""
    (checkpoint / MARKER).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def check_split(folder: Path, ranks: int, zero_stage: int, section: str = "") -> None:
    """Raise a `UserError` for a checkpoint of another number of ranks or ZeRO stage."""
    marker = read_checkpoint_marker(folder)
    saved_ranks, saved_stage = marker["world_size"], marker["zero_stage"]
    key = f"{section}.zero_stage" if section else "zero_stage"
    if (saved_ranks, saved_stage) != (ranks, zero_stage):
        raise UserError(
            f"{folder} was saved by {saved_ranks} ranks with ZeRO-{saved_stage}, but this start "
            f"has {ranks} ranks with ZeRO-{zero_stage}, so its optimizer state is sharded "
            f"differently. Resume with --gpus {saved_ranks} (or a hostfile of as many slots) and "
            f"{key}={saved_stage}, or remove {folder.parent} to start the stage from step 0."
        )


@cache
def package_versions() -> dict[str, str]:
    """Versions of the packages that can change the last bits of a result."""
    found = {}
    for name in VERSIONED:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def changed_versions(stage_dir: StageDir) -> list[str]:
    """`package old -> new` for each version that changed since a stage was made or last saved."""
    made_by: dict[str, str] = {}
    # The stage itself will refuse a damaged file.
    with suppress(DamagedFile):
        if stage_dir.is_complete():
            made_by = stage_dir.read_result().get("environment", {}).get("versions", {})
        elif newest := newest_marker(stage_dir.checkpoints):
            made_by = newest[1]["versions"]
    now = package_versions()
    changed = [name for name, old in made_by.items() if now.get(name, old) != old]
    return [f"{name} {made_by[name]} -> {now[name]}" for name in changed]
