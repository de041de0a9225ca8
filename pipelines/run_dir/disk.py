"""Disk space: check it before a large write, and explain writes that failed for lack of it."""

from __future__ import annotations

import contextlib
import errno
import functools
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from pipelines.errors import UserError
from pipelines.quantities import quantity
from pipelines.run_dir.paths import StageDir

FULL = (errno.ENOSPC, errno.EDQUOT)
# safetensors and torch raise other errors than OSError; these are parts of their messages.
FULL_WORDS = ("No space left on device", "Disk quota exceeded", "PytorchStreamWriter failed")
# Space that the end of a log needs.
A_FEW_LINES = 65_536
READ_ONLY_WORDS = ("Read-only file system",)


def free_bytes(folder: Path) -> int:
    """Bytes that this user can write on the disk of a folder, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def bytes_in(folder: Path) -> int:
    """Total bytes of the files below a folder; 0 if it does not exist."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def require_space(folder: Path, needed: int, what: str) -> None:
    """Refuse a write for which the disk lacks space.

    Raises:
        UserError: fewer than `needed` bytes are free; the message names both numbers.
    """
    free = free_bytes(folder)
    if free < needed:
        raise UserError(
            f"no space for {what}: it needs {needed} bytes ({quantity(needed)}B), but {folder} has "
            f"{free} bytes ({quantity(free)}B) free. Make room and run the same command again; it "
            "resumes."
        )


def _causes(error: BaseException) -> Iterator[BaseException]:
    at: BaseException | None = error
    while at is not None:
        yield at
        at = at.__cause__ or at.__context__


def _full(folder: Path, words: str) -> str:
    free = free_bytes(folder)
    return (
        f"a write to {folder} failed, and its disk has {free} bytes ({quantity(free)}B) free "
        f"({words}). `remit plan` shows how many bytes each stage needs. Make room and run the "
        "same command again; it resumes."
    )


def shortage(folder: Path) -> str:
    """The message for a disk too full to hold the log; empty if the disk has space."""
    return (
        _full(folder, "the log could not be written either")
        if free_bytes(folder) < A_FEW_LINES
        else ""
    )


def explained(error: BaseException, folder: Path) -> UserError | None:
    """The message for a write that failed for lack of space; None for any other error."""
    for cause in _causes(error):
        number = cause.errno if isinstance(cause, OSError) else None
        words = str(cause)
        if number in FULL or any(text in words for text in FULL_WORDS):
            return UserError(_full(folder, words.splitlines()[0]))
        if number == errno.EROFS or any(text in words for text in READ_ONLY_WORDS):
            return UserError(
                f"{folder} cannot be written: its file system is read-only "
                f"({words.splitlines()[0]}). Mount it for writing, or choose another --run-dir, "
                "and run the same command again; it resumes."
            )
    return None


def explains_failed_writes(work: Callable[[StageDir], None]) -> Callable[[StageDir], None]:
    """Decorate the work of a rank: turn a write that failed for lack of space into a UserError."""

    @functools.wraps(work)
    def explaining(stage_dir: StageDir) -> None:
        try:
            work(stage_dir)
        except UserError:
            raise
        except Exception as error:
            why = explained(error, stage_dir.root)
            if why is None:
                raise
            # The log may not fit on a full disk either.
            with contextlib.suppress(OSError):
                traceback.print_exc()
            raise why from error

    return explaining
