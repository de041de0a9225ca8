"""The state and progress of a stage, read from its files."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.quantities import duration
from pipelines.run_dir.paths import StageDir


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
        words = [f"step {self.step:,} of {self.max_steps:,}"]
        if self.task:
            words = [self.task, f"answer {self.step:,} of {self.max_steps:,}"]
        if self.loss is not None:
            words.append(f"loss {self.loss:.3f}")
        if self.reward is not None:
            words.append(f"reward {self.reward:.2f}")
        if self.tokens_per_second is not None:
            words.append(f"{self.tokens_per_second:,.0f} tokens/s")
        if self.seconds_left is not None:
            words.append(f"{duration(self.seconds_left)} left")
        return ", ".join(words)


def stage_state(stage_dir: StageDir, last_event: str, *, running: bool) -> str:
    """done, no signal, running, crashed, failed, interrupted, stopped, removed, to do.

    `stopped` means interrupted with a checkpoint of the last step.

    Args:
        last_event: last event of this stage in the ledger except skips; empty if there is none.
        running: a process holds the lock of the run.
    """
    if stage_dir.is_complete():
        return "no signal" if stage_dir.read_result().get("status") == "no signal" else "done"
    if last_event in ("start", "resume"):
        return "running" if running else "crashed"
    others = {"fail": "failed", "interrupt": "interrupted", "finish": "removed"}
    if last_event == "interrupt" and stage_dir.stopped.is_file():
        return "stopped"
    return others.get(last_event, "to do")


def read_progress(stage_dir: StageDir) -> Progress | None:
    """The progress of a stage; None before its first step."""
    lines = (_entry(line) for line in tail(stage_dir.metrics, lines=20).splitlines())
    entries = [entry for entry in lines if entry]
    if not entries:
        return None
    last = entries[-1]
    known: dict[str, Any] = {key: value for entry in entries for key, value in entry.items()}
    # Only since the last start: the pause before a resume is not training time.
    begun = max(
        (i for i, e in enumerate(entries) if i and _restarted(entries[i - 1], e)), default=0
    )
    first = entries[begun]
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


def _entry(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):  # the first may be cut off, the last may be in writing
        return None
    if not isinstance(entry, dict):
        return None
    whole = all(finite_number(entry.get(key)) is not None for key in ("step", "max_steps", "time"))
    return entry if whole and finite_number(entry.get("elapsed", 0.0)) is not None else None


def _restarted(before: dict[str, Any], entry: dict[str, Any]) -> bool:
    return bool(entry.get("elapsed", 0.0) < before.get("elapsed", 0.0))


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
    """The last error line of a log; empty if there is none or it is cut off.

    A full disk may cut a line.
    """
    lines = tail(log, lines=200).splitlines()
    with open(log, "rb") as stream:
        stream.seek(max(0, log.stat().st_size - 1))
        if stream.read(1) != b"\n":
            lines = lines[:-1]
    said = [line for line in lines if line.startswith("error: ")]
    return said[-1].removeprefix("error: ") if said else ""


def tail(path: Path, lines: int = 15, since: int = 0) -> str:
    """The last lines of a log, without its first `since` bytes."""
    if not path.is_file():
        return ""
    with open(path, "rb") as stream:
        stream.seek(max(since, path.stat().st_size - 16_384))
        return "\n".join(stream.read().decode(errors="replace").splitlines()[-lines:])
