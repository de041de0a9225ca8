"""The buffers in /dev/shm that DeepSpeed's CPU op shares between ranks, and never removes."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipelines.errors import DamagedFile
from pipelines.run_dir.paths import StageDir, read_json, write_json

SHARED = Path("/dev/shm")


def _prefix() -> str:
    return f"deepspeed_allreduce_buffer_{os.getuid()}_"


def own_buffer(env: Mapping[str, str] = os.environ) -> Path:
    """The buffer of the rank with this environment."""
    return SHARED / f"{_prefix()}{env['MASTER_ADDR']}_{env['MASTER_PORT']}_{env['RANK']}"


@contextmanager
def none_left(stage_dir: StageDir, port: int) -> Iterator[None]:
    """Around the ranks of a start: leave no buffer of theirs, nor of a start that was killed.

    The ranks remove their buffers themselves as soon as all have opened them; what is killed
    before that leaves 69 MB of memory each. The port in the names says whose they are, and the
    stage's folder remembers it for the next start.

    Args:
        port: where the ranks meet.
    """
    try:
        last = read_json(stage_dir.port, needs=("port", "host"))
        if last["host"] == socket.gethostname():
            _remove(str(last["port"]))
    except (FileNotFoundError, DamagedFile):
        pass
    write_json(stage_dir.port, {"port": port, "host": socket.gethostname()})
    try:
        yield
    finally:
        _remove(str(port))
        stage_dir.port.unlink(missing_ok=True)


def _remove(port: str) -> None:
    """Remove the buffers of this user and port, but for those that a living process has mapped:
    a port is given to another run once it is free."""
    found = [
        path
        for path in SHARED.glob(f"{_prefix()}*_*")
        if path.name.removeprefix(_prefix()).split("_")[-2] == port
    ]
    mapped = _mapped() if found else ""
    for path in found:
        if str(path) not in mapped:
            path.unlink(missing_ok=True)


def _mapped() -> str:
    """What processes of this user have mapped from shared memory, as /proc lists it."""
    lines = []
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            lines += [line for line in maps.read_text().splitlines() if f"{SHARED}/" in line]
        except OSError:
            continue
    return "\n".join(lines)
