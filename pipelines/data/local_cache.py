"""Copy packed data to a local disk of each node, check it, and memory-map it from there."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

from pipelines.data.packed_set import MARKER, damaged_files, placed
from pipelines.errors import UserError
from pipelines.run_dir.paths import read_json


def copied(folder: Path, cache: str) -> Path:
    """Copy a packed set to this node's cache, unless an identical copy exists, and return its path.

    Args:
        cache: folder on this node; `~` and environment variables are expanded here.

    Raises:
        UserError: the cache cannot be written, or the copy differs from the original.
    """
    copy = place(folder, cache)
    if is_whole(folder, copy):
        return copy
    try:
        with placed(copy, ".copying-", partial(is_whole, folder)) as temporary:
            shutil.copytree(folder, temporary, dirs_exist_ok=True)
            if not is_whole(folder, temporary):
                raise UserError(
                    f"launch.local_cache: the copy of {folder} in {copy.parent} does not match the "
                    "checksums of the original. Remove both, and run the command again."
                )
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
    original, marker = folder / MARKER, copy / MARKER
    same = marker.is_file() and marker.read_bytes() == original.read_bytes()
    return same and not damaged_files(copy, read_json(original, needs=("files",))["files"])
