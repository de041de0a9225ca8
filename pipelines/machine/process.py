"""Processes that die with their parent, and facts about this machine without importing torch."""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import socket
import subprocess
import threading
from typing import Any

PR_SET_PDEATHSIG = 1

# Environment of a fork server: keeps libraries from starting threads, which a fork would lose.
FORK_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}


def die_with_parent(parent: int | None = None) -> None:
    """Let the kernel kill this process when its parent dies, for whatever reason.

    If the parent is already dead, this process dies at once.

    Args:
        parent: pid of the parent, if it was known before the fork.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # Check after the call: from here on, the death of the parent kills this process.
    if is_orphan() if parent is None else os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def is_orphan() -> bool:
    """Whether this process was re-parented after its parent died, judged by sessions.

    A launcher and its ranks are in the same session. The process that inherits orphans (init, a
    subreaper) is outside of it. A process that leads a session itself cannot tell.
    """
    session = os.getsid(0)
    if session == os.getpid():
        return False
    try:
        return os.getsid(os.getppid()) != session
    except ProcessLookupError:
        # The parent died between the two calls.
        return True
    except PermissionError:
        return False


def this_process() -> dict[str, Any]:
    """Identifies this command for `die_with_command` in ranks that are not its children."""
    return {"pid": os.getpid(), "where": _where()}


def die_with_command(command: dict[str, Any]) -> None:
    """Kill this process when a command on the same node ends, even if it is not the parent.

    DeepSpeed's runner starts a launcher that outlives it. A command on another node cannot be
    watched from here; when its ranks end there, the collectives of this rank fail.
    """
    if command["where"] != _where():
        return

    def wait() -> None:
        try:
            descriptor = os.pidfd_open(command["pid"])
        except ProcessLookupError:
            pass
        else:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.poll()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="command", daemon=True).start()


def _where() -> list[Any]:
    """The host and its pid namespace, in which a pid is valid."""
    return [socket.gethostname(), os.stat("/proc/self/ns/pid").st_ino]


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def num_gpus() -> int:
    """Number of GPUs that a rank would see: `nvidia-smi -L`, limited by CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return 0
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    present = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    return min(present, len(visible.split(","))) if visible else present


def num_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def cpp_compiler() -> str | None:
    """Path of the C++ compiler that torch's extension builder would call."""
    return shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
