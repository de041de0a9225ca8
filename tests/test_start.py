"""How a stage is started changes nothing that it computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.launch import can_fork, command_line, hosts, num_ranks
from pipelines.run_dir import StageDir
from pipelines.schema import LaunchConfig


def test_started_directly_the_weights_are_those_of_the_forked_stage(
    remit: Any, tiny_run: Any, tmp_path: Path
) -> None:
    # A single-stage command starts an interpreter; a flywheel forks its stages.
    remit("pretrain-ckpt", "--config", "world-tiny", "--run-dir", tmp_path / "run", check=True)
    direct, forked = (
        (root / "base" / "model" / "model.safetensors").read_bytes()
        for root in (tmp_path / "run", tiny_run.root)
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
    assert not can_fork(several) and not can_fork(LaunchConfig(gpus=2))
