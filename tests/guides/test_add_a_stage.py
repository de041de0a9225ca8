"""docs/guides/add-a-stage.md: one row, one module and one section make a new kind of stage.

The guide is followed on a copy of the packages, and the kind goes through plan, identity, launch, a
kill, resume, status and report.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from following import Followed

SETTINGS = (
    "cool_down.enabled=true", "cool_down.max_steps=3", "cool_down.global_batch_size=8",
    "cool_down.logging_steps=1", "cool_down.sources={world: {kind: world, stream: sft}}",
    "sft.enabled=false", "dpo.enabled=false", "rlvr.enabled=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages with the new kind."""
    return Followed("add-a-stage", tmp_path_factory.mktemp("copy")).folder


@pytest.fixture(scope="module")
def call(copy: Path, cli_env: dict[str, str]) -> Any:
    def run(*words: str, code: int = 0, **env: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "remit_cli", *words], cwd=copy, check=False,
            env={k: v for k, v in cli_env.items() if k != "REMIT_FORK_SERVER"}
            | {"PYTHONPATH": str(copy)} | env,
            capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    return run


def test_a_stage_of_a_new_kind(call: Any, copy: Path, tiny_model: Path) -> None:
    command = (
        "post-train", "--config", "world-tiny", "--base", str(tiny_model), "--run-dir", "run",
        "--json", *SETTINGS,
    )  # fmt: skip
    planned = json.loads(call("plan", "--config", "world-tiny", "--json", *SETTINGS))
    (cost,) = [s for s in planned["stages"] if s["stage"] == "round-0/25-cool_down"]
    assert cost["kind"] == "cool_down" and cost["tokens"] > 0

    call(*command, code=1, REMIT_FAIL_AT="before model is renamed:kill-group")
    call(*command)
    call(*command)
    ledger = [json.loads(line) for line in (copy / "run" / "ledger.jsonl").open()]
    events = [e["event"] for e in ledger if e["stage"] == "post-train/25-cool_down"]
    assert events == ["start", "fail", "resume", "finish", "skip"]

    refused = call(*command, "cool_down.learning_rate=0.5", code=2)
    assert "cool_down.learning_rate" in json.loads(refused)["error"]
    status = json.loads(call("status", "run", "--json"))
    assert "post-train/25-cool_down" in json.dumps(status)
    call("report", "run", "--format", "json", "--output", "report.json")
    assert "Cool-down: loss" in (copy / "report.json").read_text()


def test_the_table_agrees_with_the_schema() -> None:
    from pipelines.plan import kinds
    from pipelines.recipe.schema import launch_sections, post_training_sections, trained_sections

    assert [name for _, name in kinds.POST_STEPS] == list(post_training_sections())
    assert {kind.name for kind in kinds.KINDS if kind.trains} == set(trained_sections())
    assert set(kinds.by_launch_key()) == set(launch_sections())
