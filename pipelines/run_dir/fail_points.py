"""Fail points: places where a test can kill a process or fail a write, to check the recovery.

`REMIT_FAIL_AT="NAME[:kind[:rank[:count]]]"` selects one. The count-th time that a process (of that
rank, if given) reaches it, the process is killed or the write fails. Without the variable nothing
happens.
"""

from __future__ import annotations

import errno
import os
import signal
from collections import Counter

from pipelines.errors import UserError

VARIABLE = "REMIT_FAIL_AT"
INSTANTS = (
    "during a checkpoint write", "all ranks saved, before the marker",
    "after the marker, before pruning", "before model is renamed", "after model is renamed",
    "before the result", "after the result", "before the finish line", "half a ledger line",
    "before a file is renamed", "before a score shard is renamed", "before the marker of scores",
    "while packed data is written", "before packed data is renamed",
)  # fmt: skip
# Kinds: kill this process, kill its process group, or fail a write with this error number.
SIGNALS = {"kill": os.kill, "kill-group": os.killpg}
ERRORS = {"no-space": errno.ENOSPC, "read-only": errno.EROFS}

_passed: Counter[str] = Counter()


def _wanted(text: str) -> tuple[str, str, str, int]:
    name, kind, rank, count = (text.split(":", 3) + [""] * 3)[:4]
    kind, count = kind or "kill", count or "1"
    kinds = (*SIGNALS, *ERRORS)
    if name not in INSTANTS:
        wrong = f"unknown fail point; choose from: {'; '.join(INSTANTS)}"
    elif kind not in kinds:
        wrong = f"the kind must be one of {', '.join(kinds)}"
    elif not (count.isdecimal() and int(count) and (rank == "" or rank.isdecimal())):
        wrong = "rank and count must be numbers, count at least 1"
    else:
        return name, kind, rank, int(count)
    raise UserError(f"{VARIABLE}={text}: {wrong}.")


def armed(name: str) -> bool:
    """Whether this fail point is selected, for callers that prepare the failure themselves."""
    return VARIABLE in os.environ and _wanted(os.environ[VARIABLE])[0] == name


def fail_point(name: str) -> None:
    """Fail here if the environment selects this fail point; else do nothing.

    Raises:
        OSError: the selected kind is a failing write.
        UserError: the environment names an unknown fail point or kind.
    """
    if VARIABLE not in os.environ:
        return
    wanted, kind, rank, count = _wanted(os.environ[VARIABLE])
    if name != wanted or rank not in ("", os.environ.get("RANK", "0")):
        return
    _passed[name] += 1
    if _passed[name] != count:
        return
    print(f"fail point: {name} ({kind})", flush=True)
    if kind in ERRORS:
        raise OSError(ERRORS[kind], f"{os.strerror(ERRORS[kind])} (fail point: {name})")
    SIGNALS[kind](os.getpid() if kind == "kill" else os.getpgid(0), signal.SIGKILL)
