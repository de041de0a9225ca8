"""The heartbeats of a stage, watched: does it move, which rank is behind, what memory it took."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from pipelines.errors import DamagedFile
from pipelines.quantities import duration, quantity
from pipelines.recipe.schema import LaunchConfig
from pipelines.run_dir.heartbeat import CAN_STOP, TRAINING, Pulse
from pipelines.run_dir.paths import StageDir, read_json

LOOK_SECONDS = 0.5


class Watch:
    """The heartbeats of a stage, seen from the launcher side.

    Args:
        num_ranks: over all machines.
        launch: says how long is too long.
    """

    def __init__(self, stage_dir: StageDir, num_ranks: int, launch: LaunchConfig) -> None:
        self.folder = stage_dir.heartbeats
        self.num_ranks = num_ranks
        self.launch = launch
        self.pulses: dict[int, Pulse] = {}
        self.peaks: dict[int, int] = {}
        self.looked_at = -LOOK_SECONDS
        # By this machine's clock, since those of others may differ.
        self.moved_at = time.monotonic()

    def look(self, at_once: bool = False) -> None:
        """Read the heartbeats, at most twice a second."""
        now = time.monotonic()
        if now - self.looked_at < LOOK_SECONDS and not at_once:
            return
        self.looked_at = now
        pulses = dict(self.pulses)
        for path in self.folder.glob("*.json"):
            try:
                pulse = Pulse(**read_json(path))
            except (DamagedFile, FileNotFoundError, TypeError):  # it is being written
                continue
            pulses[pulse.rank] = pulse
            seen = max(pulse.peak_bytes, _peak_now(pulse))
            self.peaks[pulse.rank] = max(seen, self.peaks.get(pulse.rank, 0))
        if pulses != self.pulses:
            self.pulses, self.moved_at = pulses, now

    def can_stop(self) -> bool:
        """Whether ranks will see the file `stop`, or are about to finish."""
        return any(pulse.phase in CAN_STOP for pulse in self.pulses.values())

    def hang(self) -> str:
        """Which ranks hang, in words; empty while the stage moves."""
        phases = {pulse.phase for pulse in self.pulses.values()}
        in_steps = phases == {TRAINING} and len(self.pulses) == self.num_ranks
        key = "hang_seconds" if in_steps else "hang_seconds_outside"
        allowed: float = getattr(self.launch, key)
        still = time.monotonic() - self.moved_at
        if not allowed or still <= allowed:
            return ""
        return (
            f"it hangs: no rank has moved for {duration(still)}. {self._suspects()} "
            f"{self._positions()} launch.{key} says how long is too long"
        )

    def _suspects(self) -> str:
        absent = sorted({*range(self.num_ranks)} - self.pulses.keys())
        if absent:
            return f"{_ranks(absent)} never began."
        stopped = [r for r, pulse in self.pulses.items() if _state(pulse) in ("T", "t")]
        if stopped:
            return f"{_ranks(stopped)} is stopped by a signal."
        fewest = min(pulse.marks for pulse in self.pulses.values())
        behind = [r for r, pulse in self.pulses.items() if pulse.marks == fewest]
        if len(behind) < self.num_ranks:
            return f"{_ranks(behind)} is behind the others."
        return f"{_ranks(behind)} came equally far, as if in one collective."

    def _positions(self) -> str:
        told = [
            f"rank {rank} on {pulse.host} (pid {pulse.pid}): {pulse.phase}, {pulse.step} steps done"
            for rank, pulse in sorted(self.pulses.items())
        ]
        return "; ".join(told) + "." if told else ""

    def memory(self) -> str:
        """Peak memory of the ranks, in words."""
        told = []
        for rank, peak in sorted(self.peaks.items()):
            gpu = self.pulses[rank].gpu_peak_bytes
            told.append(
                f"rank {rank} {quantity(peak)}B" + (f" and {quantity(gpu)}B of GPU" if gpu else "")
            )
        return ", ".join(told)


def _ranks(ranks: list[int]) -> str:
    return " and ".join(f"rank {rank}" for rank in sorted(ranks))


def _peak_now(pulse: Pulse) -> int:
    """Peak memory of a rank of this machine by the kernel; 0 for others and where it is gone."""
    for line in _proc(pulse, "status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _state(pulse: Pulse) -> str:
    """The letter of a process's state, T for stopped; empty on other machines."""
    return _proc(pulse, "stat").rpartition(")")[2].strip()[:1]


def _proc(pulse: Pulse, name: str) -> str:
    if pulse.host != socket.gethostname():
        return ""
    try:
        return Path(f"/proc/{pulse.pid}/{name}").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
