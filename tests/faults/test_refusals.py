"""Before a stage starts: another split, other numerics, other packages, damaged models, no room."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.errors import UserError
from pipelines.models.checkpoint import check_made_model, content_hash
from pipelines.plan.estimate import bytes_to_write, estimate
from pipelines.plan.flywheel import plan_base, plan_flywheel
from pipelines.plan.preflight import check_disk
from pipelines.recipe.load import load
from pipelines.run_dir import ledger
from pipelines.run_dir.paths import RunDir
from pipelines.run_dir.resume_state import package_versions

BASE = ("pretrain-ckpt", "--config", "world-tiny")
Remit = Callable[..., Any]


@pytest.fixture
def begun(tiny_run: Any, tmp_path: Path) -> Path:
    """A base that was begun, with one complete checkpoint of two ranks under ZeRO-3."""
    run = tmp_path / "tiny"
    shutil.copytree(tiny_run.root / "base", run / "base")
    (run / "base" / "result.json").unlink()
    checkpoint = run / "base" / "checkpoints" / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    versions = package_versions() | {"torch": "0.0.1"}
    marker = {"step": 5, "world_size": 2, "zero_stage": 3, "versions": versions, "files": {}}
    (checkpoint / "complete.json").write_text(json.dumps(marker))
    return run


def test_another_split_is_refused_before_the_stage_starts(begun: Path, remit: Remit) -> None:
    before = sorted(begun.rglob("*"))
    done = remit(*BASE, "--run-dir", begun)
    assert done.returncode == 2
    for words in ("checkpoint-5", "2 ranks with ZeRO-3", "1 ranks with ZeRO-2", "--gpus 2",
                  "pretrain.zero_stage=3", "checkpoints"):  # fmt: skip
        assert words in done.stderr
    assert sorted(begun.rglob("*")) == before


def test_other_package_versions_are_warned_of(
    begun: Path, tiny_run: Any, tmp_path: Path, remit: Remit
) -> None:
    result = json.loads((tiny_run.root / "base" / "result.json").read_text())
    result["environment"]["versions"]["deepspeed"] = "0.0.2"
    (begun / "base" / "result.json").write_text(json.dumps(result))
    done = remit(*BASE, "--run-dir", begun, check=True)
    assert "warning: package versions have changed since base: deepspeed 0.0.2 -> " in done.stderr
    (begun / "base" / "result.json").unlink()
    split = ("--gpus", "1", "pretrain.zero_stage=2")
    marker = begun / "base" / "checkpoints" / "checkpoint-5" / "complete.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"world_size": 1,
                                                                   "zero_stage": 2}))  # fmt: skip
    from pipelines.plan.preflight import version_warnings

    stages = plan_base(load("world-tiny", list(split[2:])), None)
    (warning,) = version_warnings(stages, RunDir(begun))
    assert "since base: torch 0.0.1 -> " in warning


def test_other_numerics_are_refused_by_name(begun: Path, tiny_run: Any, remit: Remit) -> None:
    path = begun / "base" / "config.yaml"
    spec = yaml.safe_load(path.read_text())
    spec["identity_fields"]["numerics version"] = 0
    path.write_text(yaml.safe_dump(spec))
    done = remit(*BASE, "--run-dir", begun, "--gpus", "1")
    assert done.returncode == 2 and "numerics version: 0 -> 1" in done.stderr


def test_a_damaged_model_of_a_complete_stage_is_refused_and_can_be_mended(
    tiny_run: Any, tmp_path: Path, remit: Remit
) -> None:
    shutil.copytree(tiny_run.root, tmp_path / "tiny")
    model = tmp_path / "tiny" / "base" / "model"
    weights = model / "model.safetensors"
    whole, stat = weights.read_bytes(), weights.stat()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    done = remit(*tiny_run.args, cwd=tmp_path)
    assert done.returncode == 2
    for words in (
        str(model),
        "has changed since its stage wrote it",
        str(model.parent / "result.json"),
    ):
        assert words in done.stderr
    # As an input of a single-stage command too.
    alone = remit("eval", "--config", "world-tiny", "--model", model.parent, "--run-dir",
                  tmp_path / "other")  # fmt: skip
    assert alone.returncode == 2 and "has changed since its stage wrote it" in alone.stderr
    weights.write_bytes(whole)
    assert weights.stat().st_size == stat.st_size
    check_made_model(model, content_hash(model))


def test_a_plan_that_cannot_fit_is_refused(tmp_path: Path, remit: Remit) -> None:
    huge = (
        "model.hidden_size=1048576",
        "model.intermediate_size=4194304",
        "model.num_hidden_layers=64",
    )
    done = remit(*BASE, "--run-dir", tmp_path / "run", *huge)
    assert done.returncode == 2
    assert re.search(r"the plan writes up to \d+ bytes more .* has \d+ bytes .* free", done.stderr)
    assert not (tmp_path / "run").exists()


def test_what_is_on_the_disk_already_counts(tiny_run: Any, tmp_path: Path) -> None:
    config = load("world-tiny", ["pretrain.save_total_limit=3"])
    stages, run = plan_base(config, None), RunDir(tmp_path / "run")
    predicted = estimate(stages, run, None)
    (base,) = predicted.stages
    anew = bytes_to_write(predicted, stages, run)
    # fp32: a checkpoint is 20 bytes a parameter; the packed set 4 a token.
    model, checkpoint = 4 * predicted.parameters, 20 * predicted.parameters
    assert anew == 2 * model + 3 * checkpoint + checkpoint + 4 * config.pretrain.tokens
    assert (base.disk_bytes, base.passing_bytes) == (2 * model + 3 * checkpoint, checkpoint)
    half = run.stage("base").root / "checkpoints" / "file"
    half.parent.mkdir(parents=True)
    half.write_bytes(bytes(1000))
    assert bytes_to_write(estimate(stages, run, None), stages, run) == anew - 1000
    made = RunDir(tiny_run.root)
    flywheel = plan_flywheel(load("world-tiny", ["flywheel.iterations=1"]), None, None)
    assert bytes_to_write(estimate(flywheel, made, None), flywheel, made) < anew / 100


def test_a_disk_without_room_names_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = plan_base(load("world-tiny", []), None)
    monkeypatch.setattr("pipelines.plan.preflight.free_bytes", lambda folder: 12_345)
    with pytest.raises(UserError, match=r"up to \d{6,7} bytes more .* 12345 bytes \(12.3kB\) free"):
        check_disk(stages, RunDir(tmp_path / "run"))


@pytest.mark.parametrize(
    ("instant", "words"),
    [
        ("half a ledger line:no-space", r"its disk has \d+ bytes .* free"),
        ("before a file is renamed:read-only", "its file system is read-only"),
        ("a day off", "unknown fail point"),
    ],
)
def test_a_command_that_cannot_write_says_why(
    instant: str, words: str, tmp_path: Path, remit: Remit
) -> None:
    run = tmp_path / "run"
    done = remit(*BASE, "--run-dir", run, env={"REMIT_FAIL_AT": instant})
    assert done.returncode == 2 and re.search(words, done.stderr)
    assert "Traceback" not in done.stderr
    assert not [entry["event"] for entry in ledger.read(run / "ledger.jsonl")]
