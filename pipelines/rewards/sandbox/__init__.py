"""The sandbox (docs/guides/evaluation.md): generated programs run here and nowhere else."""

from __future__ import annotations

import json
import queue
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from pipelines.errors import UserError
from pipelines.machine.process import num_cores
from pipelines.rewards.sandbox import wire

Status = Literal["passed", "failed", "timeout", "memory", "crashed"]

_PROJECT = Path(__file__).resolve().parents[3]
_START_SECONDS = 30
# Extra time after the deadline that the sandbox itself enforces.
_GRACE_SECONDS = 30
_MAX_VERDICT_BYTES = 2**16
CANARY_CHILDREN = 50
# The canary is harmless: its children only wait, and end with the program.
CANARY = f"""
import os, time

def children():
    started = 0
    for _ in range({CANARY_CHILDREN}):
        try:
            pid = os.fork()
        except OSError:
            break
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        started += 1
    return started
"""


@dataclass(frozen=True)
class Limits:
    """Resource limits of one program.

    Attributes:
        wall_seconds: time until all its processes are killed, including the tests.
        cpu_seconds, memory_bytes: CPU time and address space of each process.
        processes: number of processes and threads at a time.
        file_bytes: size of one file, and of all files together.
        open_files: number of open descriptors of each process.
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


class Sandbox:
    """A server process that checks programs one after another, each in a separate jail.

    Raises:
        UserError: this kernel or its configuration does not allow the sandbox.
    """

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # The system's Python, or the one that the virtual environment is based on.
        python = getattr(sys, "_base_executable", None) or sys.executable
        start = (
            f"import sys; sys.path.append({str(_PROJECT)!r})\n"
            "from pipelines.rewards.sandbox.server import main\n"
            "sys.path.pop()\nmain()"
        )
        with theirs:
            self._server = subprocess.Popen(
                [python, "-s", "-S", "-P", "-c", start],
                env={"PYTHONHASHSEED": "0"}, cwd="/", stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        self._control.settimeout(_START_SECONDS)
        try:
            said = self._control.recv(4096).decode() or f"{python} ended"
        except TimeoutError:
            said = f"{python} did not answer within {_START_SECONDS} s"
        if said != "ready":
            self.close()
            raise UserError(f"generated programs cannot be run here: {said}")

    @property
    def pid(self) -> int:
        """The server's pid, which stays the same whatever programs do."""
        return self._server.pid

    def check(self, program: str, tests: str, limits: Limits | None = None) -> Outcome:
        """Run the tests on what the program defines; together they are 16 MiB at most.

        Raises:
            RuntimeError: the sandbox itself failed twice; a program cannot cause this.
        """
        wanted = limits or Limits()
        try:
            request = wire.frame([program, tests])
        except wire.WireError as error:
            return Outcome("failed", f"program and tests: {error}")
        verdict: dict[str, Any] = {}
        for _ in range(2):
            try:
                verdict = self._verdict(request, wanted)
            except (TimeoutError, ConnectionError) as error:
                verdict = {"status": "broken", "reason": str(error)}
            if verdict["status"] != "broken":
                return Outcome(**verdict)
            self.close()
            self._start()
        raise RuntimeError(f"the sandbox failed: {verdict['reason']}")

    def _verdict(self, request: bytes, limits: Limits) -> dict[str, Any]:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                message = json.dumps(asdict(limits)).encode()
                socket.send_fds(self._control, [message], [theirs.fileno()])
            ours.settimeout(limits.wall_seconds + _GRACE_SECONDS)
            ours.sendall(request)
            said = b""
            while b"\n" not in said and (more := ours.recv(_MAX_VERDICT_BYTES)):
                said += more
        line, ended, _ = said.partition(b"\n")
        if not ended:
            raise ConnectionError("no verdict")
        verdict: dict[str, Any] = json.loads(line)
        return verdict

    def close(self) -> None:
        """End the server, and with it everything in the sandbox."""
        self._control.close()
        self._server.kill()
        self._server.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def check_all(
    programs: Iterable[tuple[str, str]],
    limits: Limits | None = None,
    workers: int = 0,
    on_verdict: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """Check each (program, tests), and return the outcomes in order.

    Args:
        workers: number of programs that run at a time; 0 means one per core.
        on_verdict: called after each outcome, in order.

    Raises:
        UserError: this kernel or its configuration does not allow the sandbox.
    """
    require()
    given = list(programs)
    count = min(workers or num_cores(), len(given))
    idle: queue.SimpleQueue[Sandbox] = queue.SimpleQueue()

    def checked(pair: tuple[str, str]) -> Outcome:
        sandbox = idle.get()
        try:
            return sandbox.check(*pair, limits)
        finally:
            idle.put(sandbox)

    with ExitStack() as stack:
        for _ in range(count):
            idle.put(stack.enter_context(Sandbox()))
        pool = stack.enter_context(ThreadPoolExecutor(max(count, 1)))
        outcomes = []
        for outcome in pool.map(checked, given):
            outcomes.append(outcome)
            on_verdict()
        return outcomes


def require() -> None:
    """Raise a UserError if generated programs cannot run on this machine."""
    reason = unavailable()
    if reason:
        raise UserError(reason)


@lru_cache(maxsize=1)
def unavailable() -> str:
    """Why generated programs cannot run here; empty if they can.

    It tests a right program, a wrong program, and a program that tries to start more child
    processes than its limit allows.
    """
    try:
        with Sandbox() as sandbox:
            right = sandbox.check("def f(): return 1", "assert f() == 1")
            wrong = sandbox.check("def f(): return 2", "assert f() == 1")
            canary = sandbox.check(CANARY, f"assert children() < {CANARY_CHILDREN}")
    except (UserError, RuntimeError) as error:
        return str(error)
    if not right.passed or wrong.passed:
        return f"generated programs cannot be run here: {right.reason or 'a wrong program passed'}"
    if not canary.passed:
        return (
            f"generated programs cannot be run here: {CANARY_CHILDREN} children started under a "
            f"limit of {Limits.processes} ({canary.reason})"
        )
    return ""
