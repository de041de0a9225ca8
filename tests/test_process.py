"""A process that is to die with its parent also dies where the parent has died before it asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Inherits what its descendants leave, as init or a container's first process does.
REAPER = """
import ctypes, os, subprocess, sys
ctypes.CDLL(None).prctl(36, 1)
subprocess.run([sys.executable, "-c", sys.argv[1]], start_new_session=True)
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
"""
# Starts a rank, and is gone before the rank has looked.
LAUNCHER = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {rank!r}])
{then}
"""
RANK = """
import os, time
time.sleep(0.5)
from pipelines.machine.process import die_with_parent
die_with_parent()
print("lives", flush=True)
"""
NESTED = """
import subprocess, sys
subprocess.run([sys.executable, "-c", {launcher!r}])
"""


def said(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", REAPER, program],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
        check=True,
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("then", "expected"), [("os._exit(0)", ""), ("time.sleep(3)", "lives\n")])
def test_a_rank_whose_launcher_is_gone(then: str, expected: str, nested: bool) -> None:
    launcher = LAUNCHER.format(rank=RANK, then=then)
    # As below DeepSpeed's runner, which leads the session of the launcher.
    assert said(NESTED.format(launcher=launcher) if nested else launcher) == expected


def test_a_rank_that_leads_its_session_cannot_know() -> None:
    assert said(RANK) == "lives\n"
