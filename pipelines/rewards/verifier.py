"""Verifiers in killable children: a request that does not end costs its own sample, not the run.

Each process has one server, started with the first request (`verifier_server`), and up to one
worker for each core of this rank. The workers of a library's pool (pebble) would inherit the rank's
tokens and import torch, and the kill of an idle one would break the pool.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from pipelines.machine.process import rank_cores
from pipelines.rewards.server_process import ServerProcess, answer, in_threads
from pipelines.rewards.verifier_server import CPU_SECONDS, MAX_REQUEST_BYTES
from pipelines.run_dir import heartbeat

logger = logging.getLogger(__name__)

WALL_SECONDS = 10.0
_START_SECONDS = 120
_PASSED_ON = ("PATH", "HOME", "LANG", "NLTK_DATA", "VIRTUAL_ENV")


@dataclass(frozen=True)
class Verdict:
    """What a verifier answered; `error` says why there is no value."""

    value: Any = None
    error: str = ""


@dataclass
class _Worker:
    kind: str
    conversation: socket.socket
    process: int  # a pidfd, so that no other process can be meant
    server: int  # pid of the one that forked it

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.process, signal.SIGKILL)
        os.close(self.process)
        self.conversation.close()


class Verifier(ServerProcess):
    """A server and its workers.

    Args:
        workers: requests judged at a time.
        wall_seconds: after which a request is given up, and its worker killed.
    """

    def __init__(self, workers: int = 1, wall_seconds: float = WALL_SECONDS) -> None:
        self.num_workers = workers
        self.wall_seconds = wall_seconds
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()
        self._has_forked = False
        # No tokens and no GPU: what judges a model's text needs neither.
        env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        env |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        super().__init__([sys.executable], "pipelines.rewards.verifier_server", env, _START_SECONDS)

    def judge(self, kind: str, requests: Sequence[Sequence[Any]]) -> list[Verdict]:
        """The verdict on each request, in their order.

        Args:
            kind: of `verifier_server.KINDS`.
            requests: the arguments of its function, as JSON can hold them.

        Raises:
            RuntimeError: the verifier cannot be started; a request cannot bring that about.
        """
        judge = partial(self._judge, kind)
        return in_threads(judge, requests, self.num_workers, heartbeat.tick)

    def _judge(self, kind: str, request: Sequence[Any]) -> Verdict:
        """The verdict of a worker; of another, new one if the first was lost to something else."""
        frame = json.dumps(list(request)).encode() + b"\n"
        if len(frame) > MAX_REQUEST_BYTES:
            return Verdict(error=f"{len(frame)} bytes to judge, too many")
        for is_first in (True, False):
            with contextlib.suppress(ConnectionError):
                return self._verdict(self._worker(kind, new=not is_first), frame)
        return Verdict(error="the verifier was gone twice")

    def _verdict(self, worker: _Worker, frame: bytes) -> Verdict:
        """The verdict of a worker, which is idle afterwards or ended.

        A ConnectionError says that it ended before it read the request, or with its server.
        """
        worker.conversation.settimeout(self.wall_seconds)
        try:
            said = answer(worker.conversation, frame)
        except TimeoutError:
            worker.end()
            return Verdict(error=f"no verdict in {self.wall_seconds:g} s")
        except ConnectionError:
            worker.end()
            raise
        if said.endswith(b"\n"):
            self._idle.append(worker)
            return Verdict(**json.loads(said))
        worker.end()
        with self._lock:
            # The kernel closes the server's socket before it ends the workers.
            hang_up = select.poll()
            hang_up.register(self.control, 0)
            if worker.server != self.pid or hang_up.poll(0):
                raise ConnectionResetError("the server ended")
        return Verdict(error=f"the verifier ended: over {CPU_SECONDS:g} CPU-s or its memory")

    def _worker(self, kind: str, *, new: bool) -> _Worker:
        """An idle worker, or a new one; a server that has ended is started again, once.

        A ConnectionError says that it ended again, a RuntimeError that it cannot be started.
        """
        with self._lock:
            idle = [worker for worker in self._idle if worker.kind == kind]
            if idle and not new:
                self._idle.remove(idle[0])
                return idle[0]
            try:
                return self._fork(kind)
            except ConnectionError as error:
                problem = f"verifier {kind} cannot be started: its server ended"
                if not self._has_forked:
                    raise RuntimeError(problem) from error
            logger.warning("the server of the verifiers has ended: it is started again")
            self.close()
            self.start()
            return self._fork(kind)

    def _fork(self, kind: str) -> _Worker:
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as if_failed:
            if_failed.enter_context(ours)
            with theirs:
                socket.send_fds(self.control, [kind.encode()], [theirs.fileno()])
            try:
                said, descriptors, _, _ = socket.recv_fds(self.control, 256, 1)
            except TimeoutError as error:
                raise RuntimeError(f"verifier {kind}: no worker in {_START_SECONDS} s") from error
            if not said:
                raise ConnectionResetError("the server ended")
            if not descriptors:
                raise RuntimeError(f"verifier {kind} cannot be started: {said.decode()}")
            if_failed.pop_all()
        self._has_forked = True
        return _Worker(kind, ours, descriptors[0], self.pid)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().end()
        super().close()


def verdicts(kind: str, requests: Sequence[Sequence[Any]]) -> list[Verdict]:
    """The verdict on each request by this process's verifier; what went wrong is logged."""
    found = _verifier(os.getpid()).judge(kind, requests)
    for verdict in found:
        if verdict.error:
            count_failure(kind, verdict.error)
    return found


@lru_cache(maxsize=1)
def _verifier(pid: int) -> Verifier:
    """Of the process with that id: a forked child starts its own."""
    made = Verifier(rank_cores())
    atexit.register(made.close)
    return made


_num_failures: Counter[str] = Counter()


def count_failure(kind: str, error: str) -> None:
    """Log the 1st, 2nd, 4th, 8th ... failure of a kind."""
    _num_failures[kind] += 1
    if _num_failures[kind].bit_count() == 1:
        logger.warning(
            "verifier %s failed on %d samples so far, judged as wrong; the last: %s",
            kind, _num_failures[kind], error,
        )  # fmt: skip
