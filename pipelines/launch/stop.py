"""Stopping a stage: who asks, how the ranks hear of it, what they say when they have stopped.

The command notes a signal and writes the file `stop` into the stage's folder. The ranks see it at
the end of a step (`pipelines.training.step_boundary`), save, and say so in `stopped.json`. A signal that
reaches a rank itself has the same effect. The processes between the command and the ranks have the
signals blocked: a launcher that hears one ends its ranks.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from pipelines.errors import DamagedFile, Interrupted, Stopped, UserError
from pipelines.machine.signals import SIGNALS
from pipelines.recipe.schema import LaunchConfig
from pipelines.run_dir.heartbeat import Watch
from pipelines.run_dir.paths import StageDir, read_json, write_json


def block_signals() -> None:
    """Keep the signals from this process and from what it starts, until `unblock_signals`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def unblock_signals() -> None:
    """In a rank: die of the signals, until its training loop handles them."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@dataclass
class Noted:
    """Signals that have come.

    Attributes:
        signum: the first one; None while there is none.
        insisted: SIGINT came once more.
        why: see `Interrupted`.
    """

    signum: int | None = None
    insisted: bool = False
    why: str = ""

    def note(self, signum: int, frame: FrameType | None = None) -> None:
        """A signal handler."""
        if self.signum is None:
            self.signum = signum
        elif signum == signal.SIGINT:
            self.insisted = True

    def raise_if_any(self) -> None:
        """Raises `Interrupted` if a signal has come."""
        if self.signum is not None:
            raise Interrupted(self.signum, why=self.why)


@contextmanager
def signals_noted() -> Iterator[Noted]:
    """Only note the signals while a stage runs and is recorded."""
    noted = Noted()
    previous = {s: signal.signal(s, noted.note) for s in SIGNALS}
    try:
        yield noted
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


class Stop:
    """One stage's stop, from the request to the moment where patience ends.

    Args:
        noted: the signals of the command.
        watch: the heartbeats of the stage.
    """

    def __init__(
        self, launch: LaunchConfig, stage_dir: StageDir, noted: Noted, watch: Watch
    ) -> None:
        self.launch = launch
        self.stage_dir = stage_dir
        self.noted = noted
        self.watch = watch
        self.asked_at: float | None = None

    def is_overdue(self) -> bool:
        """Pass a request on to the ranks; whether they are to be ended now."""
        if self.noted.signum is None and seconds_of_job(self.launch) <= 0:
            self.noted.why = "the end of the SLURM job"
            self.noted.note(signal.SIGTERM)
        if self.noted.signum is None:
            return False
        if self.asked_at is None:
            self.asked_at = time.monotonic()
            write_json(self.stage_dir.stop, {"signal": self.noted.signum})
            self.watch.look(at_once=True)
            # A stage without steps has nothing to save, and would not see the file.
            return not self.watch.can_stop()
        waited = time.monotonic() - self.asked_at
        return self.noted.insisted or waited > self.launch.grace_seconds


def seconds_of_job(launch: LaunchConfig) -> float:
    """Seconds until a stage has to stop for the end of its SLURM job; infinite where none is told.

    Raises:
        UserError: the whole job is shorter than what is kept free at its end.
    """
    told = os.environ.get("SLURM_JOB_END_TIME", "")
    if not launch.stop_before_walltime or not told.isdigit():
        return float("inf")
    begun = os.environ.get("SLURM_JOB_START_TIME", "")
    if begun.isdigit() and int(told) - int(begun) <= launch.stop_before_walltime:
        raise UserError(
            f"the SLURM job lasts {int(told) - int(begun)} s, and launch.stop_before_walltime = "
            f"{launch.stop_before_walltime:g} s of it are kept for stopping: nothing would run. "
            "Give the job more time, or set launch.stop_before_walltime lower (0: never stop)."
        )
    return int(told) - launch.stop_before_walltime - time.time()


def requested(stage_dir: StageDir) -> int:
    """The signal in the file `stop`; 0 without the file."""
    if not stage_dir.stop.is_file():
        return 0
    return int(read_json(stage_dir.stop, needs=("signal",))["signal"])


def write_stopped(stage_dir: StageDir, stopped: Stopped) -> None:
    """Say that the ranks have saved and stopped."""
    write_json(stage_dir.stopped, {"signal": stopped.signum, "step": stopped.step})


def interruption(
    stage_dir: StageDir, noted: Noted, returncode: int, *, escalated: bool
) -> Interrupted | None:
    """How a stage without a result was interrupted; None if it failed by itself.

    Args:
        escalated: the launcher side killed the ranks.
    """
    try:
        said = read_json(stage_dir.stopped, needs=("signal", "step"))
    except (FileNotFoundError, DamagedFile):
        said = None
    if said is not None:
        return Interrupted(noted.signum or said["signal"], said["step"], noted.why)
    if noted.signum is not None and (escalated or signal_of(returncode) is not None):
        return Interrupted(noted.signum, why=noted.why)
    killed_by = signal_of(returncode)
    return Interrupted(killed_by) if killed_by in SIGNALS else None


def signal_of(returncode: int) -> int | None:
    """The signal that a stage's first failing rank died of.

    Python's exit code of a child that a signal killed is negative, and 256 more once DeepSpeed's
    launcher has passed it on.
    """
    number = -returncode if returncode < 0 else 256 - returncode
    return number if 0 < number < signal.NSIG else None
