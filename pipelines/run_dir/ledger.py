"""The ledger of a run: an append-only file with a JSON line per event of a stage.

Only the launcher writes it, under the lock of the run. Readers ignore a line torn by a crash.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.run_dir.fail_points import armed, fail_point
from pipelines.run_dir.paths import json_objects


def is_name(stage: Any) -> bool:
    """Whether this can be the name of a stage: a relative path inside the run directory."""
    is_text = isinstance(stage, str) and stage != "" and "\0" not in stage
    return is_text and not stage.startswith("/") and ".." not in stage.split("/")


def append(path: Path, event: str, stage: str, **facts: Any) -> dict[str, Any]:
    """Append and sync a line; `event` is start, resume, finish, skip, fail or interrupt."""
    entry = {"time": round(time.time(), 3), "event": event, "stage": stage, **facts}
    line = json.dumps(entry, allow_nan=False) + "\n"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = "\n" + line
        unwritten = line.encode()
        if armed("half a ledger line"):
            unwritten = unwritten[os.write(descriptor, unwritten[: len(unwritten) // 2]) :]
            fail_point("half a ledger line")
        # A nearly full disk writes a part and raises only at the next write.
        while unwritten:
            unwritten = unwritten[os.write(descriptor, unwritten) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return entry


def read(path: Path) -> Iterator[dict[str, Any]]:
    """All complete lines, in order."""
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="replace") as stream:
        yield from (entry for entry in json_objects(stream) if is_name(entry.get("stage")))


def is_unreadable(path: Path) -> bool:
    """Whether there is something in the ledger and not one line that can be read."""
    return path.is_file() and path.stat().st_size > 0 and next(read(path), None) is None
