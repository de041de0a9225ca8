"""Start the ranks of a stage and wait for them: the boundary between launcher and workers.

`pipelines.plan.placement` makes the command line. On CPU, a fork server that has imported all
libraries forks the ranks of every stage of a plan.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TypeAlias

from pipelines.errors import Interrupted
from pipelines.launch.stop import ReceivedSignals, Stop, interruption
from pipelines.launch.watch import Watch
from pipelines.machine.process import FORK_ENVIRONMENT, die_with_parent, free_port
from pipelines.machine.signals import block_signals
from pipelines.plan import placement
from pipelines.recipe.schema import LaunchConfig
from pipelines.run_dir.paths import StageDir
from pipelines.run_dir.shared_memory import none_left

POLL_SECONDS = 0.2
# Between SIGTERM and SIGKILL. A kill loses nothing: a checkpoint counts only with its marker.
GRACE_SECONDS = 5.0
Env: TypeAlias = dict[str, str]
Descriptors: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Ended:
    """How the ranks of a stage ended, the ranks that hung and their peak memory (as text)."""

    returncode: int
    interrupted: Interrupted | None
    hang: str
    memory: str


def run_stage(
    launch: LaunchConfig, stage_dir: StageDir, received: ReceivedSignals, *, offline: bool,
    inherited: Descriptors, fork: Fork | None, on_tick: Callable[[], None],
) -> Ended:  # fmt: skip
    """Run the ranks of a stage to their end; their output goes to the stage's log.

    Args:
        received: signals of the command; on one, the ranks are asked to save and stop.
        inherited: file descriptors that the launcher keeps open (the run's lock).
        fork: forks the ranks; without it a new interpreter is started for each.
        on_tick: called a few times a second while the stage runs.
    """
    port = placement.master_port(launch)
    env = placement.environment(launch, port, offline)
    stage_dir.clear_traces()
    watch = Watch(stage_dir, placement.num_ranks(launch), launch)
    stop = Stop(launch, stage_dir, received, watch)
    hang, overdue = "", False
    with none_left(stage_dir, port):
        ranks = placement.rank_environments(launch, port)
        process: Launched | None = fork(stage_dir, env, ranks) if fork else None
        if process is None:
            token = placement.write_launch_spec(launch, stage_dir, port, env)
            command = placement.command_line(launch, stage_dir, port, token)
            process = spawn(command, stage_dir.log, env, inherited)
        try:
            while process.poll() is None and not hang and not overdue:
                on_tick()
                watch.look()
                hang = watch.hang()
                overdue = stop.is_overdue()
                time.sleep(POLL_SECONDS)
        finally:
            end_group(process)
    returncode = process.poll()
    assert returncode is not None
    interrupted = None
    if not hang and not stage_dir.is_complete():
        interrupted = interruption(stage_dir, received, returncode, escalated=overdue)
    return Ended(returncode, interrupted, hang, watch.memory())


def spawn(
    command: list[str], log_path: Path, env: Env, inherited: Descriptors
) -> subprocess.Popen[bytes]:
    """Start the first process of a stage in a new process group; its output goes to a log."""
    with open(log_path, "ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=env,
            start_new_session=True, pass_fds=inherited, preexec_fn=partial(_guard, os.getpid()),
        )  # fmt: skip


def _guard(parent: int) -> None:
    """In a child before exec: die with the parent and block our signals.

    DeepSpeed's launcher would kill its ranks on a signal. Ranks unblock the signals themselves.
    """
    die_with_parent(parent)
    block_signals()


def fork_request(stage_dir: StageDir, env: Env, ranks: list[Env]) -> bytes:
    """The line that asks a fork server for the ranks of a stage; see `ForkServer.start`."""
    request = {
        "stage_dir": str(stage_dir.root),
        "log": str(stage_dir.log),
        "cwd": os.getcwd(),
        "environments": [env | rank for rank in ranks],
    }
    return json.dumps(request).encode() + b"\n"


class ForkServer:
    """A process that has imported everything and forks ranks: `pipelines.worker.fork_server`."""

    def __init__(
        self, launch: LaunchConfig, modules: Iterable[str], offline: bool, inherited: Descriptors
    ) -> None:
        self.launch = launch
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        # A new session keeps a Ctrl-C in the terminal from reaching it.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.worker.fork_server", *modules],
            # A buffer would hide answers from select().
            bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
            env=placement.environment(launch, free_port(), offline) | FORK_ENVIRONMENT,
            start_new_session=True, pass_fds=inherited, preexec_fn=partial(_guard, os.getpid()),
        )  # fmt: skip

    def start(self, stage_dir: StageDir, env: Env, ranks: list[Env]) -> ForkedRanks | None:
        """Fork the ranks of a stage; the first call waits for the imports.

        `env` is the environment of all ranks, `ranks` has the additional variables of each.

        Returns:
            None if the server has ended, for example because an import started a thread. The reason
            is in the stage's log, and the stage must be started directly.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        answer = b""
        with suppress(BrokenPipeError):
            self.process.stdin.write(fork_request(stage_dir, env, ranks))
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        if not answer:
            self.process.wait()
            self.errors.seek(0)
            with open(stage_dir.log, "ab") as log:
                log.write(self.errors.read() + b"cannot fork this stage; starting it directly\n")
            return None
        return ForkedRanks(json.loads(answer)["pid"], self.process.stdout)

    def close(self) -> None:
        """Kill the server; ranks that still run die with it."""
        self.process.kill()
        self.process.wait()
        self.errors.close()


class ForkedRanks:
    """Forked ranks of a stage; `pid` is the first one, which leads their process group.

    The fork server reports their exit code on `answers`, which is unbuffered.
    """

    def __init__(self, pid: int, answers: IO[bytes]) -> None:
        self.pid = pid
        self.answers = answers
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Exit code of the first failure, once all have ended; negative for a signal."""
        if self.returncode is None and select.select([self.answers], [], [], 0)[0]:
            answer = self.answers.readline()
            self.returncode = json.loads(answer)["returncode"] if answer else -signal.SIGKILL
        return self.returncode


# The first process of a stage, which leads its process group.
Launched: TypeAlias = subprocess.Popen[bytes] | ForkedRanks
# Forks ranks, see `ForkServer.start`; returns None if the stage must be started directly.
Fork: TypeAlias = Callable[[StageDir, Env, list[Env]], ForkedRanks | None]


def end_group(process: Launched) -> None:
    """End all processes left in the group of a stage, so that no rank outlives it."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + GRACE_SECONDS
        if _lives(process):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signum)
        while _lives(process) and time.monotonic() < deadline:
            time.sleep(0.05)


def _lives(process: Launched) -> bool:
    """Whether the process, or another one of its group, still runs."""
    if process.poll() is None:
        return True
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True
