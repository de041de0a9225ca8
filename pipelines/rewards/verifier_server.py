"""The process that forks verifiers: an interpreter that has imported their libraries once.

    rank --control socket--> server --fork--> worker, one for each socket that the rank sends

A worker judges one request after another. The kernel ends it where a request takes more CPU time or
memory than it may, whatever library code it is in; the rank ends it at the deadline of the wall
clock, and asks the server for another one.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import resource
import signal
import socket
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.machine.process import reap_children, start_child

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
_PARENT_POLL_SECONDS = 2.0


def main() -> None:
    """Serve the control socket, descriptor 0, until the rank closes its end or is gone."""
    control = socket.socket(fileno=0)
    control.settimeout(_PARENT_POLL_SECONDS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    rank = os.getppid()
    while os.getppid() == rank:
        reap_children()
        try:
            message, descriptors, _, _ = socket.recv_fds(control, 256, 1)
        except TimeoutError:
            continue
        if not message:
            return
        with socket.socket(fileno=descriptors[0]) as conversation:
            try:
                function = load(message.decode())
            except Exception as error:  # a library that is missing or broken: the rank reports it
                control.send(f"{type(error).__name__}: {error}"[:200].encode())
                continue
            gc.freeze()
            worker = os.pidfd_open(start_child(partial(_work, control, conversation, function)))
            socket.send_fds(control, [b"forked"], [worker])
            os.close(worker)


def load(kind: str) -> Callable[..., Any]:
    """The function that judges requests of a kind."""
    module, name = KINDS[kind]
    if module.startswith("lm_eval."):
        _bypass_init()
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def _bypass_init() -> None:
    """Let modules of the harness be imported without its `__init__`, which would import torch."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("no package lm_eval")
    folder = spec.submodule_search_locations[0]
    for name, path in (("lm_eval", folder), ("lm_eval.tasks", f"{folder}/tasks")):
        module = sys.modules.setdefault(name, types.ModuleType(name))
        module.__path__ = [path]
    sys.modules["lm_eval"].__spec__ = spec


def _work(
    control: socket.socket, conversation: socket.socket, function: Callable[..., Any]
) -> None:
    """In the forked child: judge requests until the rank hangs up."""
    control.close()
    _confine()
    with conversation.makefile("rb") as requests:
        for line in requests:
            conversation.sendall(json.dumps(_judge(function, line)).encode() + b"\n")


def _confine() -> None:
    """Limits that hold for the worker's whole life."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    # It may read files (NLTK's data) and write none; it starts no process.
    most = {
        resource.RLIMIT_AS: pages * resource.getpagesize() + MEMORY_BYTES,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in most.items():
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
