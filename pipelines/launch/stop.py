"""Stop a stage: pass a signal on to its ranks and find out whether they saved.

The command records a signal and writes the file `stop` into the stage's folder. The ranks see it at
the end of a step (`pipelines.training.step_boundary`), save, and write `stopped.json`. A signal to
a rank itself has the same effect. The processes between the command and the ranks block the
signals, since DeepSpeed's launcher would kill its ranks.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from pipelines.errors import DamagedFile, Interrupted
from pipelines.launch.watch import Watch
from pipelines.machine.signals import SIGNALS, signal_of
from pipelines.machine.slurm import seconds_of_job
from pipelines.recipe.schema import LaunchConfig
from pipelines.run_dir.paths import StageDir, read_json, write_json


@dataclass
class ReceivedSignals:
    """Signals received so far.

    Attributes:
        signum: the first signal; None before it.
        second_interrupt: a SIGINT followed the first signal.
        why: see `Interrupted`.
    """

    signum: int | None = None
    second_interrupt: bool = False
    why: str = ""

    def record(self, signum: int, frame: FrameType | None = None) -> None:
        """A signal handler."""
        if self.signum is None:
            self.signum = signum
        elif signum == signal.SIGINT:
            self.second_interrupt = True

    def raise_if_any(self) -> None:
        """Raise `Interrupted` if a signal was received."""
        if self.signum is not None:
            raise Interrupted(self.signum, why=self.why)


@contextmanager
def record_signals() -> Iterator[ReceivedSignals]:
    """Only record signals while a stage runs and the ledger is written."""
    received = ReceivedSignals()
    previous = {s: signal.signal(s, received.record) for s in SIGNALS}
    try:
        yield received
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


class Stop:
    """The stop of a stage, from the request to the end of the grace period.

    Args:
        received: signals of the command.
        watch: watches the heartbeats of the stage.
    """

    def __init__(
        self, launch: LaunchConfig, stage_dir: StageDir, received: ReceivedSignals, watch: Watch
    ) -> None:
        self.launch = launch
        self.stage_dir = stage_dir
        self.received = received
        self.watch = watch
        self.asked_at: float | None = None

    def is_overdue(self) -> bool:
        """Pass a request on to the ranks; returns whether to kill them now."""
        if self.received.signum is None and seconds_of_job(self.launch.stop_before_walltime) <= 0:
            self.received.why = "the end of the SLURM job"
            self.received.record(signal.SIGTERM)
        if self.received.signum is None:
            return False
        if self.asked_at is None:
            self.asked_at = time.monotonic()
            write_json(self.stage_dir.stop, {"signal": self.received.signum})
            self.watch.look(at_once=True)
            # A stage without steps has nothing to save and does not look for the file.
            return not self.watch.can_stop()
        waited = time.monotonic() - self.asked_at
        return self.received.second_interrupt or waited > self.launch.grace_seconds


def interruption(
    stage_dir: StageDir, received: ReceivedSignals, returncode: int, *, escalated: bool
) -> Interrupted | None:
    """How a stage without a result was interrupted; None if it failed by itself.

    Args:
        escalated: the launcher killed the ranks.
    """
    try:
        said = read_json(stage_dir.stopped, needs=("signal", "step"))
    except (FileNotFoundError, DamagedFile):
        said = None
    if said is not None:
        return Interrupted(received.signum or said["signal"], said["step"], received.why)
    if received.signum is not None and (escalated or signal_of(returncode) is not None):
        return Interrupted(received.signum, why=received.why)
    killed_by = signal_of(returncode)
    return Interrupted(killed_by) if killed_by in SIGNALS else None
