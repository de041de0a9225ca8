"""A fork server for multiple commands, which saves single-stage commands the imports.

    python -m pipelines.launch.shared_server SOCKET &
    REMIT_FORK_SERVER=SOCKET remit sft ...

The server ends with the shell that started it, and ranks end with their command. A stage whose
environment differs from the server's is started directly, since libraries read variables when they
are imported.
"""

from __future__ import annotations

import json
import os
import socket
import sys

from pipelines.errors import UserError
from pipelines.launch.launcher import Descriptors, Env, ForkedRanks, fork_request
from pipelines.machine.process import FORK_ENVIRONMENT, free_port
from pipelines.plan.kinds import KINDS
from pipelines.plan.placement import environment
from pipelines.recipe.schema import LaunchConfig
from pipelines.run_dir.paths import StageDir

VARIABLE = "REMIT_FORK_SERVER"


def fork(
    path: str, inherited: Descriptors, stage_dir: StageDir, env: Env, ranks: list[Env]
) -> ForkedRanks | None:
    """Fork the ranks of a stage by the server whose socket is at `path`; see `ForkServer.start`.

    The ranks keep the file descriptors `inherited` open (the run's lock).

    Returns:
        None if the environment of the stage differs from the server's; its log says where.

    Raises:
        UserError: no server listens at the socket.
    """
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
    except OSError as error:
        raise UserError(
            f"{VARIABLE}={path}: no fork server answers there ({error.strerror or error}). "
            f"Start one with `python -m {__name__} {path} &`, or unset {VARIABLE}."
        ) from error
    sent = fork_request(stage_dir, env, ranks)
    connection.sendall(sent[socket.send_fds(connection, [sent], inherited) :])
    # It closes when this command ends, which the server notices.
    answers = open(connection.detach(), "rb", buffering=0)  # noqa: SIM115
    answer = json.loads(answers.readline() or "{}")
    if "pid" in answer:
        return ForkedRanks(answer["pid"], answers)
    names = ", ".join(answer.get("differing", []))
    why = f"the environment of the server differs in {names}" if names else "the server ended"
    with open(stage_dir.log, "a", encoding="utf-8") as log:
        log.write(f"{VARIABLE}: {why}; starting this stage directly\n")
    return None


def main() -> None:
    """Become the server, in the environment that a stage with one rank would have here."""
    env = environment(LaunchConfig(), free_port(), offline=False) | FORK_ENVIRONMENT
    modules = [kind.module for kind in KINDS]
    listen = f"--listen={sys.argv[1]}"
    command = [sys.executable, "-m", "pipelines.worker.fork_server", listen, *modules]
    os.execve(sys.executable, command, env)


if __name__ == "__main__":
    main()
