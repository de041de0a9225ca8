"""Heartbeats: the ranks write them, the launcher watches them.

Each rank has a small file in the folder of its stage and overwrites it in place at each beat: its
phase, its last step, its number of beats. Training beats once per step; packing, scoring,
evaluation and analysis beat once per batch. These files tell the launcher whether a stage makes
progress, which rank is behind, whether the ranks can save and stop, and their peak memory.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipelines.run_dir.paths import StageDir

# Phases of a rank. Before the training loop, and in stages without one:
WORKING = "working"
# In the training loop: the first step (compiles, warms up), later steps, writes between steps.
FIRST_STEP = "first step"
TRAINING = "training"
SAVING = "saving"
# After the training loop: export and the last measurements.
FINISHING = "finishing"
# A stop waits for ranks in these phases. It kills others at once: they have nothing to save.
CAN_STOP = (FIRST_STEP, TRAINING, SAVING, FINISHING)
# Minimum time between two beats of a loop over batches, which may be short.
TICK_SECONDS = 1.0
LINE_BYTES = 512


@dataclass(frozen=True)
class HeartbeatRecord:
    """The content of a heartbeat file."""

    rank: int
    host: str
    pid: int
    phase: str
    # Optimizer steps done.
    step: int = 0
    # Since the start; the rank with the fewest is behind the others.
    beats: int = 0
    # Peak memory of the process, and what torch allocated on its GPU; 0 without a GPU.
    peak_bytes: int = 0
    gpu_peak_bytes: int = 0


class Heartbeat:
    """The heartbeat file of this rank."""

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.descriptor = os.open(folder / f"{rank}.json", os.O_WRONLY | os.O_CREAT, 0o644)
        self.last = HeartbeatRecord(rank, socket.gethostname(), os.getpid(), WORKING)
        self.beat_at = 0.0

    def beat(
        self, phase: str | None = None, step: int | None = None, gpu_peak_bytes: int = 0
    ) -> None:
        """Write a beat. Phase and step keep their last value if not given."""
        self.beat_at, last = time.monotonic(), self.last
        self.last = replace(
            last,
            phase=phase or last.phase,
            step=last.step if step is None else step,
            beats=last.beats + 1,
            peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            gpu_peak_bytes=max(last.gpu_peak_bytes, gpu_peak_bytes),
        )
        # A single write of constant length: a reader sees either the old record or the new one.
        text = json.dumps(asdict(self.last)).encode().ljust(LINE_BYTES)
        os.pwrite(self.descriptor, text, 0)


_own: list[Heartbeat] = []


def begin(stage_dir: StageDir, rank: int) -> None:
    """Start the heartbeat of this process."""
    _own[:] = [Heartbeat(stage_dir.heartbeats, rank)]
    beat()


def beat(phase: str | None = None, step: int | None = None, gpu_peak_bytes: int = 0) -> None:
    """Write a beat of this process; does nothing without a heartbeat, as outside of a stage."""
    for own in _own:
        own.beat(phase, step, gpu_peak_bytes)


def tick() -> None:
    """Write a beat at most once a second, for loops other than training steps."""
    for own in _own:
        if time.monotonic() - own.beat_at >= TICK_SECONDS:
            own.beat()
