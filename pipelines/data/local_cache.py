"""Packed data on the disk of each machine: copied once, checked, then memory-mapped from there."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from pipelines.data.packed_set import MARKER
from pipelines.errors import UserError
from pipelines.run_dir.paths import read_json


def copied(folder: Path, cache: str) -> Path:
    """Copy a packed set to this machine's cache, unless an equal one is there.

    Args:
        folder: the packed set in the run directory, named by its fingerprint.
        cache: folder of this machine; `~` and environment variables are filled in here.

    Returns:
        The copy, whose files have the checksums of the set's marker.

    Raises:
        UserError: the cache cannot be written, or the copy is not what it should be.
    """
    copy = place(folder, cache)
    if is_whole(folder, copy):
        return copy
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=copy.parent, prefix=".copying-"))
        try:
            shutil.copytree(folder, temporary, dirs_exist_ok=True)
            if not is_whole(folder, temporary):
                raise UserError(
                    f"launch.local_cache: the copy of {folder} in {copy.parent} has other bytes "
                    "than the original, or the original was damaged. Remove both and try again."
                )
            _replace(temporary, copy, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"launch.local_cache = {cache}: {folder} cannot be copied to {copy} ({error}). Choose "
            "a folder with space that you may write, or leave launch.local_cache out."
        ) from error
    return copy


def place(folder: Path, cache: str) -> Path:
    """Where the copy of a packed set lies on this machine.

    Raises:
        UserError: the cache names a variable that is not set here, or is no absolute path.
    """
    root = Path(os.path.expandvars(os.path.expanduser(cache)))
    if "$" in str(root) or not root.is_absolute():
        raise UserError(
            f"launch.local_cache = {cache}: on this machine that is {root}, no absolute path."
        )
    return root / folder.name


def is_whole(folder: Path, copy: Path) -> bool:
    """Whether a copy has the files of the set's marker, byte for byte."""
    facts = read_json(folder / MARKER, needs=("files",))
    marker = copy / MARKER
    return (marker.is_file() and marker.read_bytes() == (folder / MARKER).read_bytes()) and all(
        (copy / name).is_file()
        and (copy / name).stat().st_size == file["bytes"]
        and _sha256(copy / name) == file["sha256"]
        for name, file in facts["files"].items()
    )


def _replace(temporary: Path, copy: Path, folder: Path) -> None:
    """Move a checked copy to its place; a whole one that another process made first is kept."""
    if copy.exists() and not is_whole(folder, copy):
        shutil.rmtree(copy)
    try:
        os.rename(temporary, copy)
    except OSError:
        if not is_whole(folder, copy):
            raise


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
