"""Signals have their exit codes and one sentence from the first moment of a command."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from pipelines.errors import Interrupted
from pipelines.machine.signals import signals_raise
from pipelines.run_dir.paths import RunDir
from remit_cli import session
from remit_cli.render import Screen

CODES = {signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGINT: 130}


def wait_for_handlers(process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 30
    while True:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
        if int(caught.split()[1], 16) >> (signal.SIGUSR1 - 1) & 1:
            return
        assert time.monotonic() < deadline, "no handler"
        time.sleep(0.001)


@pytest.mark.parametrize("delay", [0.0, 0.2, 0.6])
@pytest.mark.parametrize("signum", CODES)
def test_a_signal_while_the_command_starts(
    signum: signal.Signals, delay: float, cli_env: dict[str, str], tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "remit_cli", "pretrain-ckpt", "--config", "world-tiny", "--json",
         "--run-dir", "run"],
        cwd=tmp_path, env=cli_env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for_handlers(process)
        time.sleep(delay)
        process.send_signal(signum)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == CODES[signum]
    # What was said of the stage's start, if it came so far, is on standard error too.
    assert err.splitlines()[-1].startswith(f"interrupted by {signum.name}")
    assert "Traceback" not in err and err.count("interrupted by") == 1
    assert json.loads(out)["status"] == "interrupted"


def test_an_import_is_not_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nwhole = bool(len('abc'))\n"
    (tmp_path / "signalled.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with signals_raise(), pytest.raises(Interrupted):
        importlib.import_module("signalled")
        time.sleep(30)
    assert sys.modules["signalled"].whole


@pytest.mark.filterwarnings("ignore:register_new_resolver")
def test_no_library_takes_it_for_an_error_of_its_own() -> None:
    OmegaConf.register_new_resolver("interrupt", lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with signals_raise(), pytest.raises(Interrupted) as raised:
            print(OmegaConf.create({"value": "${interrupt:}"}).value)
        assert raised.value.exit_code == 143
    finally:
        OmegaConf.clear_resolver("interrupt")


def test_a_signal_while_the_report_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "write_report", lambda run: os.kill(os.getpid(), signal.SIGINT))
    with signals_raise(), pytest.raises(Interrupted):
        session._report_at_the_end(RunDir(tmp_path), Screen(as_json=True))
