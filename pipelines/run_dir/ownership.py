"""Check who can have written a checkpoint before it is loaded.

A checkpoint contains pickles, and loading a pickle can run any code. So a stage only resumes from
files that no other user can have written.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from pipelines.errors import UserError

OTHERS = stat.S_IRWXG | stat.S_IRWXO


def make_private(folder: Path) -> None:
    """Make a folder that no other user can enter. Another user's folder stays as it is."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid == os.geteuid() and not _is_written_by_others(found):
        folder.chmod(stat.S_IMODE(found.st_mode) & ~OTHERS)


def check_resume_state(checkpoint: Path) -> None:
    """Refuse a checkpoint that another user can have written.

    Everything in it and the folders above it, up to the run directory, must belong to this user
    (folders above the stage's `checkpoints` may belong to root). Nobody else may write there. If
    others cannot enter `checkpoints`, the modes below it do not matter, and the group may write to
    the folders above it.

    Raises:
        UserError: says what is wrong and how to fix it.
    """
    checkpoints = checkpoint.parent
    user = os.geteuid()
    is_private = not checkpoints.lstat().st_mode & OTHERS
    for path in (checkpoints, checkpoint, *sorted(checkpoint.rglob("*"))):
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            raise _refused(path, "is a link", "remove the checkpoint")
        if found.st_uid != user:
            raise _refused(
                path,
                f"belongs to uid {found.st_uid}, but you are uid {user}",
                "remove the checkpoint",
            )
        if not is_private and _is_written_by_others(found):
            raise _refused(
                path,
                "can be written by other users",
                f"if you trust it, `chmod -R go-w {checkpoints}`",
            )
    for folder in _above(checkpoints):
        found = folder.stat()
        loose = stat.S_IWOTH if is_private else stat.S_IWOTH | stat.S_IWGRP
        if found.st_uid not in (user, 0):
            raise _refused(folder, f"belongs to uid {found.st_uid}", "use a folder that you own")
        if found.st_mode & loose:
            raise _refused(
                folder, "can be written by other users", f"if you trust it, `chmod go-w {folder}`"
            )


def _is_written_by_others(found: os.stat_result) -> bool:
    return bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _above(checkpoints: Path) -> Iterator[Path]:
    """The folder of the stage and those above it, up to the run directory."""
    for folder in list(checkpoints.absolute().parents)[:5]:
        yield folder
        if (folder / "ledger.jsonl").is_file():
            return


def _refused(path: Path, why: str, way: str) -> UserError:
    return UserError(
        f"{path} {why}. A checkpoint is a pickle, and loading it can run any code, so the stage "
        f"does not resume from it. To continue, {way}, then run the same command again."
    )
