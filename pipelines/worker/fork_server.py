"""A process that imports once and forks the ranks of each stage of a plan.

Importing torch, transformers, TRL and DeepSpeed takes most of a stage's start. On one machine
without GPUs stages are forked from here instead: each rank is still a process of its own, with its
own environment, and the ranks of a stage share its log and a process group. Reads one JSON request
a line, answers one JSON line when the ranks run and one when they have ended.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from pipelines.machine.process import die_with_parent
from pipelines.machine.signals import block_signals, unblock_signals
from pipelines.run_dir.paths import StageDir
from pipelines.worker.worker import run_rank

# DeepSpeed imports it when it makes the optimizer, and with it torch's compiler: 2 s a stage.
LATE_IMPORTS = [
    name
    for name in ("deepspeed.runtime.zero.muon.muon_optimizer",)
    if importlib.util.find_spec(name) is not None
]


def num_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def become_rank(request: dict[str, Any], env: dict[str, str], parent: int, leader: int) -> None:
    """In the child that `parent` forked: become one rank of a stage, in the group of `leader`;
    never returns."""
    code = 1
    try:
        die_with_parent(parent)
        os.setpgid(0, leader)
        log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(env)
        unblock_signals()
        code = run_rank(StageDir(Path(request["stage_dir"])))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit: what the parent registered to run at its exit is not this child's.
        os._exit(code)


def fork_ranks(request: dict[str, Any]) -> list[int]:
    """Fork one process for each environment of the request; their ids, the group's leader first."""
    sys.stdout.flush()
    ranks: list[int] = []
    parent = os.getpid()
    for env in request["environments"]:
        leader = ranks[0] if ranks else 0
        child = os.fork()
        if child == 0:
            become_rank(request, env, parent, leader)
        # Here too, so that the group is there before the next rank joins it.
        os.setpgid(child, leader)
        ranks.append(child)
    return ranks


def wait_for(ranks: list[int]) -> int:
    """Exit code of the first rank that failed, which ends the others; 0 when all went well."""
    running, failure = set(ranks), 0
    while running:
        child, status = os.waitpid(-1, 0)
        running.discard(child)
        code = os.waitstatus_to_exitcode(status)
        if code and not failure:
            failure = code
            # The others would wait for it in a collective until their deadline.
            if running:
                os.killpg(ranks[0], signal.SIGKILL)
    return failure


def main() -> None:
    """Import, then serve requests until the launcher closes standard input."""
    die_with_parent()
    # The launcher ends workers itself; a signal to all must not end this process first.
    block_signals()
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    # Only answers may reach the launcher: imports that print do it on standard error.
    os.dup2(2, 1)
    for module in ("deepspeed", *sys.argv[1:], *LATE_IMPORTS):
        importlib.import_module(module)
    if num_threads() != 1:
        raise RuntimeError(f"{num_threads()} threads run after the imports: a fork would lose some")
    for line in sys.stdin:
        ranks = fork_ranks(json.loads(line))
        answers.write(json.dumps({"pid": ranks[0]}) + "\n")
        answers.write(json.dumps({"returncode": wait_for(ranks)}) + "\n")


if __name__ == "__main__":
    main()
