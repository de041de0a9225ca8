"""A mid-training killed between two checkpoints ends with the weights of an undisturbed one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STEPS = 60
SAVE_EVERY = 20


def command(base: Path, run_dir: Path) -> list[str]:
    return [
        "mid-train", "--config", "world-tiny", "--base", str(base), "--run-dir", str(run_dir),
        f"mid_train.tokens={STEPS * 8 * 128}", f"mid_train.save_steps={SAVE_EVERY}",
        "mid_train.logging_steps=1",
    ]  # fmt: skip


def step_reached(stage: Path) -> int:
    metrics = stage / "metrics.jsonl"
    if not metrics.is_file():
        return 0
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines(keepends=True)
             if line.endswith("\n")]  # fmt: skip
    return max(steps, default=0)


def worker_of(stage: Path) -> int:
    """The process whose standard output is the stage's log."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                output = os.readlink(entry / "fd" / "1")
            except OSError:
                continue
            if output == str(stage / "log.txt"):
                return int(entry.name)
    raise AssertionError("no worker runs")


def test_killed_between_checkpoints_it_ends_with_the_same_weights(
    remit: Any, tiny_run: Any, stage_env: dict[str, str], tmp_path: Path
) -> None:
    base = tiny_run.root / "base"
    remit(*command(base, tmp_path / "whole"), check=True)
    stage = tmp_path / "killed" / "mid-train"
    process = subprocess.Popen(
        [sys.executable, "-m", "remit_cli", *command(base, tmp_path / "killed")],
        env=stage_env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while step_reached(stage) < SAVE_EVERY + 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(worker_of(stage), signal.SIGKILL)
    assert process.wait(timeout=60) == 1
    killed_at = step_reached(stage)
    assert SAVE_EVERY < killed_at < STEPS
    assert not (stage / "result.json").exists()
    # A checkpoint without its marker is none: a save cut short must not be taken.
    (stage / "checkpoints" / f"checkpoint-{STEPS - 1}").mkdir()

    remit(*command(base, tmp_path / "killed"), check=True)

    log = (stage / "log.txt").read_text()
    assert f"resuming from {stage / 'checkpoints' / 'checkpoint-'}" in log
    assert not (stage / "checkpoints" / f"checkpoint-{STEPS - 1}").exists()
    weights = [
        (tmp_path / name / "mid-train" / "model" / "model.safetensors").read_bytes()
        for name in ("whole", "killed")
    ]
    assert weights[0] == weights[1]
    ledger = [json.loads(line) for line in (tmp_path / "killed" / "ledger.jsonl").open()]
    assert [entry["event"] for entry in ledger] == ["start", "fail", "resume", "finish"]


def test_a_damaged_checkpoint_is_left_out(remit: Any, tiny_run: Any, tmp_path: Path) -> None:
    args = [*command(tiny_run.root / "base", tmp_path / "run"), "mid_train.save_total_limit=2"]
    remit(*args, check=True)
    stage = tmp_path / "run" / "mid-train"
    expected = (stage / "model" / "model.safetensors").read_bytes()
    newest = stage / "checkpoints" / f"checkpoint-{2 * SAVE_EVERY}"
    damaged = next(newest.glob("global_step*/*optim_states.pt"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (stage / "result.json").unlink()

    remit(*args, check=True)

    log = (stage / "log.txt").read_text()
    assert "removing checkpoint" in log and "it is damaged" in log
    assert f"resuming from {stage / 'checkpoints' / f'checkpoint-{SAVE_EVERY}'}" in log
    assert (stage / "model" / "model.safetensors").read_bytes() == expected


def test_a_loss_that_is_not_finite_ends_the_stage(
    remit: Any, tiny_model: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    done = remit(*command(model, tmp_path / "run"))
    assert done.returncode == 1 and "the loss is not finite on rank 0 at step 1" in done.stderr
    assert step_reached(tmp_path / "run" / "mid-train") == 0
