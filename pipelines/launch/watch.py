"""Watch the heartbeats of a stage: whether it hangs, which rank is behind, its peak memory."""

from __future__ import annotations

import re
import socket
import time
from contextlib import suppress
from pathlib import Path

from pipelines.errors import DamagedFile
from pipelines.quantities import duration, quantity
from pipelines.recipe.schema import LaunchConfig
from pipelines.run_dir.heartbeat import CAN_STOP, TRAINING, HeartbeatRecord
from pipelines.run_dir.paths import StageDir, read_json

LOOK_SECONDS = 0.5


class Watch:
    """The launcher's view of the heartbeats of a stage; `launch` has the time limits."""

    def __init__(self, stage_dir: StageDir, num_ranks: int, launch: LaunchConfig) -> None:
        self.folder = stage_dir.heartbeats
        self.num_ranks = num_ranks
        self.launch = launch
        self.records: dict[int, HeartbeatRecord] = {}
        self.peaks: dict[int, int] = {}
        self.looked_at = -LOOK_SECONDS
        # By the clock of this node, since the clocks of others may differ.
        self.moved_at = time.monotonic()

    def look(self, at_once: bool = False) -> None:
        """Read the heartbeats, at most twice a second unless `at_once`."""
        now = time.monotonic()
        if now - self.looked_at < LOOK_SECONDS and not at_once:
            return
        self.looked_at = now
        records = dict(self.records)
        for path in self.folder.glob("*.json"):
            try:
                record = HeartbeatRecord(**read_json(path))
            except (DamagedFile, FileNotFoundError, TypeError):  # the file is being written
                continue
            records[record.rank] = record
            peaks = (record.peak_bytes, _peak_now(record), self.peaks.get(record.rank, 0))
            self.peaks[record.rank] = max(peaks)
        if records != self.records:
            self.records, self.moved_at = records, now

    def can_stop(self) -> bool:
        """Whether a rank will see the file `stop` or is about to finish."""
        return any(record.phase in CAN_STOP for record in self.records.values())

    def hang(self) -> str:
        """Describes the ranks that hang; empty while the stage makes progress."""
        phases = {record.phase for record in self.records.values()}
        in_steps = phases == {TRAINING} and len(self.records) == self.num_ranks
        key = "hang_seconds" if in_steps else "hang_seconds_outside"
        allowed, still = getattr(self.launch, key), time.monotonic() - self.moved_at
        if not allowed or still <= allowed:
            return ""
        positions = "; ".join(
            f"rank {rank} on {r.host} (pid {r.pid}): {r.phase}, {r.step} steps done"
            for rank, r in sorted(self.records.items())
        )
        return (
            f"it hangs: no rank made progress for {duration(still)}. {self._suspects()} "
            f"{positions}{'.' if positions else ''} launch.{key} sets this limit"
        )

    def _suspects(self) -> str:
        """The ranks that the others may wait for, and why."""
        everyone = {*range(self.num_ranks)}
        stopped = {rank for rank, r in self.records.items() if _state(r) in ("T", "t")}
        fewest = min((r.beats for r in self.records.values()), default=0)
        behind = {rank for rank, r in self.records.items() if r.beats == fewest}
        cases = (
            (everyone - self.records.keys(), "never started"),
            (stopped, "is stopped by a signal"),
            (behind if len(behind) < self.num_ranks else set(), "is behind the others"),
            (behind, "made equal progress, so a collective may be stuck"),
        )
        ranks, what = next(case for case in cases if case[0])
        return f"{' and '.join(f'rank {rank}' for rank in sorted(ranks))} {what}."

    def memory(self) -> str:
        """Peak memory of the ranks, as text."""
        known = []
        for rank, peak in sorted(self.peaks.items()):
            gpu = self.records[rank].gpu_peak_bytes
            on_gpu = f" and {quantity(gpu)}B on its GPU" if gpu else ""
            known.append(f"rank {rank} {quantity(peak)}B{on_gpu}")
        return ", ".join(known)


def _peak_now(record: HeartbeatRecord) -> int:
    """Peak memory of a rank on this node, from the kernel; 0 on other nodes or if it has ended."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", _proc(record, "status"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _state(record: HeartbeatRecord) -> str:
    """State letter of a process, T if stopped; empty on another node."""
    return _proc(record, "stat").rpartition(")")[2].strip()[:1]


def _proc(record: HeartbeatRecord, name: str) -> str:
    """A file of the kernel about a rank; empty on other nodes or if it has ended."""
    if record.host == socket.gethostname():
        with suppress(FileNotFoundError, ProcessLookupError):
            return Path(f"/proc/{record.pid}/{name}").read_text()
    return ""
