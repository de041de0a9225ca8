"""Check who can have written a checkpoint before it is loaded.

A checkpoint contains pickles, and loading a pickle can run any code. So a stage only resumes from
files that no other user can have written.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pipelines.errors import UserError

# Modes of the group and of all others.
EVERYTHING = stat.S_IRWXG | stat.S_IRWXO
WRITE = stat.S_IWGRP | stat.S_IWOTH


def make_private(folder: Path) -> None:
    """Make a folder that no other user can enter. Another user's folder stays as it is."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid == os.geteuid() and not found.st_mode & WRITE:
        folder.chmod(stat.S_IMODE(found.st_mode) & ~EVERYTHING)


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
    is_private = not checkpoints.lstat().st_mode & EVERYTHING
    for path in (checkpoints, checkpoint, *sorted(checkpoint.rglob("*"))):
        _check(
            path, path.lstat(), (user,), 0 if is_private else WRITE,
            f"chmod -R go-w {checkpoints}", otherwise="remove the checkpoint",
        )  # fmt: skip
    # The folder of the stage and those above it, up to the run directory.
    for folder in checkpoints.absolute().parents[:5]:
        _check(
            folder, folder.stat(), (user, 0), stat.S_IWOTH if is_private else WRITE,
            f"chmod go-w {folder}", otherwise="use a folder that you own",
        )  # fmt: skip
        if (folder / "ledger.jsonl").is_file():
            return


def _check(
    path: Path, found: os.stat_result, owners: tuple[int, ...], refused: int, chmod: str,
    otherwise: str,
) -> None:  # fmt: skip
    way = otherwise
    if stat.S_ISLNK(found.st_mode):
        why = "is a link"
    elif found.st_uid not in owners:
        why = f"belongs to uid {found.st_uid}, but you are uid {owners[0]}"
    elif found.st_mode & refused:
        why, way = "can be written by other users", f"if you trust it, `{chmod}`"
    else:
        return
    raise UserError(
        f"{path} {why}. A checkpoint is a pickle, and loading it can run any code, so the stage "
        f"does not resume from it. To continue, {way}, then run the same command again."
    )
