"""Processes that die with their parent, and facts about this machine, without importing torch."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

PR_SET_PDEATHSIG = 1

# Environment of a fork server: keeps libraries from starting threads, which a fork would lose.
FORK_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}


def die_with_parent(parent: int | None = None) -> None:
    """Let the kernel kill this process when its parent dies; at once if it is already dead.

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

    Launcher and ranks share a session; what inherits orphans (init, a subreaper) is outside of it.
    A process that leads a session itself cannot tell.
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


def start_child(run: Callable[[], int | None]) -> int:
    """Fork a child that dies with this process, and return its pid.

    The child exits with the code that `run` returns, or prints its exception and exits with 1. It
    never runs the exit handlers of this process.
    """
    # A parent outside the PID namespace has the pid 0 inside.
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        die_with_parent(parent if os.getppid() == parent else 0)
        code = run() or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def reap_children() -> None:
    """Release the children that have ended, without waiting for others."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


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
        with contextlib.suppress(ProcessLookupError):
            poll = select.poll()
            poll.register(os.pidfd_open(command["pid"]), select.POLLIN)
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
    hidden = visible is not None and visible.strip() in ("", "-1")
    if hidden or shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    present = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    return min(present, len(visible.split(","))) if visible else present


def num_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def rank_cores() -> int:
    """This rank's share of the cores."""
    return max(1, num_cores() // int(os.environ.get("LOCAL_SIZE", "1")))


def cpp_compiler() -> str | None:
    """Path of the C++ compiler that torch's extension builder would call."""
    return shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
