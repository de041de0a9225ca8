"""How far an evaluation is: lines of `metrics.jsonl`, as stages with steps write them."""

from __future__ import annotations

import json
import time
from pathlib import Path

# Batches may be short: lines within one task come no closer than this.
LINE_SECONDS = 5.0


class EvalProgress:
    """Answers given, of all that are asked for; a domain of held-out text counts as one.

    Args:
        path: where the lines go; None: nowhere.
        total: answers of the whole evaluation.
    """

    def __init__(self, path: Path | None, total: int) -> None:
        self.path = path
        self.total = total
        self.name = ""
        self.answers = 0  # of what is asked now
        self.before = 0  # of what was asked before it
        self.started = self.written_at = time.monotonic()

    def begin(self, name: str, answers: int) -> None:
        """The next task, benchmark or text; what was asked before it is done."""
        self.before += self.answers
        self.name, self.answers = name, answers
        self._write(0)

    def skip(self, answers: int) -> None:
        """Answers that an earlier start gave."""
        self.before += answers

    def reached(self, share: float) -> None:
        """The part of the present task that is done, from 0 to 1."""
        if time.monotonic() - self.written_at >= LINE_SECONDS:
            self._write(int(min(1.0, share) * self.answers))

    def end(self) -> None:
        """Everything is done."""
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
