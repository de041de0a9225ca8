"""The fork server: a process that imports once and forks the ranks of each stage of a plan.

Most of the start of a stage is importing torch, transformers, TRL and DeepSpeed. On one node
without GPUs, ranks are forked from this process instead. Each rank is still a separate process with
its own environment; the ranks of a stage share its log and a process group. The server reads one
JSON request per line, and answers with one line when the ranks run and one when they have ended.

Given the path of a Unix socket, it runs a stage for every command that connects
(`pipelines.launch.shared_server`), each from a separate child.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from pipelines.machine.process import (
    FORK_ENVIRONMENT,
    die_with_parent,
    reap_children,
    start_child,
)
from pipelines.machine.signals import block_signals, unblock_signals
from pipelines.recipe.load import defaults
from pipelines.run_dir.paths import StageDir
from pipelines.worker.worker import run_rank

# Imported by DeepSpeed when it makes the engine and the optimizer (with torch's compiler), and for
# the first interval of an evaluation: up to 2 s per stage.
LATE_IMPORTS = (
    "deepspeed.runtime.zero.muon.muon_optimizer", "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.ops.op_builder.all_ops", "torch.utils.cpp_extension", "scipy.stats",
)  # fmt: skip
# Variables in which a rank may differ from its shared server: they are read when a stage runs.
# Libraries read the rest of the environment when they are imported.
READ_LATE = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT",
    "PWD", "OLDPWD", "SHLVL", "_",
)  # fmt: skip
READ_LATE_PREFIXES = ("REMIT_", "SLURM_")
# Limits of a request: bytes, and file descriptors sent with it.
MOST_BYTES, MOST_DESCRIPTORS = 1 << 20, 8
# Option with the socket of a shared server; it must be the first argument.
LISTEN = "--listen="


def become_rank(request: dict[str, Any], env: dict[str, str], leader: int) -> int:
    """Run a rank of a stage in the process group of `leader`; returns its exit code."""
    os.setpgid(0, leader)
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(env)
    unblock_signals()
    try:
        return run_rank(StageDir(Path(request["stage_dir"])))
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # a full disk
                stream.flush()


def fork_ranks(request: dict[str, Any]) -> list[int]:
    """Fork a process per environment of the request; returns pids, the group leader's first."""
    sys.stdout.flush()
    ranks: list[int] = []
    for env in request["environments"]:
        leader = ranks[0] if ranks else 0
        child = start_child(partial(become_rank, request, env, leader))
        # The child does it too, but the group must exist before the next rank joins it.
        os.setpgid(child, leader)
        ranks.append(child)
    return ranks


def wait_for(ranks: list[int], connection: socket.socket | None = None) -> int:
    """Wait for all ranks; returns the exit code of the first that failed, or 0. A failure kills the
    others.

    Args:
        connection: to the command of these ranks, if it is not the parent of this process. If the
            command ends first, this process exits, which kills the ranks.
    """
    running = {os.pidfd_open(rank): rank for rank in ranks}
    failure = 0
    poll = select.poll()
    # The command sends nothing after its request, so only the end of the connection can arrive.
    for descriptor in (*running, *([connection.fileno()] if connection else [])):
        poll.register(descriptor, select.POLLIN)
    while running:
        for descriptor, _ in poll.poll():
            if descriptor not in running:
                os._exit(1)
            poll.unregister(descriptor)
            os.close(descriptor)
            code = os.waitstatus_to_exitcode(os.waitpid(running.pop(descriptor), 0)[1])
            if code and not failure:
                failure = code
                # The others would wait for it in a collective until that times out.
                if running:
                    os.killpg(ranks[0], signal.SIGKILL)
    return failure


def differing(env: dict[str, str]) -> list[str]:
    """Variables that a rank with this environment would need from its start on, and which this
    process had otherwise when it started."""
    # Not os.environ: imports set some variables.
    entries = Path("/proc/self/environ").read_bytes().rstrip(b"\0").split(b"\0")
    started_with = dict(os.fsdecode(entry).split("=", 1) for entry in entries)
    here = {name: value for name, value in started_with.items() if name not in FORK_ENVIRONMENT}
    return sorted(
        name
        for name in {name for name, _ in env.items() ^ here.items()}
        if name not in READ_LATE and not name.startswith(READ_LATE_PREFIXES)
    )


def serve_connection(connection: socket.socket) -> None:
    """Run a stage for a command that has connected, in a child of the shared server."""
    # The command's lock of its run: this process and the ranks hold it as its children would.
    sent, _, _, _ = socket.recv_fds(connection, MOST_BYTES, MOST_DESCRIPTORS)
    while not sent.endswith(b"\n"):
        if not (more := connection.recv(MOST_BYTES)):
            return
        sent += more
    request = json.loads(sent)

    def answer(**said: Any) -> None:
        connection.sendall(json.dumps(said).encode() + b"\n")

    os.setsid()
    block_signals()
    if names := sorted({name for env in request["environments"] for name in differing(env)}):
        answer(differing=names)
        return
    for name in [name for name in os.environ if name.startswith(READ_LATE_PREFIXES)]:
        del os.environ[name]
    # A rank that is started directly has the working directory of its command first in sys.path.
    os.chdir(request["cwd"])
    sys.path[0] = request["cwd"]
    ranks = fork_ranks(request)
    answer(pid=ranks[0])
    answer(returncode=wait_for(ranks, connection))


def serve_commands(path: str) -> None:
    """Serve every command that connects to a Unix socket, until this process is killed."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen()
        while True:
            connection, _ = listener.accept()
            with connection:
                start_child(partial(serve_connection, connection))
            reap_children()


def serve_launcher(requests: TextIO, answers: TextIO) -> None:
    """Serve the launcher that started this process, until it closes `requests`."""
    for line in requests:
        ranks = fork_ranks(json.loads(line))
        answers.write(json.dumps({"pid": ranks[0]}) + "\n")
        answers.write(json.dumps({"returncode": wait_for(ranks)}) + "\n")


def main() -> None:
    """Import, then serve requests from the launcher or from commands that connect to a socket."""
    die_with_parent()
    words = sys.argv[1:]
    path = words.pop(0).removeprefix(LISTEN) if words[0].startswith(LISTEN) else ""
    if not path:
        # The launcher ends the ranks itself; a signal to all processes must not end this one first.
        block_signals()
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    # Only answers may reach the launcher, so the output of imports goes to standard error.
    os.dup2(2, 1)
    for module in ("deepspeed", *words):
        importlib.import_module(module)
    for module in LATE_IMPORTS:
        # Older versions of DeepSpeed lack some of them.
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(module)
    defaults()  # the schema, with which every rank reads its settings
    # Garbage collection in a rank, which accelerate asks for, then skips what was imported here.
    gc.freeze()
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(f"{threads} threads run after the imports: a fork would lose some")
    if path:
        serve_commands(path)
    serve_launcher(sys.stdin, answers)


if __name__ == "__main__":
    main()
