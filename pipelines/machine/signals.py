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


def block_signals() -> None:
    """Keep the signals from this process and from what it starts, until `unblock_signals`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def unblock_signals() -> None:
    """In a rank: die of the signals, until its training loop handles them."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def signal_of(returncode: int) -> int | None:
    """The signal that a stage's first failing rank died of.

    Python's exit code of a child that a signal killed is negative, and 256 more once DeepSpeed's
    launcher has passed it on.
    """
    number = -returncode if returncode < 0 else 256 - returncode
    return number if 0 < number < signal.NSIG else None


def ignore_signals() -> None:
    """For a command that is ending because of one."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
