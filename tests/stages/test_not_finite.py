"""A loss or gradient that is not finite on one rank stops all of them before the update."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.machine.process import free_port

# A rank of a stage, whose loss or gradient is spoilt at one micro-batch of rank 1. It prints the
# sum over its weights' bits after each step, and at the end.
RANK = """
import os, sys
from pathlib import Path
import torch
import deepspeed
from accelerate import Accelerator
from transformers import TrainerCallback
from pipelines.training import engine
from pipelines.run_dir.paths import StageDir
from pipelines.worker.worker import run_rank

poison, at = sys.argv[2], int(sys.argv[3])
backward, train = Accelerator.backward, engine.train
calls = 0

def spoilt(self, loss, **kwargs):
    global calls
    calls += 1
    if calls == at and os.environ["RANK"] == "1":
        if poison == "loss":
            loss = loss * float("nan")
        else:
            loss.register_hook(lambda gradient: gradient * float("inf"))
    backward(self, loss, **kwargs)

def bits(trainer):
    total = 0
    for p in trainer.model.parameters():
        with deepspeed.zero.GatheredParameters([p], enabled=hasattr(p, "ds_id")):
            total += int(p.detach().float().contiguous().view(torch.int32).long().sum())
    print("weights", trainer.state.global_step, total, flush=True)

class Bits(TrainerCallback):
    def on_step_end(self, *args, **kwargs):
        bits(self.trainer)

def watched(trainer, *args):
    callback = Bits()
    callback.trainer = trainer
    trainer.add_callback(callback)
    try:
        train(trainer, *args)
    except FloatingPointError:
        bits(trainer)
        raise

Accelerator.backward, engine.train = spoilt, watched
sys.exit(run_rank(StageDir(Path(sys.argv[1]))))
"""


@pytest.mark.parametrize(
    ("stage", "zero", "poison"),
    [
        ("10-mid-train", 2, "loss"),
        ("20-sft", 3, "gradient"),
        ("30-dpo", 0, "loss"),
        ("40-rlvr", 1, "loss"),
    ],
)
def test_poison_on_one_rank_stops_both_before_the_update(
    tiny_run: Any, cli_env: dict[str, str], tmp_path: Path, stage: str, zero: int, poison: str
) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs 2 cores")
    spec = yaml.safe_load((tiny_run.root / "round-0" / stage / "config.yaml").read_text())
    section = spec["config"][spec["kind"]]
    # Two micro-batches a rank and step; the fourth is the second one of step 2.
    section |= {"zero_stage": zero, "micro_batch_size": section["global_batch_size"] // 4}
    folder = tmp_path / "stage"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(spec))
    (tmp_path / "rank.py").write_text(RANK)
    shared = {
        "WORLD_SIZE": "2", "LOCAL_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1",
        "TORCH_EXTENSIONS_DIR": str(Path(sys.prefix) / "torch_extensions"),
        "PATH": f"{Path(sys.executable).parent}:{cli_env['PATH']}",
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "rank.py"), str(folder), poison, "4"],
            env=cli_env | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    outputs = [rank.communicate(timeout=240)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1, 1], outputs[0]
    for output in outputs:
        assert "at step 2; the weights are still those of step 1" in output, output
        told = [line.split()[1:] for line in output.splitlines() if line.startswith("weights ")]
        assert len(told) == 2 and told[0] == told[1], "no update since step 1"
    found = json.loads((folder / "not-finite.json").read_text())
    assert found["step"] == 2 and [rank["rank"] for rank in found["ranks"]] == [0, 1]
    bad = [
        (rank["rank"], number)
        for rank in found["ranks"]
        for number, part in enumerate(rank["micro_batches"])
        if part["loss"] == "nan"
    ]
    assert bad == ([(1, 1)] if poison == "loss" else [])
    rows = [part["rows"] for rank in found["ranks"] for part in rank["micro_batches"]]
    assert len(rows) == 4 and all(rows)
    if stage == "10-mid-train":
        from pipelines.training.mid_trainer import SequenceOrder

        # Step 2 has the sequences 8 to 15 of the seeded order.
        order = list(SequenceOrder(160, 0, begin=lambda: 0))
        assert sorted(row for part in rows for row in part) == sorted(order[8:16])
