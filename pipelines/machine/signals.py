"""The signals that stop a command, as an exception. Imports little, since it is loaded first."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipelines.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def signals_raise() -> Iterator[None]:
    """Turn the signals into `Interrupted`, wherever the command is."""

    def raise_interrupted(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    previous = {s: signal.signal(s, raise_interrupted) for s in SIGNALS}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def ignore_signals() -> None:
    """For a command that is ending because of one."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
