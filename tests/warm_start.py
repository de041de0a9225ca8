"""Commands and stages without their imports: what most tests start the CLI through.

Two processes live as long as the tests of a session. One has imported the CLI and forks a process
for each command; the other is the product's own fork server (`pipelines.launch.shared_server`),
which forks the ranks. What runs in the forks is the code of a cold start, in processes of their own
with their own environment, folder and outputs. `test_start.py` compares both ways.

Run as a program it is the first of the two: `python tests/warm_start.py SOCKET`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 300.0
# The launcher's side, which imports no torch.
PACKAGES = ("remit_cli", "pipelines.recipe", "pipelines.plan", "pipelines.launch",
            "pipelines.comparison", "pipelines.report", "pipelines.run_dir")  # fmt: skip


@dataclass
class Server:
    """One of the two processes: started at once, waited for when it is first needed."""

    process: subprocess.Popen[bytes]
    path: Path
    listens: bool = False

    def ready(self) -> str:
        """Its socket, once something listens there."""
        if self.listens:
            return str(self.path)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            with socket.socket(socket.AF_UNIX) as trial:
                if not trial.connect_ex(str(self.path)):
                    self.listens = True
                    return str(self.path)
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.process.args!r} does not serve {self.path}")
            time.sleep(0.05)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def start(module: list[str], folder: Path, env: dict[str, str]) -> Server:
    """Start a server with its socket in a folder of its own (a socket's path must be short)."""
    path = Path(tempfile.mkdtemp(prefix="remit-")) / "socket"
    log = (folder / f"{Path(module[-1]).name}.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, *module, str(path)], cwd=folder, env=env, stdin=subprocess.DEVNULL,
        stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    return Server(process, path)


def ask(
    path: str, args: list[str], cwd: Path, env: dict[str, str], timeout: float
) -> tuple[int, str, str]:
    """Run `remit ARGS` in a fork; its exit code (negative: a signal) and both outputs."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(path)
            request = {"args": args, "cwd": str(cwd), "env": env}
            message = json.dumps(request).encode() + b"\n"
            sent = socket.send_fds(connection, [message], [out.fileno(), err.fileno()])
            connection.sendall(message[sent:])
            code = int(connection.makefile().readline())
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode())
    return code, texts[0], texts[1]


def run_command(request: dict[str, Any], descriptors: list[int]) -> int:
    """In the fork: become the command; its exit code."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, descriptor in enumerate(descriptors, start=1):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", closefd=False)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.path[0] = request["cwd"]
    # As `python -m remit_cli` has it: the help names the program by it.
    sys.modules["__main__"].__package__ = "remit_cli"
    sys.argv = [str(Path(sys.modules["remit_cli"].__path__[0]) / "__main__.py"), *request["args"]]
    try:
        importlib.import_module("remit_cli.__main__").main()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def serve(connection: socket.socket) -> None:
    """In a process of the connection: run its command in a child, and say its exit code."""
    received, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 2)
    while not received.endswith(b"\n"):
        more = connection.recv(1 << 20)
        if not more:
            # Only a look whether this process listens.
            return
        received += more
    child = os.fork()
    if child == 0:
        code = 1
        try:
            connection.close()
            code = run_command(json.loads(received), descriptors)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def main() -> None:
    from pipelines.machine.process import die_with_parent
    from remit_cli.app import app

    die_with_parent()
    for package in PACKAGES:
        found = importlib.import_module(package)
        for module in pkgutil.walk_packages(found.__path__, f"{package}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    loaded = {"torch", "transformers", "deepspeed"} & sys.modules.keys()
    assert not loaded, f"the launcher's side has imported {loaded}"
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # The first command of a process imports what Typer parses with, and makes the schema.
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        app(["plan"])
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen()
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                try:
                    listener.close()
                    serve(connection)
                finally:
                    os._exit(0)
            connection.close()
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                pass


if __name__ == "__main__":
    main()
