"""Start the ranks of a stage and wait for them: the boundary between launcher and workers.

Several machines go through DeepSpeed's runner and a hostfile, several ranks of one machine through
its per-node launcher. One rank is started directly, with that launcher's environment (5 s less). On
CPU, the ranks of a plan's stages are forked from a process that has imported everything.
"""

from __future__ import annotations

import base64
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipelines.errors import Interrupted, UserError
from pipelines.heartbeat import Watch
from pipelines.process import die_with_parent, free_port, num_cores, num_gpus
from pipelines.run_dir import StageDir
from pipelines.schema import LaunchConfig
from pipelines.stop import Noted, Stop, block_signals, interruption

POLL_SECONDS = 0.2
# Of a rank that is ended: it holds nothing that a kill would lose, since a checkpoint counts only
# with its marker.
GRACE_SECONDS = 5.0


def hosts(hostfile: str) -> dict[str, int]:
    """Ranks by host of a DeepSpeed hostfile (`name slots=N` a line).

    Raises:
        UserError: no such file, or a line of another form.
    """
    path = Path(hostfile)
    if not path.is_file():
        raise UserError(f"--hostfile {hostfile}: no such file.")
    found: dict[str, int] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = re.fullmatch(r"\s*(\S+)\s+slots=(\d+)\s*", line)
        if not match:
            raise UserError(f"--hostfile {hostfile}, line {number}: write it as 'name slots=N'.")
        found[match[1]] = int(match[2])
    if not found:
        raise UserError(f"--hostfile {hostfile}: it names no host.")
    return found


def num_ranks(launch: LaunchConfig) -> int:
    """Ranks of a stage, over all machines."""
    return sum(hosts(launch.hostfile).values()) if launch.hostfile else launch.gpus


def command_line(launch: LaunchConfig, stage_dir: StageDir, port: int) -> list[str]:
    """The command that runs a stage's ranks."""
    worker = ["pipelines.worker", str(stage_dir.root)]
    if launch.hostfile:
        runner = [sys.executable, "-m", "deepspeed.launcher.runner"]
        options = [f"--hostfile={launch.hostfile}", f"--master_port={port}", "--no_local_rank"]
        # Later options win, so that a port given for all hosts replaces the free one of this host.
        return [*runner, *options, *launch.runner_args, "--module", *worker]
    if launch.gpus == 1:
        return [sys.executable, "-m", *worker]
    world = base64.urlsafe_b64encode(
        json.dumps({"localhost": list(range(launch.gpus))}).encode()
    ).decode()
    options = [
        f"--world_info={world}",
        "--master_addr=127.0.0.1",
        f"--master_port={port}",
        "--no_local_rank",
    ]
    return [sys.executable, "-m", "deepspeed.launcher.launch", *options, "--module", *worker]


CPU_ENVIRONMENT = {
    # Spinning threads on a shared machine cost 4 to 10 times.
    "OMP_WAIT_POLICY": "PASSIVE",
    # glibc gives large blocks back at once and takes them anew, a page fault for every 4 KB: a
    # tenth of a step beside a reference. 32 MB is the most that every glibc allows.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}


def environment(launch: LaunchConfig, port: int, offline: bool) -> dict[str, str]:
    """The environment of a stage's ranks.

    On CPU, threads are the cores over the ranks, and what is freed stays with the process.
    """
    env = dict(os.environ)
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}"
    if not num_gpus():
        env["DS_ACCELERATOR"] = "cpu"
        here = max(hosts(launch.hostfile).values()) if launch.hostfile else launch.gpus
        env.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // here)))
        for name, value in CPU_ENVIRONMENT.items():
            env.setdefault(name, value)
    env.setdefault("TOKENIZERS_PARALLELISM", "false")
    if os.access(sys.prefix, os.W_OK):
        # Two environments that share torch's default folder build DeepSpeed's op over and over.
        env.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    env["PYTHONUNBUFFERED"] = "1"
    if offline:
        env |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    if launch.gpus == 1 and not launch.hostfile:
        env |= rank_environments(launch, port)[0]
    return env | launch.env


def rank_environments(launch: LaunchConfig, port: int) -> list[dict[str, str]]:
    """What DeepSpeed's per-node launcher tells each rank of this machine."""
    return [
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(launch.gpus),
            "LOCAL_SIZE": str(launch.gpus),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        for rank in range(launch.gpus)
    ]


@dataclass(frozen=True)
class Ended:
    """How the ranks of a stage ended.

    Attributes:
        returncode: negative for a signal.
        interrupted: how they were interrupted; None where they ended by themselves.
        hang: which ranks hung, in words; empty where none did.
        memory: peak memory of the ranks, in words.
    """

    returncode: int
    interrupted: Interrupted | None
    hang: str
    memory: str


def run_stage(
    launch: LaunchConfig,
    stage_dir: StageDir,
    noted: Noted,
    *,
    offline: bool,
    inherited: tuple[int, ...] = (),
    nursery: Nursery | None = None,
    on_tick: Callable[[], None] = lambda: None,
) -> Ended:
    """Run the ranks of a stage to their end; their output goes to the stage's log.

    Args:
        noted: the signals of the command; the ranks are asked to save and stop.
        inherited: descriptors that the launcher keeps open (the run's lock).
        nursery: fork the worker there instead of starting an interpreter.
        on_tick: called a few times a second while the stage runs.
    """
    port = free_port()
    env = environment(launch, port, offline)
    stage_dir.clear_traces()
    watch = Watch(stage_dir, num_ranks(launch), launch.hang_seconds)
    stop = Stop(launch, stage_dir, noted, watch)
    process: Launched | None = None
    hang, overdue = "", False
    if nursery is not None:
        process = nursery.start(stage_dir, env, rank_environments(launch, port))
    if process is None:
        process = _spawn(command_line(launch, stage_dir, port), stage_dir, env, inherited)
    try:
        while process.poll() is None and not hang and not overdue:
            on_tick()
            watch.look()
            hang = watch.hang()
            overdue = stop.is_overdue()
            time.sleep(POLL_SECONDS)
    finally:
        _end_group(process)
    returncode = process.poll()
    assert returncode is not None
    interrupted = None
    if not hang and not stage_dir.is_complete():
        interrupted = interruption(stage_dir, noted, returncode, escalated=overdue)
    return Ended(returncode, interrupted, hang, watch.memory())


class Launched(Protocol):
    """The first process of a stage, which leads a process group of its own."""

    pid: int

    def poll(self) -> int | None: ...


def _spawn(
    command: list[str], stage_dir: StageDir, env: dict[str, str], inherited: tuple[int, ...]
) -> subprocess.Popen[bytes]:
    with open(stage_dir.log, "ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
            pass_fds=inherited,
            preexec_fn=_guarded(os.getpid()),
        )


def _guarded(parent: int) -> Callable[[], None]:
    """What a child does before its program: dies with this process, and hears no signal of ours.

    DeepSpeed's launcher ends its ranks when it hears one. Ranks unblock the signals themselves.
    """

    def prepare() -> None:
        die_with_parent(parent)
        block_signals()

    return prepare


class Nursery:
    """Workers forked from one process that has imported everything (see `pipelines.nursery`)."""

    def __init__(self, launch: LaunchConfig, offline: bool, inherited: tuple[int, ...]) -> None:
        from pipelines.stages import FORK_ENVIRONMENT

        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        # The group of its own keeps a Ctrl-C in the terminal from it.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.nursery"],
            # select() must see an answer that readline() has not taken.
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment(launch, free_port(), offline) | FORK_ENVIRONMENT,
            start_new_session=True,
            pass_fds=inherited,
            preexec_fn=_guarded(os.getpid()),
        )

    def start(
        self, stage_dir: StageDir, env: dict[str, str], ranks: list[dict[str, str]]
    ) -> ForkedRanks | None:
        """Fork the ranks of a stage; waits for the imports the first time.

        Args:
            env: the environment of every rank.
            ranks: what each rank has besides.

        None where the process has ended, for instance because an import started a thread; why is
        written to the stage's log, and the stage is to be started directly.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        request = {
            "stage_dir": str(stage_dir.root),
            "log": str(stage_dir.log),
            "environments": [env | rank for rank in ranks],
        }
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        if not answer:
            self.process.wait()
            self.errors.seek(0)
            with open(stage_dir.log, "ab") as log:
                log.write(self.errors.read() + b"cannot fork this stage: it is started directly\n")
            return None
        return ForkedRanks(json.loads(answer)["pid"], self.process)

    def close(self) -> None:
        """End the process; a rank that still runs dies with it."""
        self.process.kill()
        self.process.wait()
        self.errors.close()


class ForkedRanks:
    """The ranks of one stage in the nursery; `pid` is the first one, which leads their group."""

    def __init__(self, pid: int, nursery: subprocess.Popen[bytes]) -> None:
        self.pid = pid
        self.nursery = nursery
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Exit code once all have ended, the first failure's; negative for a signal."""
        assert self.nursery.stdout is not None
        if self.returncode is None and select.select([self.nursery.stdout], [], [], 0)[0]:
            answer = self.nursery.stdout.readline()
            self.returncode = json.loads(answer)["returncode"] if answer else -signal.SIGKILL
        return self.returncode


def can_fork(launch: LaunchConfig) -> bool:
    """Whether ranks may be forked: all on this machine, and no GPU (CUDA does not survive it)."""
    return not launch.hostfile and not num_gpus()


def _end_group(process: Launched) -> None:
    """No rank outlives its stage: ends what is left of the launcher's process group."""
    for signum, wait in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, GRACE_SECONDS)):
        if process.poll() is not None and not _group_lives(process.pid):
            return
        try:
            os.killpg(process.pid, signum)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline:
            if process.poll() is not None and not _group_lives(process.pid):
                return
            time.sleep(0.05)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
