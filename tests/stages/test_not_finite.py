"""A loss or gradient that is not finite on one rank stops all of them before the update."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from ranks import forked

from pipelines.run_dir.paths import StageDir, write_yaml


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
    tiny_run: Any, stage_env: dict[str, str], tmp_path: Path, stage: str, zero: int, poison: str
) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs 2 cores")
    spec = yaml.safe_load((tiny_run.root / "round-0" / stage / "config.yaml").read_text())
    section = spec["config"][spec["kind"]]
    # Two micro-batches a rank and step; the fourth is the second one of step 2.
    section |= {"zero_stage": zero, "micro_batch_size": section["global_batch_size"] // 4}
    folder = StageDir(tmp_path / "stage")
    write_yaml(spec | {"module": "spoilt"}, folder.config)
    ranks = forked(folder, 2, stage_env | {"REMIT_SPOILT": poison, "REMIT_SPOILT_AT": "4"})
    deadline = time.monotonic() + 240
    while (code := ranks.poll()) is None:
        assert time.monotonic() < deadline, folder.log.read_text()
        time.sleep(0.05)
    said = folder.log.read_text()
    assert code == 1, said
    assert "at step 2; the weights are still those of step 1" in said, said
    for rank in (0, 1):
        told = re.findall(rf"weights of {rank}: (\d+ -?\d+)", said)
        assert len(told) == 2 and told[0] == told[1], "no update since step 1"
    found = json.loads((folder.root / "not-finite.json").read_text())
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
