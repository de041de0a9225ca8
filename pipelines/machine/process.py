"""Processes that do not outlive their parent, and facts about this machine without torch."""

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

# For a process that forks workers: keeps libraries from starting threads, which a fork would lose.
FORK_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent dies, whatever the parent died of.

    A parent that has died before is noticed too: then this process dies at once.

    Args:
        parent: the parent's pid, where it was known before the fork.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # After the call: a parent that dies from here on takes this process with it.
    if is_orphan() if parent is None else os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def is_orphan() -> bool:
    """Whether another process has inherited this one, as far as sessions tell.

    A launcher leads a session of its own or is in that of what leads it, and its ranks are in the
    same one; what inherits them (init, a subreaper) is above that session. A process that leads a
    session itself cannot know.
    """
    session = os.getsid(0)
    if session == os.getpid():
        return False
    try:
        return os.getsid(os.getppid()) != session
    except ProcessLookupError:
        # It died between the two calls.
        return True
    except PermissionError:
        return False


def this_process() -> dict[str, Any]:
    """What `die_with_command` needs of a command, for ranks that are no children of it."""
    return {"pid": os.getpid(), "where": _where()}


def die_with_command(command: dict[str, Any]) -> None:
    """End this process when a command on the same machine has ended, whatever lies between them.

    DeepSpeed's runner starts a launcher that outlives it. A command on another machine cannot be
    seen from here: its ranks there end this one's collectives.
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
    """The machine, and what of it has the same process ids."""
    return [socket.gethostname(), os.stat("/proc/self/ns/pid").st_ino]


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def num_gpus() -> int:
    """GPUs that a rank would see: `nvidia-smi -L`, cut by CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return 0
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    present = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    return min(present, len(visible.split(","))) if visible else present


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def cpp_compiler() -> str | None:
    """The C++ compiler that torch's extension builder would call."""
    return shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
