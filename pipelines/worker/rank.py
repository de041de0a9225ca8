"""Entry point of a rank on other nodes or with a prologue: read the launch spec
(`pipelines.plan.placement.write_launch_spec`), run the prologue, become the worker.

    python -m pipelines.worker.rank STAGE_DIR TOKEN

It does not import torch, which reads the environment when it is loaded.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
import time
from pathlib import Path
from typing import Any

from pipelines.errors import WRONG_INPUT_CODE, UserError
from pipelines.machine import slurm
from pipelines.machine.process import die_with_parent
from pipelines.run_dir.paths import StageDir, read_json

# A network file system may show an old state until its attribute cache expires.
PATIENCE_SECONDS = 60.0
LOOK_SECONDS = 0.5
# A line may also exit the shell itself, so the message is printed by a trap on EXIT.
_REPORT_FAILED_LINE = f"""\
trap 'echo "error: launch.prologue: $remit_line failed on host $(hostname)"
exit {WRONG_INPUT_CODE}' EXIT
"""


def read_launch_spec(
    stage_dir: StageDir, token: str, patience: float = PATIENCE_SECONDS
) -> dict[str, Any]:
    """The launch spec with this token; UserError if it is not visible after `patience` seconds."""
    deadline = time.monotonic() + patience
    while True:
        found = ""
        if stage_dir.launch_spec.is_file():
            needs = ("token", "env", "rendezvous", "prologue", "command")
            spec = read_json(stage_dir.launch_spec, needs=needs)
            if spec["token"] == token:
                return spec
            found = ", only that of another start"
        if time.monotonic() >= deadline:
            raise UserError(
                f"host {socket.gethostname()} does not see the run directory: it finds no "
                f"{stage_dir.launch_spec} of this start{found}. --run-dir must be a folder on a "
                "file system that the nodes share, under the same path on each."
            )
        time.sleep(LOOK_SECONDS)


def with_prologue(command: list[str], lines: list[str]) -> list[str]:
    """A command that runs lines of bash before it in the same shell; an error names the line."""
    if not lines:
        return command
    steps = "".join(
        f"remit_line={shlex.quote(shlex.quote(line))}\n{{ {line}\n}} || exit\n" for line in lines
    )
    script = _REPORT_FAILED_LINE + steps + 'trap - EXIT\nunset remit_line\nexec "$@"'
    return ["bash", "-c", script, "remit", *command]


def main() -> None:
    die_with_parent()
    stage_dir, token = StageDir(Path(sys.argv[1])), sys.argv[2]
    try:
        spec = read_launch_spec(stage_dir, token)
        os.environ.update(spec["env"])
        if spec["rendezvous"]:
            os.environ.update(slurm.rank_environment() | spec["rendezvous"])
    except UserError as error:
        print(f"error: {error}", flush=True)
        sys.exit(WRONG_INPUT_CODE)
    worker = [sys.executable, "-u", "-m", "pipelines.worker.worker", str(stage_dir.root)]
    command = with_prologue([*worker, json.dumps(spec["command"])], spec["prologue"])
    os.execvpe(command[0], command, os.environ)


if __name__ == "__main__":
    main()
