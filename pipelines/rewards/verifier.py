"""Verifiers in killable children: a request that does not end costs its own sample, not the run.

One server a process, started with the first request (`verifier_server`), and up to one worker for
each core of this rank. The calling process is only ever waiting in `poll`.

A pool of a library does less. The workers of pebble share one pipe and its lock, so that the kill
of an idle worker breaks the pool; they inherit the rank's environment, with its tokens, and import
the rank's main module, with torch.
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
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipelines.machine.process import num_cores
from pipelines.rewards.verifier_server import CPU_SECONDS, MAX_REQUEST_BYTES
from pipelines.run_dir import heartbeat

logger = logging.getLogger(__name__)

WALL_SECONDS = 10.0
_START_SECONDS = 120
_PROJECT = Path(__file__).resolve().parents[2]
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
    heard: bytes = b""

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.process, signal.SIGKILL)
        os.close(self.process)
        self.conversation.close()


class Verifier:
    """A server and its workers.

    Args:
        workers: requests judged at a time.
        wall_seconds: after which a request is given up, and its worker killed.
    """

    def __init__(self, workers: int = 1, wall_seconds: float = WALL_SECONDS) -> None:
        self.num_workers = max(1, workers)
        self.wall_seconds = wall_seconds
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()
        self._has_forked = False
        self._start()

    def _start(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(_START_SECONDS)
        start = (
            f"import sys; sys.path.insert(0, {str(_PROJECT)!r})\n"
            "from pipelines.rewards.verifier_server import main\nmain()"
        )
        # No tokens and no GPU: what judges a model's text needs neither.
        env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        env |= {"PYTHONHASHSEED": "0", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-P", "-c", start], env=env, cwd="/", stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._server.pid

    def judge(self, kind: str, requests: Sequence[Sequence[Any]]) -> list[Verdict]:
        """The verdict on each request, in their order.

        Args:
            kind: of `verifier_server.KINDS`.
            requests: the arguments of its function, as JSON can hold them.

        Raises:
            RuntimeError: the verifier cannot be started; a request cannot bring that about.
        """
        with self._lock:
            try:
                return self._judge(kind, requests)
            except BaseException:
                # Half a conversation would answer the next request.
                self.close()
                self._start()
                raise

    def _judge(self, kind: str, requests: Sequence[Sequence[Any]]) -> list[Verdict]:
        verdicts = [Verdict(error="not judged")] * len(requests)
        frames = [json.dumps(list(request)).encode() + b"\n" for request in requests]
        for at, frame in enumerate(frames):
            if len(frame) > MAX_REQUEST_BYTES:
                verdicts[at] = Verdict(error=f"{len(frame)} bytes to judge, too many")
        left = deque(at for at, frame in enumerate(frames) if len(frame) <= MAX_REQUEST_BYTES)
        lost: set[int] = set()
        busy: dict[int, tuple[_Worker, int, float]] = {}
        poll = select.poll()
        while left or busy:
            while left and len(busy) < self.num_workers:
                at = left.popleft()
                worker = self._asked(kind, frames[at], again=at in lost)
                if worker is None:
                    self._lose(at, lost, left, verdicts)
                    continue
                descriptor = worker.conversation.fileno()
                busy[descriptor] = (worker, at, time.monotonic() + self.wall_seconds)
                poll.register(descriptor, select.POLLIN)
            for descriptor, (at, verdict) in self._answers(poll, busy).items():
                del busy[descriptor]
                poll.unregister(descriptor)
                if verdict is None:
                    self._lose(at, lost, left, verdicts)
                    continue
                verdicts[at] = verdict
                heartbeat.tick()
        return verdicts

    def _lose(self, at: int, lost: set[int], left: deque[int], verdicts: list[Verdict]) -> None:
        """Repeat a request that lost its worker to another one; the second time, no verdict."""
        if at in lost:
            verdicts[at] = Verdict(error="the verifier was gone twice")
            heartbeat.tick()
        else:
            lost.add(at)
            left.appendleft(at)

    def _answers(
        self, poll: select.poll, busy: dict[int, tuple[_Worker, int, float]]
    ) -> dict[int, tuple[int, Verdict | None]]:
        """Wait until a request has an answer or is given up; those that are done, by descriptor.

        No verdict: the worker is gone, and it was not the request that ended it.
        """
        if not busy:
            return {}
        patience = min(deadline for _, _, deadline in busy.values()) - time.monotonic()
        ready = {descriptor for descriptor, _ in poll.poll(max(0.0, patience) * 1000 + 1)}
        done: dict[int, tuple[int, Verdict | None]] = {}
        for descriptor, (worker, at, deadline) in busy.items():
            if descriptor in ready:
                try:
                    verdict = self._hear(worker)
                except ConnectionError:
                    worker.end()
                    done[descriptor] = (at, None)
                else:
                    if verdict is not None:
                        done[descriptor] = (at, verdict)
            elif time.monotonic() >= deadline:
                worker.end()
                error = f"no verdict in {self.wall_seconds:g} s"
                done[descriptor] = (at, Verdict(error=error))
        return done

    def _hear(self, worker: _Worker) -> Verdict | None:
        """The verdict of a worker that said something; None while its line is incomplete.

        Raises:
            ConnectionError: it ended before it read the request, or with its server.
        """
        said = worker.conversation.recv(2**16)
        if not said:
            if worker.server != self.pid or self._server_is_gone():
                raise ConnectionResetError("the server ended")
            worker.end()
            return Verdict(error=f"the verifier ended: over {CPU_SECONDS:g} CPU-s or its memory")
        worker.heard += said
        if not worker.heard.endswith(b"\n"):
            return None
        verdict = Verdict(**json.loads(worker.heard))
        worker.heard = b""
        self._idle.append(worker)
        return verdict

    def _server_is_gone(self) -> bool:
        # The kernel closes its socket before it ends its workers.
        waiting = select.poll()
        waiting.register(self._control, 0)
        return bool(waiting.poll(0))

    def _asked(self, kind: str, frame: bytes, *, again: bool) -> _Worker | None:
        """A worker that has the request; a new one where it comes again. None: it is gone."""
        try:
            worker = None if again else self._take_idle(kind)
            worker = worker or self._new_worker(kind)
        except ConnectionError:
            return None
        try:
            worker.conversation.sendall(frame)
        except ConnectionError:
            worker.end()
            return None
        return worker

    def _take_idle(self, kind: str) -> _Worker | None:
        for worker in self._idle:
            if worker.kind == kind:
                self._idle.remove(worker)
                return worker
        return None

    def _new_worker(self, kind: str) -> _Worker:
        """A worker just forked; a server that has ended is started again, once.

        Raises:
            ConnectionError: the server ended again.
            RuntimeError: there is no such verifier on this machine.
        """
        try:
            return self._fork(kind)
        except ConnectionError as error:
            if not self._has_forked:
                raise RuntimeError(
                    f"verifier {kind} cannot be started: its server ended"
                ) from error
        logger.warning("the server of the verifiers has ended: it is started again")
        self.close()
        self._start()
        return self._fork(kind)

    def _fork(self, kind: str) -> _Worker:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(self._control, [kind.encode()], [theirs.fileno()])
            said, descriptors, _, _ = socket.recv_fds(self._control, 256, 1)
            if not said:
                raise ConnectionResetError("the server ended")
            if not descriptors:
                raise RuntimeError(f"verifier {kind} cannot be started: {said.decode()}")
        except BaseException as error:
            ours.close()
            if isinstance(error, TimeoutError):
                raise RuntimeError(f"verifier {kind}: no worker in {_START_SECONDS} s") from error
            raise
        self._has_forked = True
        return _Worker(kind, ours, descriptors[0], self.pid)

    def close(self) -> None:
        """End the server, and with it all workers."""
        for worker in self._idle:
            worker.end()
        self._idle = []
        self._control.close()
        self._server.kill()
        self._server.wait()


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
    made = Verifier(num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    atexit.register(made.close)
    return made


_num_failures: dict[str, int] = {}


def count_failure(kind: str, error: str) -> None:
    """Log the 1st, 2nd, 4th, 8th ... failure of a kind."""
    number = _num_failures[kind] = _num_failures.get(kind, 0) + 1
    if number & (number - 1) == 0:
        logger.warning(
            "verifier %s failed on %d samples so far, judged as wrong; the last: %s",
            kind, number, error,
        )  # fmt: skip
