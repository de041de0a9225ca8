"""The sandbox's server: a jailed interpreter that forks a process for each program.

    parent --control socket--> server --fork--> keeper --fork--> checker (PID 1) --> program

Each request carries its limits and one end of a socket. Only the checker reads the program and the
tests from it, after the fork. No earlier process holds the tests, so the memory that the generated
program inherits does not contain them. This module uses only the standard library.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
from functools import partial

from pipelines.machine.process import start_child
from pipelines.rewards.sandbox import checker, jail, wire

# Modules that most programs import; preloading them saves time.
PRELOADED = (
    "array", "bisect", "cmath", "collections.abc", "copy", "dataclasses", "datetime", "decimal",
    "enum", "fractions", "functools", "hashlib", "heapq", "itertools", "math", "operator", "random",
    "re", "statistics", "string", "sys", "time", "typing",
)  # fmt: skip
# Added to the program's limit, because server, keeper and checker count as well.
_OWN_PROCESSES = 3


def main() -> None:
    """Serve requests on the socket at descriptor 0, until the parent closes its end."""
    control = socket.socket(fileno=0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for name in PRELOADED:
        __import__(name)
    try:
        jail.enclose()
    except OSError as error:
        control.send(f"{error.strerror or error}".encode())
        return
    os.environ.clear()
    gc.freeze()
    control.send(b"ready")
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 4096, 1)
        if not message:
            return
        keeper = start_child(partial(_keep, descriptors[0], json.loads(message)))
        os.close(descriptors[0])
        ended = os.pidfd_open(keeper)
        watch = select.poll()
        watch.register(ended, select.POLLIN)
        watch.register(control, 0)  # only its hang-up
        if all(descriptor != ended for descriptor, _ in watch.poll()):
            return
        os.waitpid(keeper, 0)
        os.close(ended)


def _keep(conversation: int, limits: dict[str, int]) -> None:
    """Start the checker in new namespaces, and kill all their processes at the deadline."""
    wall_seconds = limits.pop("wall_seconds")
    try:
        jail.isolate(limits["file_bytes"])
    except OSError as error:
        _tell(conversation, {"status": "broken", "reason": str(error.strerror or error)})
        return
    first = start_child(partial(_check, conversation, limits))
    ended = select.select([os.pidfd_open(first)], [], [], wall_seconds)[0]
    if not ended:
        os.kill(first, signal.SIGKILL)
        _tell(conversation, {"status": "timeout", "reason": f"{wall_seconds} s have passed"})
    _, status = os.waitpid(first, 0)
    if ended and status:
        _tell(conversation, {"status": "crashed", "reason": f"the checker ended ({status})"})


def _check(conversation: int, limits: dict[str, int]) -> None:
    processes = limits.pop("processes") + _OWN_PROCESSES
    jail.confine(**limits, processes=processes)
    child = checker.Child()
    program, tests = wire.receive(conversation)
    _tell(conversation, checker.verdict(child, program, tests))


def _tell(conversation: int, verdict: checker.Verdict) -> None:
    os.write(conversation, json.dumps(verdict).encode() + b"\n")
