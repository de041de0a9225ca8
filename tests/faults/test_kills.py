"""Killed at each instant of a stage, the same command ends with the undisturbed run's weights."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from held_files import holders

# 20 steps in one epoch; the checkpoints are at 5, 10 and 15.
BASE = ("pretrain-ckpt", "--config", "world-tiny", "pretrain.save_steps=5",
        "pretrain.logging_steps=1")  # fmt: skip
# Where, the newest complete checkpoint then, and from where this start went on.
KILLS = [
    ("during a checkpoint write", None, 0),
    ("all ranks saved, before the marker", None, 0),
    ("after the marker, before pruning", 5, 0),
    ("all ranks saved, before the marker:kill-group", 5, 5),
    ("after the marker, before pruning", 10, 5),
    ("before model is renamed", 15, 10),
    ("after model is renamed", 15, 15),
    ("before the result", 15, 15),
    ("before the finish line", None, 15),
]
FEW = [
    ("during a checkpoint write", None, 0),
    ("after the marker, before pruning", 5, 0),
    ("before model is renamed", 15, 5),
    ("before the finish line", None, 15),
]


def nothing_is_left(run: Path) -> None:
    deadline = time.monotonic() + 20
    while left := holders(run):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def checkpoints(stage: Path) -> list[int]:
    markers = stage.glob("checkpoints/checkpoint-*/complete.json")
    return sorted(int(marker.parent.name.split("-")[1]) for marker in markers)


def starts(stage: Path) -> list[str]:
    lines = (stage / "log.txt").read_text().splitlines()
    return [line for line in lines if line.startswith(("resuming from", "starting from step 0"))]


def events(run: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (run / "ledger.jsonl").open()]


@pytest.fixture
def run_killed(stage_env: dict[str, str], tmp_path: Path) -> Callable[..., int]:
    """`run_killed(instant, *args)`: a command in a session of its own; its exit code."""

    def work(instant: str, *args: str) -> int:
        with (tmp_path / "err.txt").open("wb") as err:
            done = subprocess.run(
                [sys.executable, "-m", "remit_cli", *args],
                env=stage_env | {"REMIT_FAIL_AT": instant},
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err,
                start_new_session=True, timeout=300, check=False,
            )  # fmt: skip
        return done.returncode

    return work


def weights(stage: Path) -> bytes:
    return (stage / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("kills", [FEW, pytest.param(KILLS, marks=pytest.mark.all)])
def test_pretraining_killed_at_many_instants(
    run_killed: Callable[..., int], remit: Callable[..., Any], tiny_run: Any, tmp_path: Path,
    kills: list[tuple[str, int | None, int]],
) -> None:  # fmt: skip
    run = tmp_path / "run"
    stage, args = run / "base", (*BASE, "--run-dir", str(run))
    for number, (instant, newest, _) in enumerate(kills):
        by_command = instant == "before the finish line"
        assert run_killed(instant, *args) == (-signal.SIGKILL if by_command else 1), instant
        nothing_is_left(run)
        if by_command:
            break
        assert not (stage / "result.json").exists()
        assert checkpoints(stage)[-1:] == ([newest] if newest else []), instant
        assert len(starts(stage)) == number + 1
        if instant == "after the marker, before pruning" and newest == 10:
            # keep is 1: the older one is there until the newer one is complete.
            assert checkpoints(stage) == [5, 10]
    resumed = [line.rpartition("checkpoint-")[2] for line in starts(stage)]
    assert resumed == [str(step or "starting from step 0") for _, _, step in kills]
    assert checkpoints(stage) == [15]
    assert (stage / "result.json").is_file() and "finish" not in events(run)
    written = (stage / "result.json").stat().st_mtime_ns

    remit(*args, check=True)

    assert events(run).count("finish") == 1 and events(run)[-1] == "skip"
    assert (stage / "result.json").stat().st_mtime_ns == written
    assert weights(stage) == weights(tiny_run.root / "base")
    # The same sequences at the same step, however often the run came there.
    by_step: dict[int, set[float]] = {}
    for line in (stage / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if "loss" in entry:
            by_step.setdefault(entry["step"], set()).add(entry["loss"])
    assert sorted(by_step) == list(range(1, 21))
    assert {step: losses for step, losses in by_step.items() if len(losses) > 1} == {}


def test_sft_dpo_and_rlvr_killed_after_a_save(
    run_killed: Callable[..., int], remit: Callable[..., Any], tiny_run: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    args = (
        "post-train", "--config", "world-tiny", "--run-dir", str(run), "--base",
        str(tiny_run.root / "round-0" / "10-mid-train"), "sft.save_steps=4",
        "dpo.save_steps=2", "rlvr.save_steps=1",
    )  # fmt: skip
    steps = {"20-sft": [8], "30-dpo": [4], "40-rlvr": [2]}
    for name, saved in steps.items():
        # The second save of the stage in work; those before it come only once more.
        assert run_killed("after the marker, before pruning:kill::2", *args) == 1
        nothing_is_left(run)
        assert checkpoints(run / "post-train" / name)[-1:] == saved
    written = (run / "post-train" / "20-sft" / "result.json").stat().st_mtime_ns
    remit(*args, check=True)
    for name in steps:
        assert len(starts(run / "post-train" / name)) == 2
        own, undisturbed = run / "post-train" / name, tiny_run.root / "round-0" / name
        assert weights(own) == weights(undisturbed), name
    assert (run / "post-train" / "20-sft" / "result.json").stat().st_mtime_ns == written


def test_a_stage_that_was_complete_when_its_rank_died_is_not_made_again(
    run_killed: Callable[..., int], remit: Callable[..., Any], tiny_run: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run.root / "base", tmp_path / "model")
    args = ("pretrain-ckpt", "--config", "world-tiny", "--run-dir", str(run), "--base",
            str(tmp_path / "model" / "model"))  # fmt: skip
    assert run_killed("after the result", *args) == 1
    written = (run / "base" / "result.json").stat().st_mtime_ns
    remit(*args, check=True)
    assert (run / "base" / "result.json").stat().st_mtime_ns == written
    assert events(run) == ["start", "fail", "finish", "skip"]
