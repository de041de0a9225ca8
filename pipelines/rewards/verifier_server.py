"""The process that forks verifiers: an interpreter that has imported their libraries once.

    rank --control socket--> server --fork--> worker, one for each socket that the rank sends

A worker judges one request after another. The kernel ends it where a request takes more CPU time or
memory than it may, whatever library code it is in; the rank ends it at the deadline of the wall
clock, and asks the server for another one.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import json
import os
import resource
import select
import signal
import socket
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.machine.process import die_with_parent

# Kind -> module and function. The library of a kind is imported in the server, before its first
# worker is forked, so that a worker that was ended is replaced in milliseconds.
KINDS = {
    "math": ("pipelines.rewards.equality", "equal"),
    "ifeval": ("lm_eval.tasks.ifeval.utils", "process_results"),
    "minerva": ("lm_eval.tasks.minerva_math.utils", "process_results"),
}
CPU_SECONDS = 2.0
MEMORY_BYTES = 2**30  # beyond what the libraries have mapped
MAX_REQUEST_BYTES = 2**20
_PARENT_POLL_MS = 2000


def main() -> None:
    """Serve the control socket, descriptor 0, until the rank closes its end or is gone."""
    control = socket.socket(fileno=0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    rank = os.getppid()
    waiting = select.poll()
    waiting.register(control, select.POLLIN)
    while os.getppid() == rank:
        _reap()
        if not waiting.poll(_PARENT_POLL_MS):
            continue
        message, descriptors, _, _ = socket.recv_fds(control, 256, 1)
        if not message:
            return
        (conversation,) = descriptors
        try:
            function = load(message.decode())
        except Exception as error:  # a library that is missing or broken, which the rank reports
            control.send(f"{type(error).__name__}: {error}"[:200].encode())
            os.close(conversation)
            continue
        gc.freeze()
        server = os.getpid()
        child = os.fork()
        if child == 0:
            _work(server, control, conversation, function)
        socket.send_fds(control, [b"forked"], [descriptor := os.pidfd_open(child)])
        os.close(descriptor)
        os.close(conversation)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def load(kind: str) -> Callable[..., Any]:
    """The function that judges requests of a kind."""
    module, name = KINDS[kind]
    if module.startswith("lm_eval."):
        _find_without_importing("lm_eval", "lm_eval.tasks")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def _find_without_importing(package: str, below: str) -> None:
    """Let modules of a package be imported without its `__init__`, which would bring torch."""
    for name in (package, below):
        if name in sys.modules:
            continue
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(f"no package {package}")
        folder = Path(spec.submodule_search_locations[0], *name.split(".")[1:])
        module = types.ModuleType(name)
        module.__path__ = [str(folder)]
        module.__spec__ = spec if name == package else None
        sys.modules[name] = module


def _work(
    server: int, control: socket.socket, conversation: int, function: Callable[..., Any]
) -> None:
    """In the forked child: judge requests until the rank hangs up; never returns."""
    code = 1
    try:
        die_with_parent(server)
        control.close()
        _confine()
        with (
            os.fdopen(os.dup(conversation), "rb") as requests,
            os.fdopen(conversation, "wb", buffering=0) as answers,
        ):
            for line in requests:
                answers.write(json.dumps(_judge(function, line)).encode() + b"\n")
        code = 0
    finally:
        os._exit(code)


def _confine() -> None:
    """Limits that hold for the worker's whole life."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY_BYTES
    # It may read files (NLTK's data) and write none; it starts no process.
    for limit, value in (
        (resource.RLIMIT_AS, most),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    # The default action ends the process, also inside a library's C code.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    Path("/proc/self/oom_score_adj").write_text("1000")


def _judge(function: Callable[..., Any], line: bytes) -> dict[str, Any]:
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        return {"value": function(*json.loads(line))}
    except Exception as error:  # odd input costs its own sample; the rank counts and logs it
        return {"error": f"{type(error).__name__}: {error}"[:200]}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    main()
