"""A shell script chains the single-stage commands in one run directory; run twice, once done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = r"""#!/usr/bin/env bash
set -euo pipefail
remit() { PYTHON -m remit_cli "$@"; }
run=runs/chain
small=(--config world-tiny --run-dir "$run" sequence_length=64)

remit pretrain-ckpt "${small[@]}" pretrain.tokens=2048
remit mid-train --base "$run/base" "${small[@]}" mid_train.tokens=2048
remit post-train --base "$run/mid-train" "${small[@]}" sft.max_steps=2 dpo.enabled=false \
    rlvr.enabled=false
remit rl-tune --base "$run/post-train/20-sft" "${small[@]}" rlvr.max_steps=2 \
    rlvr.global_batch_size=8
remit mid-train --base "$run/base" --ref "$run/rl-tune" "${small[@]}" stage.name=remit \
    mid_train.tokens=1024 mid_train.remit.eps=0.1
remit eval --model "$run/mid-train-remit" "${small[@]}" --json eval.tasks.world.limit=20 \
    eval.tasks.world.max_new_tokens=4 eval.bits_per_byte_tokens=500 > eval.json
"""
STAGES = ["base", "mid-train", "post-train/20-sft", "rl-tune", "mid-train-remit", "eval"]
INPUTS = {
    "base": {},
    "mid-train": {"base": "base"},
    "post-train/20-sft": {"model": "mid-train"},
    "rl-tune": {"model": "post-train/20-sft"},
    "mid-train-remit": {"base": "base", "ref": "rl-tune"},
    "eval": {"model": "mid-train-remit"},
}


def test_chain_run_twice(stage_env: dict[str, str], tmp_path: Path) -> None:
    # No variable names it: the fork server takes only stages of its own environment.
    (tmp_path / "chain.sh").write_text(SCRIPT.replace("PYTHON", sys.executable))
    run = tmp_path / "runs" / "chain"

    def chain() -> list[dict[str, Any]]:
        done = subprocess.run(
            ["bash", "chain.sh"], cwd=tmp_path, env=stage_env, timeout=900,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        assert "\x1b" not in done.stdout + done.stderr
        return [json.loads(line) for line in (run / "ledger.jsonl").open()]

    first = chain()
    assert [(e["event"], e["stage"]) for e in first] == [
        (event, name) for name in STAGES for event in ("start", "finish")
    ]
    finished = {e["stage"]: e for e in first if e["event"] == "finish"}
    for entry in first[::2]:
        made_by = INPUTS[entry["stage"]]
        assert entry["inputs"] == {
            role: {"path": str(run / maker / "model"), "sha256": finished[maker]["model_sha256"]}
            for role, maker in made_by.items()
        }
    assert finished["mid-train"]["objective"] == "ntp"
    assert finished["mid-train-remit"]["objective"] == "remit"
    assert finished["mid-train-remit"]["tokens"] == 1024
    evaluated = json.loads((tmp_path / "eval.json").read_text())
    assert evaluated["status"] == "done" and list(evaluated["stages"]) == ["eval"]
    assert sum(t["questions"] for t in evaluated["scores"]["eval"]["tasks"].values()) == 20

    times = {name: os.stat(run / name / "result.json").st_mtime_ns for name in STAGES}
    second = chain()
    assert second[: len(first)] == first
    assert [(e["event"], e["stage"]) for e in second[len(first) :]] == [
        ("skip", name) for name in STAGES
    ]
    assert {name: os.stat(run / name / "result.json").st_mtime_ns for name in STAGES} == times
    again = json.loads((tmp_path / "eval.json").read_text())
    assert again["scores"] == evaluated["scores"]
