"""Instants at which a test ends a process or a write, to look at what a crash there leaves.

`REMIT_FAIL_AT="NAME[:kind[:rank[:count]]]"` names one: at the count-th time that a process (of that
rank, if one is given) comes by, it is killed, or the write fails. Without it nothing happens.
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
# A signal to this process, one to its group, or the error number of a failing write.
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
        raise UserError(f"{VARIABLE}={text}: no such instant. There are: {'; '.join(INSTANTS)}.")
    if kind not in (*SIGNALS, *ERRORS):
        raise UserError(f"{VARIABLE}={text}: kind is one of {', '.join((*SIGNALS, *ERRORS))}.")
    if not (count.isdecimal() and int(count) and (rank == "" or rank.isdecimal())):
        raise UserError(f"{VARIABLE}={text}: rank and count are numbers, count from 1.")
    return _Wanted(name, kind, rank, int(count))


def armed(name: str) -> bool:
    """Whether this instant is the one that is asked for, for the caller to bring about."""
    return VARIABLE in os.environ and _wanted(os.environ[VARIABLE]).name == name


def fail_point(name: str) -> None:
    """Nothing, unless the environment asks for a failure at this instant.

    Raises:
        OSError: the kind is that of a failing write.
        UserError: the environment names an instant or a kind that is none.
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
