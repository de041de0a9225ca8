"""RLVR's rollouts follow the recipe, whatever the model says of generation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any


def test_what_a_model_says_of_generation_changes_no_rollout(
    remit: Any, tiny_model: Path, tmp_path: Path
) -> None:
    steered = Path(shutil.copytree(tiny_model, tmp_path / "steered"))
    said = json.loads((steered / "generation_config.json").read_text())
    said |= {"suppress_tokens": list(range(5, 30)), "min_new_tokens": 8}
    (steered / "generation_config.json").write_text(json.dumps(said))
    logs = []
    for name, model in (("plain", tiny_model), ("other", steered)):
        stage = tmp_path / name / "rl-tune"
        remit("rl-tune", "--base", model, "--config", "world-tiny", "rlvr.max_steps=2",
              "--run-dir", tmp_path / name, check=True)  # fmt: skip
        lines = [json.loads(line) for line in (stage / "metrics.jsonl").open()]
        keys = ("loss", "reward", "entropy", "completions/mean_length", "grad_norm")
        logs.append([[line[key] for key in keys] for line in lines if "loss" in line])
    assert logs[0] == logs[1] and len(logs[0]) == 2
    exported = json.loads((stage / "model" / "generation_config.json").read_text())
    assert said.items() <= exported.items(), "the model keeps what it says"


def test_prompts_above_their_length_are_left_out(
    remit: Any, tiny_model: Path, tmp_path: Path
) -> None:
    dropped, rewards = {}, {}
    # 128 less 16 for the completion: the default.
    for length in (0, 112, 24):
        folder = tmp_path / str(length)
        remit("rl-tune", "--base", tiny_model, "--config", "world-tiny", "rlvr.max_steps=2",
              "rlvr.max_completion_length=16", f"rlvr.max_prompt_length={length}",
              "--run-dir", folder, check=True)  # fmt: skip
        result = json.loads((folder / "rl-tune" / "result.json").read_text())
        dropped[length], rewards[length] = result["prompts_too_long"], result["model_sha256"]
    assert dropped == {0: 0, 112: 0, 24: 1}
    assert rewards[0] == rewards[112]
