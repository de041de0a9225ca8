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
from dataclasses import dataclass

from pipelines.errors import UserError

VARIABLE = "REMIT_FAIL_AT"
INSTANTS = (
    "during a checkpoint write",
    "all ranks saved, before the marker",
    "after the marker, before pruning",
    "before model is renamed",
    "after model is renamed",
    "before the result",
    "after the result",
    "before the finish line",
    "half a ledger line",
    "before a file is renamed",
    "before a score shard is renamed",
    "before the marker of scores",
    "while packed data is written",
    "before packed data is renamed",
)
# Kinds: kill this process, kill its process group, or fail a write with this error number.
SIGNALS = {"kill": os.kill, "kill-group": os.killpg}
ERRORS = {"no-space": errno.ENOSPC, "read-only": errno.EROFS}

_passed: Counter[str] = Counter()


@dataclass(frozen=True)
class _Wanted:
    name: str
    kind: str
    rank: str
    count: int


def _wanted(text: str) -> _Wanted:
    name, _, rest = text.partition(":")
    kind, _, rest = rest.partition(":")
    rank, _, count = rest.partition(":")
    kind, count = kind or "kill", count or "1"
    if name not in INSTANTS:
        raise UserError(
            f"{VARIABLE}={text}: unknown fail point; choose from: {'; '.join(INSTANTS)}."
        )
    if kind not in (*SIGNALS, *ERRORS):
        raise UserError(
            f"{VARIABLE}={text}: the kind must be one of {', '.join((*SIGNALS, *ERRORS))}."
        )
    if not (count.isdecimal() and int(count) and (rank == "" or rank.isdecimal())):
        raise UserError(f"{VARIABLE}={text}: rank and count must be numbers, count at least 1.")
    return _Wanted(name, kind, rank, int(count))


def armed(name: str) -> bool:
    """Whether this fail point is selected, for callers that prepare the failure themselves."""
    return VARIABLE in os.environ and _wanted(os.environ[VARIABLE]).name == name


def fail_point(name: str) -> None:
    """Fail here if the environment selects this fail point; else do nothing.

    Raises:
        OSError: the selected kind is a failing write.
        UserError: the environment names an unknown fail point or kind.
    """
    if VARIABLE in os.environ:
        _fail(name, _wanted(os.environ[VARIABLE]))


def _fail(name: str, wanted: _Wanted) -> None:
    if name not in INSTANTS:
        raise ValueError(f"{name}: not in INSTANTS")
    if name != wanted.name or wanted.rank not in ("", os.environ.get("RANK", "0")):
        return
    _passed[name] += 1
    if _passed[name] != wanted.count:
        return
    print(f"fail point: {name} ({wanted.kind})", flush=True)
    if wanted.kind in ERRORS:
        number = ERRORS[wanted.kind]
        raise OSError(number, f"{os.strerror(number)} (fail point: {name})")
    target = os.getpid() if wanted.kind == "kill" else os.getpgid(0)
    SIGNALS[wanted.kind](target, signal.SIGKILL)
