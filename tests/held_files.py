"""Who holds the files of a run: what tests of kills look at when all should be gone."""

from __future__ import annotations

import os
from pathlib import Path


def holders(run: Path) -> dict[int, str]:
    """Processes that hold a file of the run open: command, launchers and ranks, by process id."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            opened = [os.readlink(fd) for fd in (process / "fd").iterdir()]
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if any(path.startswith(f"{run}/") for path in opened):
            found[int(process.name)] = command
    return found
