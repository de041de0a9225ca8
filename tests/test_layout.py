"""A run directory of another version is refused by name, wherever one is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import __version__
from pipelines.errors import UserError
from pipelines.models.checkpoint import find_checkpoint, stage_kind
from pipelines.plan.flywheel import plan_flywheel
from pipelines.plan.plan_file import write_plan
from pipelines.recipe import load as recipes
from pipelines.run_dir import ledger
from pipelines.run_dir.layout import check_layout
from pipelines.run_dir.paths import RunDir, write_json, write_yaml

OLD = {"name": "old", "context_length": 128, "mid_train": {"eps": 0.2, "global_batch": 8}}


@pytest.fixture(params=["flywheel", "stage"])
def old_run(request: Any, tmp_path: Path, tiny_model: Path) -> Path:
    """What remit 0.1 left: a flywheel with its plan, or one stage alone; a base in it."""
    run = RunDir(tmp_path / "old")
    base = run.stage("base")
    base.root.mkdir(parents=True)
    base.model.symlink_to(tiny_model)
    ledger.append(run.ledger, "start", "base", kind="pretrain")
    write_yaml({"config": OLD, "inputs": {}, "identity_fields": {}, "stage": "base"}, base.config)
    write_json(base.result, {"kind": "pretrain", "seconds": 1.0, "loss_first": 2.0,
                             "loss_last": 1.0})  # fmt: skip
    if request.param == "flywheel":
        stages = [{"name": "base", "kind": "pretrain", "inputs": {}}]
        write_yaml({"config": OLD, "stages": stages}, run.flywheel_plan)
    return run.root


def test_an_old_run_directory_is_refused(old_run: Path) -> None:
    with pytest.raises(UserError) as error:
        check_layout(RunDir(old_run))
    said = str(error.value)
    assert said.startswith(f"{old_run} was made by remit before 0.2, and this is remit ")
    assert "--run-dir" in said and f"--base {old_run}/base" in said


def test_by_every_command(remit: Callable[..., Any], old_run: Path) -> None:
    before = sorted(old_run.rglob("*"))
    tiny = ("--config", "world-tiny", "--run-dir")
    for command in (
        ("flywheel", *tiny, old_run), ("plan", *tiny, old_run), ("analyze", old_run),
        ("rl-tune", "--base", old_run / "base", *tiny, old_run), ("status", old_run),
        ("report", old_run), ("compare", "--base", old_run / "base", *tiny, old_run,
                              "compare.arms=[ntp]"),
    ):  # fmt: skip
        done = remit(*command)
        assert done.returncode == 2, (command, done.stderr)
        assert "was made by remit before 0.2" in done.stderr, (command, done.stderr)
    assert sorted(old_run.rglob("*")) == before


def test_its_models_can_be_given(old_run: Path) -> None:
    found = find_checkpoint(str(old_run / "base"), "--base")
    assert found.folder is not None and stage_kind(found) == "pretrain"


def test_a_later_layout_is_named_by_its_version(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write_yaml({"remit": "9.1.0", "layout": 9, "config": {}, "stages": []}, run.flywheel_plan)
    with pytest.raises(UserError, match=r"made by remit 9\.1\.0"):
        check_layout(run)


def test_what_this_version_writes_is_read(tmp_path: Path) -> None:
    run, config = RunDir(tmp_path / "run"), recipes.load("world-tiny")
    check_layout(run)
    write_plan(run.flywheel_plan, config, plan_flywheel(config, None, None))
    check_layout(run)
    written = RunDir.read_plan(run.flywheel_plan)
    assert (written["remit"], written["layout"]) == (__version__, 2)
    assert json.dumps(written["config"])
