"""How a stage is started changes nothing that it computes."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipelines.machine.process import free_port
from pipelines.plan.placement import can_fork, command_line, hosts, num_ranks
from pipelines.recipe.schema import LaunchConfig
from pipelines.run_dir.paths import StageDir


def test_started_directly_the_weights_are_those_of_the_forked_stage(
    remit: Any, tiny_run: Any, tmp_path: Path
) -> None:
    # A single-stage command starts an interpreter, a flywheel forks its stages, and a server may
    # fork those of single-stage commands.
    args = ("pretrain-ckpt", "--config", "world-tiny", "--run-dir")
    remit(*args, tmp_path / "direct", cold=True, check=True)
    remit(*args, tmp_path / "served", check=True)
    assert "started directly" not in (tmp_path / "served" / "base" / "log.txt").read_text()
    direct, served, forked = (
        (root / "base" / "model" / "model.safetensors").read_bytes()
        for root in (tmp_path / "direct", tmp_path / "served", tiny_run.root)
    )
    assert direct == served == forked


def test_a_stage_of_another_environment_is_not_forked_by_a_server(
    remit: Any, tmp_path: Path
) -> None:
    args = ("pretrain-ckpt", "--config", "world-tiny", "--run-dir", tmp_path / "run")
    remit(*args, "pretrain.tokens=2048", "launch.env={OMP_NUM_THREADS: '2'}", check=True)
    log = (tmp_path / "run" / "base" / "log.txt").read_text()
    assert "the server differs in OMP_NUM_THREADS; starting this stage directly" in log
    result = json.loads((tmp_path / "run" / "base" / "result.json").read_text())
    assert result["environment"]["OMP_NUM_THREADS"] == "2"


def test_a_server_that_does_not_answer_is_named(remit: Any, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nobody")
    args = ("pretrain-ckpt", "--config", "world-tiny", "--run-dir", tmp_path / "run")
    done = remit(*args, env={"REMIT_FORK_SERVER": nowhere}, cold=True)
    assert done.returncode == 2 and f"REMIT_FORK_SERVER={nowhere}: no fork server" in done.stderr


def post_train(base: Path, run: Path, *args: str) -> tuple[str | Path, ...]:
    return ("post-train", "--config", "world-tiny", "--base", base, "--run-dir", run,
            "rlvr.enabled=false", *args)  # fmt: skip


def finished(run: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "ledger.jsonl").open()]
    return {line["stage"]: line for line in lines if line["event"] == "finish"}


@pytest.mark.all
def test_two_forked_ranks_make_what_the_launchers_two_ranks_make(
    remit: Any, tiny_model: Path, tmp_path: Path
) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs 2 cores")
    # The ranks of several stages are forked, those of one stage alone are launched.
    forked_args = post_train(tiny_model, tmp_path / "forked", "--gpus", "2")
    remit(*forked_args, check=True, cold=True)
    alone = post_train(tiny_model, tmp_path / "launched", "--gpus", "2", "dpo.enabled=false")
    remit(*alone, check=True, cold=True)
    forked, launched = finished(tmp_path / "forked"), finished(tmp_path / "launched")
    assert [line["world_size"] for line in forked.values()] == [2, 2]
    sft = "post-train/20-sft"
    assert forked[sft]["model_sha256"] == launched[sft]["model_sha256"]


def shared_buffers(port: int) -> list[Path]:
    """What DeepSpeed's CPU op shares between the ranks that meet at `port`."""
    return list(Path("/dev/shm").glob(f"deepspeed_*_{port}_*"))


def test_no_shared_memory_stays_behind(remit: Any, tmp_path: Path) -> None:
    port = free_port()
    remit(
        "pretrain-ckpt", "--config", "world-tiny", "--run-dir", tmp_path / "run",
        "pretrain.tokens=2048", f"launch.env={{MASTER_PORT: '{port}'}}", check=True,
    )  # fmt: skip
    assert shared_buffers(port) == []


@pytest.mark.all
def test_a_hostfile_of_this_machine(remit: Any, tmp_path: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs 2 cores")
    hostfile = tmp_path / "hosts.txt"
    hostfile.write_text("localhost slots=2\n")
    # Without ssh the runner is started on each host by hand, or by srun; here is one host.
    port = free_port()
    options = f"--no_ssh,--node_rank=0,--master_addr=127.0.0.1,--master_port={port}"
    runner = f"launch.runner_args=[{options}]"
    remit(
        "pretrain-ckpt", "--config", "world-tiny", "--hostfile", hostfile, runner,
        "--run-dir", tmp_path / "run", check=True,
    )  # fmt: skip
    assert finished(tmp_path / "run")["base"]["world_size"] == 2
    assert "deepspeed" in (tmp_path / "run" / "base" / "log.txt").read_text()
    assert shared_buffers(port) == []


def test_where_a_fork_would_lose_a_thread_stages_are_started_directly(
    remit: Any, tiny_run: Any, tmp_path: Path
) -> None:
    # Python runs it at start, so the process that would fork has a second thread.
    (tmp_path / "sitecustomize.py").write_text(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()\n"
    )
    run = tmp_path / "run"
    base = tiny_run.root / "round-0" / "10-mid-train"
    remit(*post_train(base, run, "dpo.enabled=false"), check=True)
    args = post_train(base, run, f"launch.env.PYTHONPATH={tmp_path}")
    remit(*args, check=True, cold=True)
    stage = run / "post-train" / "30-dpo"
    log = (stage / "log.txt").read_text()
    assert "2 threads run after the imports" in log and "starting it directly" in log
    direct, forked = (
        (folder / "model" / "model.safetensors").read_bytes()
        for folder in (stage, tiny_run.root / "round-0" / "30-dpo")
    )
    assert direct == forked


def test_several_ranks_go_through_deepspeeds_launcher(tmp_path: Path) -> None:
    stage = StageDir(tmp_path)
    assert "deepspeed.launcher.launch" in command_line(LaunchConfig(gpus=2), stage, 1234)
    assert "--master_port=1234" in command_line(LaunchConfig(gpus=2), stage, 1234)
    hostfile = tmp_path / "hosts"
    hostfile.write_text("# ours\nfirst slots=2\n\nsecond slots=4\n")
    several = LaunchConfig(hostfile=str(hostfile), runner_args=["--no_ssh"])
    words = command_line(several, stage, 1234)
    assert "deepspeed.launcher.runner" in words and "--no_ssh" in words
    assert hosts(str(hostfile)) == {"first": 2, "second": 4}
    assert num_ranks(several) == 6 and num_ranks(LaunchConfig(gpus=3)) == 3
    assert not can_fork(several)


def test_a_tracker_that_is_not_installed(remit: Any, tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorboard"):
        pytest.skip("tensorboard is installed")
    done = remit("pretrain-ckpt", "--config", "world-tiny", "report_to=[tensorboard]", cwd=tmp_path)
    assert done.returncode == 2 and "needs the package tensorboard" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_files_lie_beside_the_metrics(remit: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    remit("pretrain-ckpt", "--config", "world-tiny", "--run-dir", tmp_path / "run",
          "report_to=[tensorboard]", check=True)  # fmt: skip
    assert list((tmp_path / "run" / "base" / "tensorboard").glob("events.*"))
