"""Checkpoints as files: damaged markers, names that are not ours, markers of other settings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.errors import UserError
from pipelines.models.checkpoint import ModelRef, file_sha256
from pipelines.plan.flywheel import plan_base, plan_flywheel
from pipelines.plan.identity import check_unchanged, digest, identity_fields, stage_fields
from pipelines.plan.preflight import check_splits
from pipelines.plan.stage import Stage
from pipelines.recipe.load import load
from pipelines.run_dir import ledger
from pipelines.run_dir.markers import read_marker
from pipelines.run_dir.paths import RunDir, StageDir, write_yaml
from pipelines.run_dir.resume_state import MARKER, changed_versions, write_checkpoint_marker
from pipelines.training.callbacks import SpaceCheck, newest_checkpoint


def save(stage_dir: StageDir, step: int) -> Path:
    """A checkpoint of one rank under ZeRO-2."""
    folder = stage_dir.checkpoints / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    state = folder / "state.pt"
    state.write_bytes(bytes([step]) * 100)
    split = {"world_size": 1, "zero_stage": 2}
    files = {state.name: [100, file_sha256(state)]}
    write_checkpoint_marker(folder, stage_dir, split, files)
    return folder


def start_as(stage_dir: StageDir, *overrides: str) -> list[Stage]:
    """Write `config.yaml` as a command with these overrides does; its plan."""
    stages = plan_base(load("world-tiny", list(overrides)), None)
    fields = identity_fields("pretrain", stages[0].config, {})
    spec = {"config": {}, "inputs": {}, "identity": digest(fields), "identity_fields": fields,
            "layout": 2}  # fmt: skip
    write_yaml(spec, stage_dir.config)
    return stages


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.root.mkdir(mode=0o700)
    run.ledger.touch()
    return run


@pytest.fixture
def stage_dir(run: RunDir) -> StageDir:
    """A begun base with two checkpoints, of steps 5 and 10."""
    begun = run.stage("base")
    begun.root.mkdir(mode=0o700)
    start_as(begun)
    save(begun, 5)
    save(begun, 10)
    return begun


def change(**values: Any) -> Callable[[str], str]:
    return lambda text: json.dumps(json.loads(text) | values)


DAMAGES: dict[str, Callable[[str], str]] = {
    "cut off": lambda text: text[:100],
    "empty": lambda text: "",
    "a list": lambda text: f"[{text}]",
    "no files": lambda text: text.replace('"files"', '"filds"'),
    "another world size": lambda text: text.replace('"world_size": 1', '"world_size": 3'),
    "another step": change(step=15),
    "a list of files": change(files=["state.pt"]),
    "files without facts": change(files={"state.pt": None}),
    "words for numbers": change(world_size="one"),
    "another version": change(versions={"torch": "0"}),
    "another checksum": change(checksum="0"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_marker_is_named_and_the_checkpoint_before_it_used(
    name: str, run: RunDir, stage_dir: StageDir, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = stage_dir.checkpoints / "checkpoint-10"
    whole = (newest / MARKER).read_text()
    (newest / MARKER).write_text(DAMAGES[name](whole))
    assert (newest / MARKER).read_text() != whole
    # The command looks first, and reads no other file of a checkpoint.
    check_splits(plan_base(load("world-tiny", []), None), run)
    assert changed_versions(stage_dir) == []
    assert newest_checkpoint(stage_dir, 2) == stage_dir.checkpoints / "checkpoint-5"
    assert f"removing checkpoint {newest}: it is damaged" in capsys.readouterr().out
    assert not newest.exists()


@pytest.mark.parametrize(
    "content",
    [bytes([10]) * 99 + b"x", bytes([10]) * 99, None],
    ids=["a byte changed", "a byte missing", "no file"],
)
def test_a_checkpoint_with_another_content_is_not_resumed(
    content: bytes | None, stage_dir: StageDir
) -> None:
    state = stage_dir.checkpoints / "checkpoint-10" / "state.pt"
    assert newest_checkpoint(stage_dir, 2) == state.parent
    state.unlink()
    if content is not None:
        state.write_bytes(content)
    assert newest_checkpoint(stage_dir, 2) == stage_dir.checkpoints / "checkpoint-5"


@pytest.mark.parametrize("values", [{"files": []}, {"files": {"state.pt": [100]}}, {"step": True}])
def test_types_count_without_a_checksum_too(values: dict[str, Any], stage_dir: StageDir) -> None:
    marker = stage_dir.checkpoints / "checkpoint-10" / MARKER
    facts = json.loads(marker.read_text())
    del facts["checksum"]
    marker.write_text(json.dumps(facts))
    assert newest_checkpoint(stage_dir, 2) == marker.parent
    marker.write_text(json.dumps(facts | values))
    assert newest_checkpoint(stage_dir, 2) == stage_dir.checkpoints / "checkpoint-5"


def test_other_names_are_neither_loaded_nor_removed(
    run: RunDir, stage_dir: StageDir, tmp_path: Path
) -> None:
    own = stage_dir.checkpoints
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    elsewhere = Path(shutil.copytree(own / "checkpoint-10", tmp_path / "elsewhere" / "moved"))
    for name in ("checkpoint-15.bak", "checkpoint-99-copy", "checkpoint-", "checkpoint-x", "notes"):
        shutil.copytree(own / "checkpoint-10", own / name)
    (own / "checkpoint-7.tmp").mkdir()
    (own / "checkpoint-20").touch()
    (own / "checkpoint-25").symlink_to(elsewhere)
    (own / "checkpoint-30").symlink_to(tmp_path / "nowhere")
    before = {path.name for path in own.iterdir()}
    # One that was begun is no one else's.
    (own / "checkpoint-12").mkdir()
    check_splits(plan_base(load("world-tiny", []), None), run)
    assert newest_checkpoint(stage_dir, 2) == own / "checkpoint-10"
    assert {path.name for path in own.iterdir()} == before
    assert (elsewhere / MARKER).is_file()


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_save_into_something_else_is_refused(kind: str, stage_dir: StageDir) -> None:
    from transformers import TrainerControl, TrainerState

    place = stage_dir.checkpoints / "checkpoint-15"
    place.touch() if kind == "file" else place.symlink_to("checkpoint-10")
    arguments: Any = None
    with pytest.raises(UserError, match=r"checkpoint-15 is a file or a link.*Move it elsewhere"):
        SpaceCheck(stage_dir).on_step_end(
            arguments, TrainerState(global_step=15), TrainerControl(should_save=True),
            torch.nn.Linear(1, 1),
        )  # fmt: skip


def test_a_checkpoint_of_other_settings_is_refused_by_name(
    run: RunDir, stage_dir: StageDir
) -> None:
    # As a user does who is told that the file is damaged.
    stage_dir.config.unlink()
    check_unchanged(plan_base(load("world-tiny", []), None), run)
    changed = plan_base(load("world-tiny", ["pretrain.learning_rate=0.5"]), None)
    with pytest.raises(UserError, match=r"pretrain\.learning_rate: [0-9.e-]+ -> 0\.5"):
        check_unchanged(changed, run)
    # And the ranks, whatever wrote their config.
    start_as(stage_dir, "pretrain.learning_rate=0.5")
    with pytest.raises(UserError, match=r"checkpoint-10 was saved .*\(pretrain\.learning_rate\)"):
        newest_checkpoint(stage_dir, 2)
    start_as(stage_dir)
    assert newest_checkpoint(stage_dir, 2) == stage_dir.checkpoints / "checkpoint-10"


def refused(stages: list[Stage], run: RunDir) -> str:
    with pytest.raises(UserError) as error:
        check_unchanged(stages, run)
    return str(error.value)


def begin(run: RunDir, stages: list[Stage]) -> None:
    """Write the folders of stages as a command does that starts them."""
    for stage in stages:
        read = {role: str(run.stage(str(of)).model) for role, of in stage.inputs.items()}
        inputs = {role: {"path": path, "sha256": "a"} for role, path in read.items()}
        fields = stage_fields(stage, dict.fromkeys(inputs, "a"), {})
        spec = {"config": {}, "kind": stage.kind, "run_dir": str(run.root), "inputs": inputs,
                "identity": digest(fields), "identity_fields": fields, "layout": 2}  # fmt: skip
        run.stage(stage.name).root.mkdir(parents=True)
        write_yaml(spec, run.stage(stage.name).config)
        ledger.append(run.ledger, "start", stage.name, kind=stage.kind)


def test_a_refusal_lists_the_stages_that_used_the_model(run: RunDir) -> None:
    def plan(*overrides: str) -> list[Stage]:
        return plan_flywheel(load("world-tiny", ["flywheel.iterations=1", *overrides]), None, None)

    made = [stage.name for stage in plan()]
    part = made[: made.index("round-1/20-sft") + 1]
    begin(run, [stage for stage in plan() if stage.name in part])
    run.stage("round-0/20-sft").result.touch()

    def removed(said: str) -> list[str]:
        return [path.removeprefix(f"{run.root}/") for path in said.partition("rm -r ")[2].split()]

    said = refused(plan("mid_train.learning_rate=0.5"), run)
    assert f"{run.root}/round-0/10-mid-train was made with other settings (mid_train.lear" in said
    assert "To resume it, give the old values. Or use another --run-dir for this" in said
    assert "remove it and the stages that used its model or changed with it" in said
    assert sorted(removed(said)) == [name for name in sorted(part) if name.startswith("round-")]
    said = refused(plan("sft.learning_rate=0.5"), run)
    assert "To keep it, give the old values" in said
    assert removed(said)[0] == "round-0/20-sft" and "round-0/15-eval" not in removed(said)
    assert {"round-1/10-mid-train", "round-1/20-sft"} <= set(removed(said))


def test_a_refusal_of_a_single_stage(run: RunDir) -> None:
    def plan(*overrides: str) -> list[Stage]:
        return [Stage("rlvr", "rl-tune", load("world-tiny", list(overrides)), {"model": "base"})]

    begin(run, plan())
    said = refused(plan("seed=7"), run)
    assert "(seed: 0 -> 7). To resume it, give the old values. Or use another --run-dir or " in said
    assert said.endswith(
        f"stage.name=... for this command. To run it again, remove it: rm -r {run.root}/rl-tune"
    )
    keys = ("beta", "epsilon", "learning_rate", "temperature", "warmup_ratio", "weight_decay")
    said = refused(plan("seed=7", *(f"rlvr.{key}=0.125" for key in keys)), run)
    assert said.count(" -> ") == 5 and "; and 2 more (see config.yaml))" in said


def test_a_refusal_of_another_kind_of_base(run: RunDir, stage_dir: StageDir) -> None:
    config = replace(load("world-tiny", []), base="my/model")
    imported = plan_base(config, ModelRef("my/model", stage_dir.root))
    said = refused(imported, run)
    assert f"{stage_dir.root} was trained from scratch, and this command imports --base my/" in said
    assert " -> " not in said


def test_a_marker_says_what_the_stage_was_started_as(stage_dir: StageDir) -> None:
    marker = stage_dir.checkpoints / "checkpoint-5" / MARKER
    spec = stage_dir.read_config()
    read = read_marker(marker, {"step": int, "identity": str, "identity_fields": dict})
    assert (read["step"], read["identity"]) == (5, spec["identity"])
    assert read["identity_fields"] == spec["identity_fields"]
