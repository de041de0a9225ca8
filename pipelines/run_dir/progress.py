"""The state and progress of a stage, read from its files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipelines.quantities import duration
from pipelines.run_dir.paths import StageDir, json_objects


@dataclass(frozen=True)
class Progress:
    """The last logged values of a running stage; None for values that it does not log.

    Attributes:
        seconds_left: at the speed of the last logged steps.
        task: the task that an evaluation runs now; its steps are answers.
    """

    step: int
    max_steps: int
    loss: float | None
    reward: float | None
    tokens_per_second: float | None
    seconds_left: float | None
    task: str | None = None

    def __str__(self) -> str:
        unit = f"{self.task}, answer" if self.task else "step"
        left = None if self.seconds_left is None else duration(self.seconds_left)
        values = (
            ("loss {:.3f}", self.loss), ("reward {:.2f}", self.reward),
            ("{:,.0f} tokens/s", self.tokens_per_second), ("{} left", left),
        )  # fmt: skip
        known = [words.format(value) for words, value in values if value is not None]
        return ", ".join([f"{unit} {self.step:,} of {self.max_steps:,}", *known])


def stage_state(stage_dir: StageDir, last_event: str, *, running: bool) -> str:
    """done, no signal, running, crashed, failed, interrupted, stopped, removed, to do.

    `stopped` means interrupted with a checkpoint of the last step.

    Args:
        last_event: last event of this stage in the ledger except skips; empty if there is none.
        running: a process holds the lock of the run.
    """
    if stage_dir.is_complete():
        return "no signal" if stage_dir.read_result().get("status") == "no signal" else "done"
    begun = "running" if running else "crashed"
    ended = "stopped" if stage_dir.stopped.is_file() else "interrupted"
    states = {"start": begun, "resume": begun, "fail": "failed", "interrupt": ended}
    return (states | {"finish": "removed"}).get(last_event, "to do")


def read_progress(stage_dir: StageDir) -> Progress | None:
    """The progress of a stage; None before its first step."""
    # The first line may be cut off, the last may be in writing.
    lines = tail(stage_dir.metrics, lines=20).splitlines()
    entries = [entry for entry in json_objects(lines) if _is_step(entry)]
    if not entries:
        return None
    known: dict[str, Any] = {key: value for entry in entries for key, value in entry.items()}
    first, last = entries[0], entries[-1]
    for before, entry in pairwise(entries):
        # Only since the last start: the pause before a resume is not training time.
        if entry.get("elapsed", 0.0) < before.get("elapsed", 0.0):
            first = entry
    steps, seconds = last["step"] - first["step"], last["time"] - first["time"]
    pace = seconds / steps if steps else None
    return Progress(
        step=last["step"],
        max_steps=last["max_steps"],
        loss=finite_number(known.get("loss")),
        reward=finite_number(known.get("reward")),
        tokens_per_second=finite_number(known.get("tokens_per_second")),
        seconds_left=None if pace is None else pace * (last["max_steps"] - last["step"]),
        task=last["task"] if isinstance(last.get("task"), str) else None,
    )


def _is_step(entry: dict[str, Any]) -> bool:
    values = [entry.get(key) for key in ("step", "max_steps", "time")]
    return None not in map(finite_number, [*values, entry.get("elapsed", 0.0)])


def finite_number(value: Any) -> float | None:
    """The value as a float if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return found if math.isfinite(found) else None


def last_error(log: Path) -> str:
    """The last whole error line of a log; empty if it has none. A full disk may cut a line."""
    lines = tail(log, lines=200).splitlines()
    with open(log, "rb") as stream:
        stream.seek(max(0, log.stat().st_size - 1))
        if stream.read(1) != b"\n":
            lines = lines[:-1]
    said = (line for line in reversed(lines) if line.startswith("error: "))
    return next(said, "").removeprefix("error: ")


def tail(path: Path, lines: int = 15, since: int = 0) -> str:
    """The last lines of a log, without its first `since` bytes."""
    if not path.is_file():
        return ""
    with open(path, "rb") as stream:
        stream.seek(max(since, path.stat().st_size - 16_384))
        return "\n".join(stream.read().decode(errors="replace").splitlines()[-lines:])
