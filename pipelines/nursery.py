"""A process that imports once and forks a worker for each stage of a plan.

Importing torch, transformers, TRL and DeepSpeed takes most of a stage's start. On one machine
without GPUs and with one rank, stages are forked from here instead: each is still a process of its
own, with its own environment, log and session. Reads one JSON request a line, answers one JSON
line when the worker runs and one when it ended.
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

from pipelines.errors import WRONG_INPUT_CODE, UserError
from pipelines.process import die_with_parent
from pipelines.run_dir import StageDir
from pipelines.stages import MODULES
from pipelines.worker import run_job

# DeepSpeed imports it when it makes the optimizer, and with it torch's compiler: 2 s a stage.
LATE_IMPORTS = [
    name
    for name in ("deepspeed.runtime.zero.muon.muon_optimizer",)
    if importlib.util.find_spec(name) is not None
]


def num_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def run_worker(request: dict[str, Any]) -> None:
    """In the forked child: become the worker of a stage; never returns."""
    code = 1
    try:
        die_with_parent()
        os.setsid()
        log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(request["env"])
        run_job(StageDir(Path(request["stage_dir"])))
        code = 0
    except UserError as error:
        print(f"error: {error}", flush=True)
        code = WRONG_INPUT_CODE
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit: what the parent registered to run at its exit is not this child's.
        os._exit(code)


def main() -> None:
    """Import, then serve requests until the launcher closes standard input."""
    die_with_parent()
    # The launcher ends workers itself; a Ctrl-C in the terminal must not end this process first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    # Only answers may reach the launcher: imports that print do it on standard error.
    os.dup2(2, 1)
    for module in ("deepspeed", *MODULES.values(), *LATE_IMPORTS):
        importlib.import_module(module)
    if num_threads() != 1:
        raise RuntimeError(f"{num_threads()} threads run after the imports: a fork would lose some")
    for line in sys.stdin:
        request = json.loads(line)
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            run_worker(request)
        answers.write(json.dumps({"pid": child}) + "\n")
        _, status = os.waitpid(child, 0)
        answers.write(json.dumps({"returncode": os.waitstatus_to_exitcode(status)}) + "\n")


if __name__ == "__main__":
    main()
