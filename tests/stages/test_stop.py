"""A stage that is asked to stop saves its last step, and goes on from there to the same weights."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

STEPS = 150
FAR_TOO_LONG = 120.0
Start = Callable[..., subprocess.Popen[bytes]]


def mid_train(base: Path, run: Path, *args: str) -> list[str]:
    return [
        "mid-train", "--config", "world-tiny", "--base", str(base), "--run-dir", str(run),
        f"mid_train.tokens={STEPS * 8 * 128}", "mid_train.save_seconds=0",
        "mid_train.snapshots=0", *args,
    ]  # fmt: skip


@pytest.fixture
def start(cli_env: dict[str, str], stage_env: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Start a command and leave it running; what it says goes to `err.txt`. With `warm` its stage
    is forked."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(args: list[str], warm: bool = False, **env: str) -> subprocess.Popen[bytes]:
        with (tmp_path / "err.txt").open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "remit_cli", *args], cwd=tmp_path,
                env=(stage_env if warm else cli_env) | env, stdin=subprocess.DEVNULL,
                stdout=err, stderr=err, start_new_session=True,
            )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


def pulses(stage: Path) -> list[dict[str, Any]]:
    """What the ranks say of themselves, in the order of their numbers."""
    found = []
    for path in sorted(stage.glob("heartbeats/*.json")):
        try:
            found.append(json.loads(path.read_text()))
        except (json.JSONDecodeError, FileNotFoundError):
            return []
    # Not those of an earlier start, before the next one removes them.
    return found if all(Path(f"/proc/{p['pid']}").exists() for p in found) else []


def wait_for_step(stage: Path, step: int, process: subprocess.Popen[bytes]) -> list[dict[str, Any]]:
    deadline = time.monotonic() + FAR_TOO_LONG
    while not (found := pulses(stage)) or min(p["step"] for p in found) < step:
        assert process.poll() is None, (stage.parent.parent / "err.txt").read_text()
        assert time.monotonic() < deadline, "training did not begin"
        time.sleep(0.01)
    return found


def said(tmp_path: Path) -> str:
    return (tmp_path / "err.txt").read_text()


def ledger(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "ledger.jsonl").open()]


def group_of(process: subprocess.Popen[bytes], ranks: list[dict[str, Any]]) -> set[int]:
    """The command, its ranks, and the launchers between them."""
    found = {process.pid}
    for rank in ranks:
        pid = rank["pid"]
        while pid not in found and pid > 1:
            found.add(pid)
            stat = Path(f"/proc/{pid}/stat").read_text()
            pid = int(stat.rpartition(")")[2].split()[1])
    return found


def weights(run: Path, stage: str = "mid-train") -> bytes:
    return (run / stage / "model" / "model.safetensors").read_bytes()


def stopped_at(run: Path, tmp_path: Path, signum: int, stage: str = "mid-train") -> int:
    """The step that an interrupted stage has saved, as its checkpoint, ledger and words have it."""
    last = ledger(run)[-1]
    assert (last["event"], last["state"]) == ("interrupt", "stopped"), said(tmp_path)
    assert last["signal"] == signum
    step = last["step"]
    assert (run / stage / "checkpoints" / f"checkpoint-{step}" / "complete.json").is_file()
    assert not (run / stage / "result.json").exists()
    assert f"step {step} is saved" in said(tmp_path) and "Traceback" not in said(tmp_path)
    return int(step)


def test_two_ranks_stop_for_a_signal_to_the_command_to_one_rank_and_to_all(
    remit: Any, tiny_model: Path, start: Start, tmp_path: Path
) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs 2 cores")
    remit(*mid_train(tiny_model, tmp_path / "whole", "--gpus", "2"), check=True)
    run = tmp_path / "run"
    args = mid_train(tiny_model, run, "--gpus", "2")
    steps = [0]
    for whom, signum, code in (
        ("command", signal.SIGINT, 130), ("rank", signal.SIGTERM, 143), ("all", signal.SIGUSR1, 143)
    ):  # fmt: skip
        # Started directly once: the others are forked, without DeepSpeed's launcher.
        process = start(args, warm=whom != "all")
        ranks = wait_for_step(run / "mid-train", steps[-1] + 5, process)
        targets = {
            "command": {process.pid},
            "rank": {ranks[1]["pid"]},
            "all": group_of(process, ranks),
        }[whom]
        # The command, DeepSpeed's launcher and two ranks.
        assert whom != "all" or len(targets) == 4
        for pid in targets:
            os.kill(pid, signum)
        assert process.wait(timeout=60) == code, said(tmp_path)
        steps.append(stopped_at(run, tmp_path, signum))
        assert not (run / "mid-train" / "checkpoints" / f"checkpoint-{steps[-2]}").exists()
        state = remit("status", run, "--json", check=True).json["stages"]["mid-train"]["state"]
        assert state == "stopped"
    assert steps == sorted(set(steps)) and steps[-1] < STEPS
    remit(*args, check=True)
    log = (run / "mid-train" / "log.txt").read_text()
    for step in steps[1:]:
        assert f"checkpoint-{step}\n" in log
    assert weights(run) == weights(tmp_path / "whole")


def test_forked_ranks_of_a_plan_stop_and_the_plan_with_them(
    remit: Any, tiny_model: Path, start: Start, tmp_path: Path
) -> None:
    def post_train(run: Path) -> list[str]:
        return ["post-train", "--config", "world-tiny", "--base", str(tiny_model), "--run-dir",
                str(run), "sft.max_steps=60", "dpo.enabled=false", "rlvr.max_steps=10",
                "sft.save_seconds=0", "rlvr.save_seconds=0"]  # fmt: skip

    remit(*post_train(tmp_path / "whole"), check=True)
    run = tmp_path / "run"
    for stage, step in (("post-train/20-sft", 5), ("post-train/40-rlvr", 3)):
        process = start(post_train(run))
        ranks = wait_for_step(run / stage, step, process)
        targets = group_of(process, ranks)
        assert len(targets) == 3, "the command, the process that forks, the rank"
        for pid in targets:
            os.kill(pid, signal.SIGTERM)
        assert process.wait(timeout=60) == 143, said(tmp_path)
        stopped_at(run, tmp_path, signal.SIGTERM, stage)
    remit(*post_train(run), check=True)
    for stage in ("post-train/20-sft", "post-train/40-rlvr"):
        assert weights(run, stage) == weights(tmp_path / "whole", stage)


def test_the_end_of_a_slurm_job_stops_a_stage_that_long_before(
    remit: Any, tiny_model: Path, start: Start, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    args = mid_train(tiny_model, run, "launch.stop_before_walltime=600", "mid_train.tokens=3000000")
    now = int(time.time())
    process = start(
        args, warm=True, SLURM_JOB_START_TIME=str(now - 999), SLURM_JOB_END_TIME=str(now + 620)
    )
    wait_for_step(run / "mid-train", 1, process)
    assert process.wait(timeout=100) == 143, said(tmp_path)
    assert now + 20 <= time.time() < now + 50
    assert stopped_at(run, tmp_path, signal.SIGTERM) > 0
    assert "interrupted by the end of the SLURM job" in said(tmp_path)
    # Too little is left to begin anything, and a job that never has enough is a mistake.
    late = {"SLURM_JOB_START_TIME": str(now - 999), "SLURM_JOB_END_TIME": str(now + 99)}
    assert remit(*args, env=late).returncode == 143
    short = {"SLURM_JOB_START_TIME": str(now), "SLURM_JOB_END_TIME": str(now + 500)}
    refused = remit(*args, env=short)
    assert (
        refused.returncode == 2 and "launch.stop_before_walltime = 600 reserves" in refused.stderr
    )
    assert [entry["event"] for entry in ledger(run)] == ["start", "interrupt"]


def test_a_rank_that_hangs_is_named_and_its_stage_ended(
    tiny_model: Path, start: Start, tmp_path: Path
) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs 2 cores")
    run = tmp_path / "run"
    process = start(mid_train(tiny_model, run, "--gpus", "2", "launch.hang_seconds=4"), warm=True)
    ranks = wait_for_step(run / "mid-train", 5, process)
    os.kill(ranks[1]["pid"], signal.SIGSTOP)
    assert process.wait(timeout=60) == 1
    words = said(tmp_path)
    assert "stage mid-train failed (it hangs" in words and "rank 1 is stopped by a signal" in words
    for rank in (0, 1):
        assert f"rank {rank} on " in words
    assert words.count("steps done") == 2
    assert [entry["event"] for entry in ledger(run)] == ["start", "fail"]
    assert not any(Path(f"/proc/{rank['pid']}").exists() for rank in ranks)


def test_a_rank_that_hangs_in_a_stage_without_steps_is_named(
    tiny_model: Path, start: Start, tmp_path: Path
) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs 2 cores")
    run = tmp_path / "run"
    args = ["score", "--config", "world-tiny", "--model", str(tiny_model), "--base",
            str(tiny_model), "--run-dir", str(run), "--gpus", "2", "mid_train.tokens=1_000_000",
            "score.shard_sequences=8", "launch.hang_seconds_outside=12"]  # fmt: skip
    process = start(args, warm=True)
    deadline = time.monotonic() + FAR_TOO_LONG
    while len(list(run.glob("scores/*/*.npy"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline, said(tmp_path)
        time.sleep(0.01)
    ranks = pulses(run / "score")
    os.kill(ranks[1]["pid"], signal.SIGSTOP)
    # Its share takes the other one longer than the limit: one that works is not taken for hung.
    assert process.wait(timeout=120) == 1
    words = said(tmp_path)
    assert "stage score failed (it hangs" in words and "rank 1 is stopped by a signal" in words
    assert "launch.hang_seconds_outside" in words
    assert not any(Path(f"/proc/{rank['pid']}").exists() for rank in ranks)


def test_after_the_grace_time_and_at_a_second_sigint_ranks_are_killed(
    tiny_model: Path, start: Start, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for args, signals in ((["launch.grace_seconds=2"], 1), ([], 2)):
        process = start(mid_train(tiny_model, run, *args), warm=True)
        (rank,) = wait_for_step(run / "mid-train", 5, process)
        # It will not reach the end of its step.
        os.kill(rank["pid"], signal.SIGSTOP)
        begun = time.monotonic()
        for _ in range(signals):
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
        assert process.wait(timeout=60) == 130
        assert time.monotonic() - begun < 30
        last = ledger(run)[-1]
        assert (last["event"], last["state"]) == ("interrupt", "interrupted")
        assert not Path(f"/proc/{rank['pid']}").exists()


def test_a_rank_that_the_kernel_kills_is_told_apart(
    tiny_model: Path, start: Start, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(mid_train(tiny_model, run), warm=True)
    (rank,) = wait_for_step(run / "mid-train", 5, process)
    os.kill(rank["pid"], signal.SIGKILL)
    assert process.wait(timeout=60) == 1
    words = said(tmp_path)
    assert "stage mid-train failed (a rank was killed by SIGKILL" in words
    assert "peak memory rank 0 " in words and "mid_train.micro_batch_size (now 8)" in words
    assert "mid_train.gradient_checkpointing=true" in words and "chunk_bytes" in words


def test_a_stage_that_gets_no_more_memory_says_what_takes_less(
    cli_env: dict[str, str], tmp_path: Path
) -> None:
    # Enough addresses for the imports, not for the activations of a million tokens.
    limit = 4_500_000_000
    done = subprocess.run(
        [sys.executable, "-m", "remit_cli", "pretrain-ckpt", "--config", "world-tiny", "--run-dir",
         "run", "pretrain.global_batch_size=8192", "pretrain.micro_batch_size=8192",
         "pretrain.tokens=1048576", "pretrain.snapshots=0", "--json"],
        cwd=tmp_path, env=cli_env, capture_output=True, text=True, timeout=200, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 1
    reason = json.loads(done.stdout)["reason"]
    assert reason.startswith("out of memory; peak memory rank 0 "), reason
    assert "pretrain.micro_batch_size (now 8192)" in reason
    assert "can't allocate memory" in done.stderr and reason in done.stderr
