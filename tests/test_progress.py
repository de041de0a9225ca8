"""How far a running stage is: by value, and live on a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.run_dir.paths import StageDir
from pipelines.run_dir.progress import last_error, read_progress


def metrics(folder: Path, *entries: dict[str, float], end: str = "") -> StageDir:
    stage_dir = StageDir(folder)
    lines = "".join(json.dumps({"max_steps": 100} | entry) + "\n" for entry in entries)
    stage_dir.metrics.write_text(lines + end)
    return stage_dir


def test_before_the_first_step(tmp_path: Path) -> None:
    assert read_progress(StageDir(tmp_path)) is None
    assert read_progress(metrics(tmp_path, end='{"step": 1, "max_')) is None


def test_pace_and_last_known_values(tmp_path: Path) -> None:
    stage_dir = metrics(
        tmp_path,
        {"step": 10, "time": 1000.0, "elapsed": 5.0, "loss": 3.0, "tokens_per_second": 1234.5},
        {"step": 20, "time": 1010.0, "elapsed": 15.0, "loss": 2.5},
        {"step": 30, "time": 1040.0, "elapsed": 45.0, "reward": 0.25},
        end='{"step": 40, "ti',
    )
    found = read_progress(stage_dir)
    assert found is not None
    assert (found.step, found.loss, found.reward, found.tokens_per_second) == (
        30,
        2.5,
        0.25,
        1234.5,
    )
    # 20 steps in 40 seconds, 70 to go.
    assert found.seconds_left == pytest.approx(140.0)
    assert str(found) == ("step 30 of 100, loss 2.500, reward 0.25, 1,234 tokens/s, 2m20s left")


def test_the_pause_before_a_resume_is_no_work(tmp_path: Path) -> None:
    found = read_progress(
        metrics(
            tmp_path,
            {"step": 10, "time": 1000.0, "elapsed": 10.0},
            {"step": 20, "time": 1010.0, "elapsed": 20.0},
            {"step": 30, "time": 90_000.0, "elapsed": 10.0},
            {"step": 50, "time": 90_020.0, "elapsed": 30.0},
        )
    )
    assert found is not None and found.seconds_left == pytest.approx(50.0)
    assert read_progress(metrics(tmp_path, {"step": 1, "time": 1.0})).seconds_left is None  # type: ignore[union-attr]


def test_status_follows_a_run_on_a_terminal(
    cli_env: dict[str, str], stage_env: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    remit = [sys.executable, "-m", "remit_cli"]
    train = subprocess.Popen(
        [*remit, "pretrain-ckpt", "--config", "world-tiny", "--run-dir", str(run),
         "pretrain.tokens=200_000", "pretrain.logging_steps=5"],
        env=stage_env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (run / "ledger.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    ours, theirs = pty.openpty()
    watch = subprocess.Popen(
        [*remit, "status", str(run)], env=cli_env | {"TERM": "xterm", "COLUMNS": "160"},
        stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    while time.monotonic() < deadline and select.select([ours], [], [], 60)[0]:
        try:
            seen += os.read(ours, 65_536)
        except OSError:  # the terminal ends with its last program
            break
    os.close(ours)
    assert watch.wait(timeout=30) == 0 and train.wait(timeout=30) == 0
    text = seen.decode(errors="replace")
    assert " of 19" in text and "loss" in text and "left" in text
    assert "running: host" in text and text.rstrip().endswith("Nothing is running.")


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("", ""), ("all is well\n", ""), ("error: no room\n", "no room"),
        ("error: first\nerror: last\nTraceback\n", "last"),
        # As a full disk leaves it.
        ("error: first\nerror: a write to ru", "first"), ("error: a wri", ""),
    ],
)  # fmt: skip
def test_the_last_whole_error_of_a_log(tmp_path: Path, log: str, said: str) -> None:
    (tmp_path / "log.txt").write_text(log)
    assert last_error(tmp_path / "log.txt") == said
