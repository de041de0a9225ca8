"""Copy packed data to a local disk of each node, check it, and memory-map it from there."""

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
    """Copy a packed set to this node's cache, unless an identical copy exists.

    Args:
        folder: the packed set in the run directory, named by its fingerprint.
        cache: folder on this node; `~` and environment variables are expanded here.

    Returns:
        The copy; its files match the checksums in the set's marker.

    Raises:
        UserError: the cache cannot be written, or the copy differs from the original.
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
                    f"launch.local_cache: the copy of {folder} in {copy.parent} does not match the "
                    "checksums of the original. Remove both, and run the command again."
                )
            _replace(temporary, copy, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"launch.local_cache = {cache}: {folder} cannot be copied to {copy} ({error}). Choose "
            "a writable folder with enough space, or remove launch.local_cache."
        ) from error
    return copy


def place(folder: Path, cache: str) -> Path:
    """The path of a packed set's copy on this node.

    Raises:
        UserError: the cache uses an unset environment variable, or is not an absolute path.
    """
    root = Path(os.path.expandvars(os.path.expanduser(cache)))
    if "$" in str(root) or not root.is_absolute():
        raise UserError(
            f"launch.local_cache = {cache}: on this node it expands to {root}, which is not an "
            "absolute path. Give an absolute path, and set the variables that it uses."
        )
    return root / folder.name


def is_whole(folder: Path, copy: Path) -> bool:
    """Whether a copy's files match the set's marker by size and checksum."""
    facts = read_json(folder / MARKER, needs=("files",))
    marker = copy / MARKER
    return (marker.is_file() and marker.read_bytes() == (folder / MARKER).read_bytes()) and all(
        (copy / name).is_file()
        and (copy / name).stat().st_size == file["bytes"]
        and _sha256(copy / name) == file["sha256"]
        for name, file in facts["files"].items()
    )


def _replace(temporary: Path, copy: Path, folder: Path) -> None:
    """Move a checked copy to its path, unless another process has put a complete one there."""
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
