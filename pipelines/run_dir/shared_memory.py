"""Remove the buffers in /dev/shm that DeepSpeed's CPU op shares between ranks and never removes."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from pipelines.errors import DamagedFile
from pipelines.run_dir.paths import StageDir, read_json, write_json

SHARED = Path("/dev/shm")
PREFIX = f"deepspeed_allreduce_buffer_{os.getuid()}_"


def own_buffer(env: Mapping[str, str] = os.environ) -> Path:
    """Path of the buffer of the rank with this environment."""
    return SHARED / f"{PREFIX}{env['MASTER_ADDR']}_{env['MASTER_PORT']}_{env['RANK']}"


@contextmanager
def none_left(stage_dir: StageDir, port: int) -> Iterator[None]:
    """Remove the buffers of a start that was killed, and after this context those of its ranks.

    The ranks remove their buffers as soon as all have opened them. A rank killed before that leaves
    69 MB. The buffer names contain the rendezvous port; the stage's folder stores it for the next
    start.
    """
    with suppress(FileNotFoundError, DamagedFile):
        last = read_json(stage_dir.port, needs=("port", "host"))
        if last["host"] == socket.gethostname():
            _remove(str(last["port"]))
    write_json(stage_dir.port, {"port": port, "host": socket.gethostname()})
    try:
        yield
    finally:
        _remove(str(port))
        stage_dir.port.unlink(missing_ok=True)


def _remove(port: str) -> None:
    """Remove the buffers of this user and port, except those mapped by a living process: another
    run may have been given the same port."""
    named = SHARED.glob(f"{PREFIX}*_*")
    found = [p for p in named if p.name.removeprefix(PREFIX).split("_")[-2] == port]
    mapped = _mapped() if found else ""
    for path in found:
        if str(path) not in mapped:
            path.unlink(missing_ok=True)


def _mapped() -> str:
    """The lines of /proc/*/maps with shared memory of this user's processes."""
    lines = []
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            lines += [line for line in maps.read_text().splitlines() if f"{SHARED}/" in line]
    return "\n".join(lines)
