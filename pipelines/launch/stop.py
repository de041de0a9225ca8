"""Stop a stage: pass a signal on to its ranks and find out whether they saved.

The command records a signal and writes the file `stop` into the stage's folder. The ranks see it at
the end of a step (`pipelines.training.step_boundary`), save, and write `stopped.json`. A signal to
a rank itself has the same effect. The processes between the command and the ranks block the
signals, since DeepSpeed's launcher would kill its ranks.
"""

from __future__ import annotations

import signal
import time
from contextlib import suppress
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
    """The first signal so far, and whether a SIGINT followed it; `why`: see `Interrupted`."""

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


@dataclass
class Stop:
    """The stop of a stage, from the request to the end of the grace period."""

    launch: LaunchConfig
    stage_dir: StageDir
    received: ReceivedSignals
    watch: Watch
    asked_at: float | None = None

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
    with suppress(FileNotFoundError, DamagedFile):
        said = read_json(stage_dir.stopped, needs=("signal", "step"))
        return Interrupted(received.signum or said["signal"], said["step"], received.why)
    killed_by = signal_of(returncode)
    if received.signum is not None and (escalated or killed_by is not None):
        return Interrupted(received.signum, why=received.why)
    return Interrupted(killed_by) if killed_by in SIGNALS else None
