"""What verifiers and the sandbox share: a server process below this one, and threads to ask it."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self, TypeVar

_PROJECT = Path(__file__).resolve().parents[2]
Request = TypeVar("Request")
Answer = TypeVar("Answer")


class ServerProcess:
    """An interpreter that runs `main` of a module, connected to `control` by its standard input.

    It sees no variable of this process's environment except those in `env`, so no token.
    """

    def __init__(
        self, python: list[str], module: str, env: dict[str, str], start_seconds: float
    ) -> None:
        start = (
            f"import sys; sys.path.insert(0, {str(_PROJECT)!r})\n"
            f"from {module} import main\ndel sys.path[0]\nmain()"
        )
        self._command = [*python, "-P", "-c", start]
        self._env = env | {"PYTHONHASHSEED": "0"}
        self._start_seconds = start_seconds
        self.start()

    def start(self) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(self._start_seconds)
        with theirs:
            self.process = subprocess.Popen(
                self._command, env=self._env, cwd="/", stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self.process.pid

    def close(self) -> None:
        """End the server, and with it all its descendants."""
        self.control.close()
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def answer(conversation: socket.socket, request: bytes) -> bytes:
    """Send a request and return the answer, a line; without its newline if the other side ended."""
    conversation.sendall(request)
    said = b""
    while not said.endswith(b"\n") and (more := conversation.recv(2**16)):
        said += more
    return said


def in_threads(
    judge: Callable[[Request], Answer],
    requests: Iterable[Request],
    num_threads: int,
    on_verdict: Callable[[], None],
) -> list[Answer]:
    """Judge requests in parallel; the verdicts are in the order of the requests."""
    verdicts = []
    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        for verdict in pool.map(judge, requests):
            verdicts.append(verdict)
            on_verdict()
    return verdicts
