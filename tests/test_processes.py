"""Processes: no rank outlives its command, signals have their exit codes, one run one writer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from held_files import holders

# Long enough to be met in the middle, short enough to be finished afterwards.
ARGS = ("pretrain-ckpt", "--config", "world-tiny", "--run-dir", "run", "pretrain.tokens=200_000",
        "pretrain.logging_steps=1")  # fmt: skip
FAR_TOO_LONG = 120.0
Start = Callable[..., subprocess.Popen[bytes]]


def lives(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(reached: Callable[[], Any], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def events(run: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (run / "ledger.jsonl").open()]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def start(cli_env: dict[str, str], stage_env: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Start a command and leave it running; its standard error goes to `err.txt`. With `warm` its
    stage is forked."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(*args: str, warm: bool = False) -> subprocess.Popen[bytes]:
        with (tmp_path / "out.txt").open("wb") as out, (tmp_path / "err.txt").open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "remit_cli", *args], cwd=tmp_path,
                env=stage_env if warm else cli_env, stdin=subprocess.DEVNULL,
                stdout=out, stderr=err, start_new_session=True,
            )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


def wait_for_training(run: Path, process: subprocess.Popen[bytes]) -> None:
    metrics = run / "base" / "metrics.jsonl"

    def trains() -> bool:
        assert process.poll() is None, (run.parent / "err.txt").read_text()
        return metrics.is_file() and '"loss"' in metrics.read_text()

    wait_until(trains, FAR_TOO_LONG, "training did not begin")


@pytest.mark.parametrize(
    ("command", "gpus", "processes", "warm"),
    # One rank; DeepSpeed's launcher and its two; the process that forks and its two, which is the
    # command's child or that of a server of many commands.
    [
        pytest.param("pretrain-ckpt", 1, 1, False, marks=pytest.mark.all),
        ("pretrain-ckpt", 2, 3, False),
        ("flywheel", 2, 3, False),
        ("pretrain-ckpt", 2, 3, True),
    ],
)
def test_no_rank_survives_the_kill_of_its_command(
    start: Start, run: Path, command: str, gpus: int, processes: int, warm: bool
) -> None:
    if len(os.sched_getaffinity(0)) < gpus:
        pytest.skip(f"needs {gpus} cores")
    process = start(command, *ARGS[1:], "--gpus", str(gpus), warm=warm)
    wait_for_training(run, process)
    others = holders(run).keys() - {process.pid}
    assert len(others) >= processes
    process.kill()
    process.wait()
    # A process that ends closes its files some time before it is gone.
    wait_until(lambda: not any(map(lives, others)), 20, f"still there: {holders(run)}")
    assert holders(run) == {}


def test_no_rank_survives_a_kill_just_after_its_launch(start: Start, run: Path) -> None:
    """DeepSpeed's launcher dies before its ranks have asked to die with it."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs 2 cores")
    process = start(*ARGS, "--gpus", "2")

    def below(pid: int) -> list[int]:
        try:
            own = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except FileNotFoundError:
            return []
        return [found for child in map(int, own) for found in [child, *below(child)]]

    deadline = time.monotonic() + FAR_TOO_LONG
    # The launcher and two ranks.
    while len(started := below(process.pid)) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(lives, started)), 5, f"still there: {holders(run)}")
    assert holders(run) == {}


def test_a_killed_rank_of_a_flywheel_ends_its_stage_and_the_other_rank(
    start: Start, remit: Callable[..., Any], run: Path
) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs 2 cores")
    args = ("flywheel", "--iterations", "0", *ARGS[1:], "--gpus", "2")
    process = start(*args)
    wait_for_training(run, process)
    log = str(run / "base" / "log.txt")
    ranks = [
        pid for pid in holders(run) if pid != process.pid
        and Path(f"/proc/{pid}/fd/1").exists() and os.readlink(f"/proc/{pid}/fd/1") == log
    ]  # fmt: skip
    assert len(ranks) == 2
    os.kill(max(ranks), signal.SIGKILL)
    assert process.wait(timeout=60) == 1
    wait_until(lambda: not holders(run), 10, f"still there: {holders(run)}")
    assert events(run) == ["start", "fail"]
    assert "base failed" in (run.parent / "err.txt").read_text()


@pytest.mark.parametrize(
    ("signum", "moment", "exit_code"),
    [(signal.SIGTERM, "starting", 143), (signal.SIGINT, "training", 130)],
)
def test_interrupted_and_finished_by_the_same_command(
    start: Start, remit: Callable[..., Any], run: Path, signum: int, moment: str, exit_code: int
) -> None:
    process = start(*ARGS, warm=moment == "training")
    if moment == "starting":
        ledger = run / "ledger.jsonl"
        wait_until(lambda: ledger.is_file() and "start" in ledger.read_text(), 60, "no start")
        time.sleep(0.5)
    else:
        wait_for_training(run, process)
    process.send_signal(signum)
    assert process.wait(timeout=30) == exit_code
    wait_until(lambda: not holders(run), 1, f"still there: {holders(run)}")
    said = (run.parent / "err.txt").read_text()
    assert signal.Signals(signum).name in said and "same command" in said
    assert "Traceback" not in said
    assert events(run) == ["start", "interrupt"]
    assert not (run / "base" / "result.json").exists()
    state = remit("status", run, "--json", check=True).json["stages"]["base"]["state"]
    assert state == ("interrupted" if moment == "starting" else "stopped")

    remit(*ARGS, cwd=run.parent, check=True)
    assert events(run) == ["start", "interrupt", "resume", "finish"]


def test_second_command_on_a_run_in_use(start: Start, remit: Callable[..., Any], run: Path) -> None:
    process = start(*ARGS, warm=True)
    ledger = run / "ledger.jsonl"
    wait_until(lambda: ledger.is_file() and "start" in ledger.read_text(), 60, "no start")
    refused = remit(*ARGS, cwd=run.parent)
    assert process.poll() is None
    assert refused.returncode == 2 and refused.stdout == ""
    assert f"pid {process.pid}, command: remit pretrain-ckpt" in refused.stderr
    status = remit("status", run, "--json", check=True).json
    assert status["status"] == "running" and str(process.pid) in status["holder"]
    assert events(run) == ["start"]


def test_status_after_a_kill_is_not_running(
    start: Start, remit: Callable[..., Any], run: Path
) -> None:
    process = start(*ARGS, warm=True)
    ledger = run / "ledger.jsonl"
    wait_until(lambda: ledger.is_file() and "start" in ledger.read_text(), 60, "no start")
    process.kill()
    process.wait()
    wait_until(lambda: not holders(run), 10, f"still there: {holders(run)}")
    values = remit("status", run, "--json", check=True).json
    assert values["status"] == "idle" and values["stages"]["base"]["state"] != "running"


def test_failed_stage(remit: Callable[..., Any], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "torch.py").write_text("raise ImportError('this torch is broken on purpose')\n")
    done = remit(*ARGS, f"launch.env.PYTHONPATH={broken}", "--json", cwd=tmp_path)
    log = tmp_path / "run" / "base" / "log.txt"
    assert done.returncode == 1
    assert "base failed" in done.stderr and str(log) in done.stderr
    assert "this torch is broken on purpose" in done.stderr, "the last lines of the log"
    assert "Traceback" in log.read_text()
    assert (done.json["status"], done.json["stage"]) == ("failed", "base")
    assert done.json["log"] == str(log) and done.json["exit_code"] != 0
    assert events(tmp_path / "run") == ["start", "fail"]
    status = remit("status", tmp_path / "run", "--json", check=True).json
    assert status["stages"]["base"]["state"] == "failed" and status["status"] == "idle"


@pytest.mark.parametrize("gpus", [1, 2])
def test_adopting_survives_a_kill_before_its_result(
    remit: Callable[..., Any], tiny_model: Path, run: Path, gpus: int
) -> None:
    if len(os.sched_getaffinity(0)) < gpus:
        pytest.skip(f"needs {gpus} cores")
    args = ("pretrain-ckpt", "--base", tiny_model, "--config", "world-tiny", "--run-dir", run,
            "--gpus", str(gpus))  # fmt: skip
    remit(*args, check=True)
    first = json.loads((run / "base" / "result.json").read_text())
    assert first["imported"] == str(tiny_model) and first["chat_tokens_added"] == []
    # As if the kill had come after the model was in its place.
    (run / "base" / "result.json").unlink()
    remit(*args, check=True)
    again = json.loads((run / "base" / "result.json").read_text())
    assert again["model_sha256"] == first["model_sha256"]
    assert events(run) == ["start", "finish", "resume", "finish"]


def test_a_killed_scoring_goes_on_at_the_next_shard(
    start: Start, remit: Callable[..., Any], tiny_run: Any, run: Path
) -> None:
    args = (
        "score", "--config", "world-tiny", "--model", str(tiny_run.root / "round-0" / "40-rlvr"),
        "--base", str(tiny_run.root / "base"), "mid_train.tokens=200_000",
        "score.shard_sequences=8", "score.batch_size=8", "--run-dir",
    )  # fmt: skip
    process = start(*args, str(run), warm=True)

    def shards(folder: Path) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in folder.glob("scores/*/sequences-*.npy")}

    wait_until(lambda: len(shards(run)) >= 3, FAR_TOO_LONG, "no shards")
    process.kill()
    process.wait()
    wait_until(lambda: not holders(run), 10, f"still there: {holders(run)}")
    kept = shards(run)
    assert not list(run.glob("scores/*/complete.json"))
    times = {p.name: p.stat().st_mtime_ns for p in run.glob("scores/*/sequences-*.npy")}
    remit(*args, run, check=True)
    # 200,000 tokens are 1,568 sequences of 128, in whole steps of 8.
    assert f"{196 - len(kept)} of 196 shards to score" in (run / "score" / "log.txt").read_text()
    assert (
        times.items()
        <= {p.name: p.stat().st_mtime_ns for p in run.glob("scores/*/sequences-*.npy")}.items()
    )
    undisturbed = run.parent / "undisturbed"
    remit(*args, undisturbed, check=True)
    assert shards(run) == shards(undisturbed)
