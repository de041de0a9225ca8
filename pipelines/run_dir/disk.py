"""Disk space: check it before a large write, and explain writes that failed for lack of it."""

from __future__ import annotations

import contextlib
import errno
import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path

from pipelines.errors import UserError
from pipelines.quantities import quantity

FULL = (errno.ENOSPC, errno.EDQUOT)
# safetensors and torch raise other errors than OSError; these are parts of their messages.
FULL_WORDS = ("No space left on device", "Disk quota exceeded", "PytorchStreamWriter failed")
# Space that the end of a log needs.
A_FEW_LINES = 65_536
RESUME = "Make room and run the same command again; it resumes."
READ_ONLY_WORDS = "Read-only file system"


def free_bytes(folder: Path) -> int:
    """Bytes that this user can write on the disk of a folder, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def bytes_in(folder: Path) -> int:
    """Total bytes of the files below a folder; 0 if it does not exist."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise a `UserError` if fewer than `needed` bytes are free; it names both numbers."""
    free = free_bytes(folder)
    if free < needed:
        raise UserError(
            f"no space for {what}: it needs {needed} bytes ({quantity(needed)}B), but {folder} has "
            f"{free} bytes ({quantity(free)}B) free. {RESUME}"
        )


def _full(folder: Path, words: str) -> str:
    free = free_bytes(folder)
    return (
        f"a write to {folder} failed, and its disk has {free} bytes ({quantity(free)}B) free "
        f"({words}). `remit plan` shows how many bytes each stage needs. {RESUME}"
    )


def shortage(folder: Path) -> str:
    """The message for a disk too full to hold the log; empty if the disk has space."""
    full = free_bytes(folder) < A_FEW_LINES
    return _full(folder, "the log could not be written either") if full else ""


def explained(error: BaseException, folder: Path) -> UserError | None:
    """The message for a write that failed for lack of space; None for any other error."""
    cause: BaseException | None = error
    while cause is not None:
        number = cause.errno if isinstance(cause, OSError) else None
        words = str(cause)
        first_line = words.partition("\n")[0]
        if number in FULL or any(text in words for text in FULL_WORDS):
            return UserError(_full(folder, first_line))
        if number == errno.EROFS or READ_ONLY_WORDS in words:
            return UserError(
                f"{folder} cannot be written: its file system is read-only ({first_line}). Mount "
                "it for writing, or choose another --run-dir, and run the same command again; it "
                "resumes."
            )
        cause = cause.__cause__ or cause.__context__
    return None


@contextlib.contextmanager
def explain_failed_writes(folder: Path) -> Iterator[None]:
    """Turn a write that failed here for lack of space into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        why = explained(error, folder)
        if why is None:
            raise
        # The log may not fit on a full disk either.
        with contextlib.suppress(OSError):
            traceback.print_exc()
        raise why from error
