"""Progress of an evaluation, written to `metrics.jsonl` in the format of gradient stages."""

from __future__ import annotations

import json
import time
from pathlib import Path

# Batches may be short: within one task, lines are at least this far apart.
LINE_SECONDS = 5.0


class EvalProgress:
    """Counts finished answers, of `total`; a domain of held-out text counts as one answer.

    Lines are appended to the file at `path`; None writes nothing.
    """

    def __init__(self, path: Path | None, total: int) -> None:
        self.path, self.total, self.name = path, total, ""
        self.answers = self.before = 0  # in the current task, and in all tasks before it
        self.started = self.written_at = time.monotonic()

    def begin(self, name: str, answers: int) -> None:
        """Start the next task, benchmark or text; the one before it is finished."""
        self.before += self.answers
        self.name, self.answers = name, answers
        self._write(0)

    def skip(self, answers: int) -> None:
        """Count answers that an earlier start has given."""
        self.before += answers

    def reached(self, share: float) -> None:
        """Record the finished fraction of the current task, from 0 to 1."""
        if time.monotonic() - self.written_at >= LINE_SECONDS:
            self._write(int(min(1.0, share) * self.answers))

    def end(self) -> None:
        """Record that the evaluation is finished."""
        self._write(self.answers)

    def _write(self, done: int) -> None:
        self.written_at = time.monotonic()
        if self.path is None:
            return
        line = {
            "step": self.before + done,
            "max_steps": self.total,
            "task": self.name,
            "time": round(time.time(), 3),
            "elapsed": round(self.written_at - self.started, 3),
        }
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
