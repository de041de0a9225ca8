"""The signals that stop a command; this module is loaded first, so it imports little."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from pipelines.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# How long a signal that came during an import is put off, in seconds, again and again.
PUT_OFF_SECONDS = 0.02


@contextmanager
def signals_raise() -> Iterator[None]:
    """Raise `Interrupted` on the signals inside this context, after any import in progress.

    Some packages cannot be imported again once an exception has cut their import short, and Python
    turns an exception in the middle of a class into another one.
    """

    def raise_interrupted(signum: int, frame: FrameType | None) -> None:
        if not _is_importing(frame):
            raise Interrupted(signum)
        again = threading.Timer(PUT_OFF_SECONDS, os.kill, (os.getpid(), signum))
        again.daemon = True
        again.start()

    with signals_handled_by(raise_interrupted):
        yield


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


@contextmanager
def signals_handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Call a handler on the signals inside this context."""
    previous = {s: signal.signal(s, handler) for s in SIGNALS}
    try:
        yield
    finally:
        for signum, former in previous.items():
            signal.signal(signum, former)


def block_signals() -> None:
    """Block the signals in this process and its children, until `unblock_signals`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def unblock_signals() -> None:
    """In a rank: let the signals kill it until its training loop handles them."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def signal_of(returncode: int) -> int | None:
    """The signal that killed the first failing rank of a stage, or None.

    It is a negative exit code in Python; DeepSpeed's launcher passes it on as 256 more.
    """
    number = -returncode if returncode < 0 else 256 - returncode
    return number if 0 < number < signal.NSIG else None


def ignore_signals() -> None:
    """Ignore further signals, in a command that is already ending because of one."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
