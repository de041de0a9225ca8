"""Space on the disk: asked for before a large write, named when a write failed for want of it."""

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
# What libraries make of the error numbers: safetensors and torch raise errors of their own.
FULL_WORDS = ("No space left on device", "Disk quota exceeded", "PytorchStreamWriter failed")
# Of a log.
A_FEW_LINES = 65_536
READ_ONLY_WORDS = ("Read-only file system",)


def free_bytes(folder: Path) -> int:
    """Bytes that this user can still write where a folder lies, or would lie."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def bytes_in(folder: Path) -> int:
    """Bytes of the files below a folder; 0 where there is none."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def require_space(folder: Path, needed: int, what: str) -> None:
    """Refuse a write that cannot fit.

    Raises:
        UserError: there is less space than `needed` bytes; it names both.
    """
    free = free_bytes(folder)
    if free < needed:
        raise UserError(
            f"no space for {what}: it needs {needed} bytes ({quantity(needed)}B), and {folder} has "
            f"{free} bytes ({quantity(free)}B) free. Make room and run the same command again: it "
            "goes on from what is complete."
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
        f"({words}). `remit plan` says how many bytes each stage needs. Make room and run the same "
        "command again: it goes on from what is complete."
    )


def shortage(folder: Path) -> str:
    """What to say of a disk so full that the log did not take it; empty where there is room."""
    return _full(folder, "nor did the log take more") if free_bytes(folder) < A_FEW_LINES else ""


def explained(error: BaseException, folder: Path) -> UserError | None:
    """What a failed write means for the user; None for an error of another kind."""
    for cause in _causes(error):
        number = cause.errno if isinstance(cause, OSError) else None
        words = str(cause)
        if number in FULL or any(text in words for text in FULL_WORDS):
            return UserError(_full(folder, words.splitlines()[0]))
        if number == errno.EROFS or any(text in words for text in READ_ONLY_WORDS):
            return UserError(
                f"{folder} cannot be written: its file system is read-only "
                f"({words.splitlines()[0]}). Mount it for writing, or choose another --run-dir, "
                "and run the same command again: it goes on from what is complete."
            )
    return None


def explains_failed_writes(work: Callable[[StageDir], None]) -> Callable[[StageDir], None]:
    """Decorate the work of a rank: a write that failed for want of space ends it as wrong input."""

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
            # A full disk may not take the log either.
            with contextlib.suppress(OSError):
                traceback.print_exc()
            raise why from error

    return explaining
