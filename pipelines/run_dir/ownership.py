"""Whose resume state this is.

It holds pickles, and loading one runs what it says: so it is read only where nobody but this user
can have put it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from pipelines.errors import UserError

OTHERS = stat.S_IRWXG | stat.S_IRWXO


def make_private(folder: Path) -> None:
    """Make a folder that no other user can enter; one of another user stays as it is."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid == os.geteuid() and not _is_written_by_others(found):
        folder.chmod(stat.S_IMODE(found.st_mode) & ~OTHERS)


def check_resume_state(checkpoint: Path) -> None:
    """Refuse a checkpoint that another user can have written.

    Everything in it and the folders above it up to the run directory belong to this user (above
    the stage's `checkpoints`, root's will do). Nobody else may write them: where others cannot
    enter `checkpoints`, modes below it do not matter, and group members may write above it.

    Raises:
        UserError: what is wrong, and how to mend it.
    """
    checkpoints = checkpoint.parent
    user = os.geteuid()
    is_private = not checkpoints.lstat().st_mode & OTHERS
    for path in (checkpoints, checkpoint, *sorted(checkpoint.rglob("*"))):
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            raise _refused(path, "is a link", "Remove the checkpoint")
        if found.st_uid != user:
            raise _refused(
                path, f"belongs to uid {found.st_uid}, and you are {user}", "Remove the checkpoint"
            )
        if not is_private and _is_written_by_others(found):
            raise _refused(path, "can be written by other users", f"chmod -R go-w {checkpoints}")
    for folder in _above(checkpoints):
        found = folder.stat()
        loose = stat.S_IWOTH if is_private else stat.S_IWOTH | stat.S_IWGRP
        if found.st_uid not in (user, 0):
            raise _refused(folder, f"belongs to uid {found.st_uid}", "Take a folder of your own")
        if found.st_mode & loose:
            raise _refused(folder, "can be written by other users", f"chmod go-w {folder}")


def _is_written_by_others(found: os.stat_result) -> bool:
    return bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _above(checkpoints: Path) -> Iterator[Path]:
    """The stage's folder and those above it, up to the run directory."""
    for folder in list(checkpoints.absolute().parents)[:5]:
        yield folder
        if (folder / "ledger.jsonl").is_file():
            return


def _refused(path: Path, why: str, way: str) -> UserError:
    return UserError(
        f"{path} {why}. A checkpoint is a pickle, which runs code when it is loaded, so the stage "
        f"does not resume from it. If you know where it comes from: {way}, and start again."
    )
