"""Where each rank is: written by the ranks, watched by the launcher side.

A rank keeps one small file in the folder of its stage, overwritten in place at each mark of
progress: its phase, its last step, how many marks it has made. Training marks its steps; packing,
scoring, evaluation and analysis mark their batches. The launcher side sees from it whether a stage
still moves, which rank is behind, whether the ranks can save and stop, and what memory they took.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.run_dir.paths import StageDir

# Phases of a rank. Before the training loop, and in stages that have none:
WORKING = "working"
# In it: the first step (compiles, warms up), the steps after it, what is written between steps.
FIRST_STEP = "first step"
TRAINING = "training"
SAVING = "saving"
# After it: export and the last measurements.
FINISHING = "finishing"
# A stop waits for these; it ends the others at once, since they have nothing to save.
CAN_STOP = (FIRST_STEP, TRAINING, SAVING, FINISHING)
# Batches may be short: their marks come no closer than this.
TICK_SECONDS = 1.0
LINE_BYTES = 512


@dataclass(frozen=True)
class HeartbeatRecord:
    """The last mark of a rank.

    Attributes:
        step: optimizer steps done.
        marks: counted from the start; a rank with fewer than others is behind them.
        peak_bytes: most memory that the process had.
        gpu_peak_bytes: most memory that torch held on its GPU; 0 without one.
    """

    rank: int
    host: str
    pid: int
    phase: str
    step: int
    beats: int
    peak_bytes: int
    gpu_peak_bytes: int


class Heartbeat:
    """This rank's file."""

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.descriptor = os.open(folder / f"{rank}.json", os.O_WRONLY | os.O_CREAT, 0o644)
        self.rank = rank
        self.host = socket.gethostname()
        self.phase = WORKING
        self.step = 0
        self.beats = 0
        self.beat_at = 0.0
        self.gpu_peak_bytes = 0

    def beat(
        self, phase: str | None = None, step: int | None = None, gpu_peak_bytes: int = 0
    ) -> None:
        """Say that this rank moves; phase and step stay as they are where none is given."""
        self.phase = phase or self.phase
        self.step = self.step if step is None else step
        self.beats += 1
        self.beat_at = time.monotonic()
        self.gpu_peak_bytes = max(self.gpu_peak_bytes, gpu_peak_bytes)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        record = HeartbeatRecord(
            self.rank, self.host, os.getpid(), self.phase, self.step, self.beats, peak,
            self.gpu_peak_bytes,
        )  # fmt: skip
        # One write of one length: who reads sees one mark or the next.
        os.pwrite(self.descriptor, json.dumps(asdict(record)).encode().ljust(LINE_BYTES), 0)


_own: list[Heartbeat] = []


def begin(stage_dir: StageDir, rank: int) -> None:
    """Start this process's heartbeat."""
    _own[:] = [Heartbeat(stage_dir.heartbeats, rank)]
    beat()


def beat(phase: str | None = None, step: int | None = None, gpu_peak_bytes: int = 0) -> None:
    """A mark of this process's heartbeat; nothing where it has none, as outside of a stage."""
    for own in _own:
        own.beat(phase, step, gpu_peak_bytes)


def tick() -> None:
    """A mark at most once a second, for loops that are no training steps."""
    for own in _own:
        if time.monotonic() - own.beat_at >= TICK_SECONDS:
            own.beat()


def phase() -> str:
    """The phase that this process is in."""
    return _own[0].phase if _own else WORKING
