"""The sandbox (docs/guides/evaluation.md): generated programs run here and nowhere else."""

from __future__ import annotations

import json
import queue
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

from pipelines.errors import UserError
from pipelines.machine.process import rank_cores
from pipelines.rewards.sandbox import wire
from pipelines.rewards.server_process import ServerProcess, answer, in_threads

Status = Literal["passed", "failed", "timeout", "memory", "crashed"]

_START_SECONDS = 30
# Extra time after the deadline that the sandbox itself enforces.
_GRACE_SECONDS = 30
CANARY_CHILDREN = 50
# The canary is harmless: its children only wait, and end with the program.
CANARY = f"""
import os, time

def children():
    for started in range({CANARY_CHILDREN}):
        try:
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
        except OSError:
            return started
    return {CANARY_CHILDREN}
"""


@dataclass(frozen=True)
class Limits:
    """Resource limits of one program.

    Attributes:
        wall_seconds: time until all its processes are killed, including the tests.
        cpu_seconds, memory_bytes, open_files: of each process.
        processes: number of processes and threads at a time.
        file_bytes: size of one file, and of all files together.
    """

    wall_seconds: int = 20
    cpu_seconds: int = 6
    memory_bytes: int = 512 * 2**20
    processes: int = 8
    file_bytes: int = 16 * 2**20
    open_files: int = 64


@dataclass(frozen=True)
class Outcome:
    """The outcome for one program; it is `passed` only if all tests ran to the end."""

    status: Status
    reason: str = ""

    @property
    def passed(self) -> bool:
        return self.status == "passed"


class Sandbox(ServerProcess):
    """A server that checks programs one after another, each in a separate jail.

    A UserError says that this kernel or its configuration does not allow the sandbox.
    """

    def __init__(self) -> None:
        # The system's Python, or the one that the virtual environment is based on.
        self._python = getattr(sys, "_base_executable", None) or sys.executable
        command = [self._python, "-s", "-S"]
        super().__init__(command, "pipelines.rewards.sandbox.server", {}, _START_SECONDS)

    def start(self) -> None:
        super().start()
        try:
            said = self.control.recv(4096).decode() or f"{self._python} ended"
        except TimeoutError:
            said = f"{self._python} did not answer within {_START_SECONDS} s"
        if said != "ready":
            self.close()
            raise UserError(f"generated programs cannot be run here: {said}")

    def check(self, program: str, tests: str, limits: Limits | None = None) -> Outcome:
        """Run the tests on what the program defines; together they are 16 MiB at most.

        A RuntimeError says that the sandbox itself failed twice; a program cannot cause this.
        """
        try:
            request = wire.frame([program, tests])
        except wire.WireError as error:
            return Outcome("failed", f"program and tests: {error}")
        verdict: dict[str, Any] = {}
        for _ in range(2):
            try:
                verdict = self._verdict(request, limits or Limits())
            except (TimeoutError, ConnectionError) as error:
                verdict = {"status": "broken", "reason": str(error)}
            if verdict["status"] != "broken":
                return Outcome(**verdict)
            self.close()
            self.start()
        raise RuntimeError(f"the sandbox failed: {verdict['reason']}")

    def _verdict(self, request: bytes, limits: Limits) -> dict[str, Any]:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                message = json.dumps(asdict(limits)).encode()
                socket.send_fds(self.control, [message], [theirs.fileno()])
            ours.settimeout(limits.wall_seconds + _GRACE_SECONDS)
            said = answer(ours, request)
        if not said.endswith(b"\n"):
            raise ConnectionError("no verdict")
        verdict: dict[str, Any] = json.loads(said)
        return verdict


def check_all(
    programs: Sequence[tuple[str, str]],
    limits: Limits | None = None,
    workers: int = 0,
    on_verdict: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """Check each (program, tests), and return the outcomes in order; UserError without a sandbox.

    Args:
        workers: number of programs that run at a time; 0 means one per core of this rank.
        on_verdict: called after each outcome, in order.
    """
    if reason := unavailable():
        raise UserError(reason)
    idle: queue.SimpleQueue[Sandbox] = queue.SimpleQueue()

    def checked(pair: tuple[str, str]) -> Outcome:
        sandbox = idle.get()
        try:
            return sandbox.check(*pair, limits)
        finally:
            idle.put(sandbox)

    with ExitStack() as stack:
        count = min(workers or rank_cores(), len(programs))
        for _ in range(count):
            idle.put(stack.enter_context(Sandbox()))
        return in_threads(checked, programs, count, on_verdict)


@lru_cache(maxsize=1)
def unavailable() -> str:
    """Why generated programs cannot run here; empty if they can.

    It tests a right program, a wrong one, and one that tries to start too many child processes.
    """
    try:
        with Sandbox() as sandbox:
            right = sandbox.check("def f(): return 1", "assert f() == 1")
            wrong = sandbox.check("def f(): return 2", "assert f() == 1")
            canary = sandbox.check(CANARY, f"assert children() < {CANARY_CHILDREN}")
    except (UserError, RuntimeError) as error:
        return str(error)
    if not right.passed:
        problem = right.reason
    elif wrong.passed:
        problem = "a wrong program passed"
    elif not canary.passed:
        started = f"{CANARY_CHILDREN} children started under a limit of {Limits.processes}"
        problem = f"{started} ({canary.reason})"
    else:
        return ""
    return f"generated programs cannot be run here: {problem}"
