"""Every gradient stage under ZeRO 1, 2 and 3, with the optimizer in CPU memory and activations
recomputed: the losses of the plain run, and a model that reloads to what was in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

STAGES = {
    "pretrain": "base", "mid_train": "round-0/10-mid-train", "sft": "round-0/20-sft",
    "dpo": "round-0/30-dpo", "rlvr": "round-0/40-rlvr",
}  # fmt: skip
# Together, each stage with each ZeRO stage; RLVR's 3 with offload needs vLLM and is refused.
ROTATIONS = [(1, 3, 2, 3, 2), (2, 1, 3, 2, 1), (3, 2, 1, 1, 3)]


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize(
    "zero", [ROTATIONS[0], *(pytest.param(r, marks=pytest.mark.all) for r in ROTATIONS[1:])]
)
def test_sharded_offloaded_recomputed(
    remit: Any, tiny_run: Any, tmp_path: Path, zero: tuple[int, ...]
) -> None:
    settings = []
    offloaded = {}
    for section, stage in zip(STAGES, zero, strict=True):
        offloaded[section] = not (section == "rlvr" and stage == 3)
        settings += [
            f"{section}.zero_stage={stage}",
            f"{section}.logging_steps=1",
            f"{section}.gradient_checkpointing=true",
            f"{section}.offload_optimizer={str(offloaded[section]).lower()}",
        ]
    remit(
        "flywheel", "--config", "world-tiny", "--iterations", "0", "--run-dir", tmp_path / "run",
        *settings, "--until", "round-0/40-rlvr", "eval.contamination=none",
        "eval.tasks.world.limit=10", "eval.bits_per_byte_tokens=200", check=True,
    )  # fmt: skip
    for (section, name), stage in zip(STAGES.items(), zero, strict=True):
        folder = tmp_path / "run" / name
        result = json.loads((folder / "result.json").read_text())
        assert (result["zero_stage"], result["engine"]) == (stage, "DeepSpeedEngine"), section
        assert result["offload_optimizer"] == offloaded[section], section
        assert result["reload_logits_difference"] < 1e-4, section
        if section != "rlvr":
            plain = losses(tiny_run.root / name)
            assert len(plain) > 2 and losses(folder) == pytest.approx(plain, rel=1e-3), section


def test_offload_needs_zero(remit: Any, tmp_path: Path) -> None:
    args = ("sft.zero_stage=0", "sft.offload_optimizer=true")
    done = remit("flywheel", "--config", "world-tiny", *args, cwd=tmp_path)
    assert done.returncode == 2 and "set sft.zero_stage to 1, 2 or 3" in done.stderr
