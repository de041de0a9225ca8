"""Trainer callbacks of every gradient stage: metrics, snapshots, and checkpoints with a marker."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainerState

from pipelines.errors import DamagedFile, UserError
from pipelines.models.checkpoint import file_sha256
from pipelines.run_dir import heartbeat, resume_state
from pipelines.run_dir.disk import require_space
from pipelines.run_dir.fail_points import fail_point
from pipelines.run_dir.ownership import check_resume_state, make_private
from pipelines.run_dir.paths import SNAPSHOT_FACTS, StageDir, fsync_dir, write_json
from pipelines.training.ranks import barrier, is_main_rank, replaced, world_size

# Optimizer state per parameter in a checkpoint: fp32 master weight and two moments.
OPTIMIZER_BYTES = 12


class MetricsWriter(TrainerCallback):
    """Appends one line to `metrics.jsonl` for each log of the trainer, on the main rank."""

    def __init__(self, stage_dir: StageDir) -> None:
        self.path = stage_dir.metrics
        self.started = time.time()

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self.started = time.time()
        self._write(state, {"event": "begin"})

    def on_log(
        self, args: Any, state: TrainerState, control: Any, *, logs: dict[str, Any], **_: Any
    ) -> None:
        numbers = [
            (key, value) for key, value in logs.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        ]  # fmt: skip
        self._write(state, {k: v if math.isfinite(v) else str(v) for k, v in numbers})

    def _write(self, state: TrainerState, values: dict[str, Any]) -> None:
        if not state.is_world_process_zero:
            return
        now = time.time()
        line = {
            "step": state.global_step,
            "max_steps": state.max_steps,
            "time": round(now, 3),
            "elapsed": round(now - self.started, 3),
            **values,
        }
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


class SnapshotWriter(TrainerCallback):
    """Saves `count` models at evenly spaced steps before the last; all ranks must take part."""

    def __init__(
        self, trainer: Trainer, stage_dir: StageDir, tokenizer: PreTrainedTokenizerBase, count: int
    ) -> None:
        self.trainer = trainer
        self.stage_dir = stage_dir
        self.tokenizer = tokenizer
        self.count = count

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        for number in range(1, self.count + 1):
            if state.global_step == round(number * state.max_steps / (self.count + 1)):
                self._write(number, state.global_step, state.is_world_process_zero)

    def _write(self, number: int, step: int, is_main: bool) -> None:
        heartbeat.beat(heartbeat.SAVING)
        with replaced(self.stage_dir.snapshot(number)) as folder:
            self.trainer.save_model(str(folder))
            if is_main:
                self.tokenizer.save_pretrained(folder)
                (folder / "training_args.bin").unlink(missing_ok=True)
                write_json(folder / SNAPSHOT_FACTS, {"step": step})


class SpaceCheck(TrainerCallback):
    """Stops before a save if the disk is too full or the checkpoint's name is taken.

    It must be the last callback, after all that may ask for a save. Only the main rank checks; the
    launcher then ends the others.
    """

    def __init__(self, stage_dir: StageDir) -> None:
        self.checkpoints = stage_dir.checkpoints

    def on_step_end(
        self, args: Any, state: TrainerState, control: Any, model: Any, **_: Any
    ) -> None:
        if control.should_save and state.is_world_process_zero:
            needed = model_bytes(model) + OPTIMIZER_BYTES * num_parameters(model)
            what = f"a checkpoint at step {state.global_step}"
            place = self.checkpoints / f"checkpoint-{state.global_step}"
            if place.is_symlink() or place.is_file():
                raise UserError(
                    f"{place} is a file or a link, but {what} must be written there. Move it "
                    "elsewhere, and run the command again."
                )
            require_space(self.checkpoints, needed, what)


def num_parameters(model: torch.nn.Module) -> int:
    """Number of parameters of a model; under ZeRO-3, of the whole model and not of one shard."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())


def model_bytes(model: torch.nn.Module) -> int:
    """Bytes of a model's weights; under ZeRO-3, of the whole model and not of one shard."""
    return sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in model.parameters())


class CheckpointMarker(TrainerCallback):
    """Writes the marker that completes a checkpoint, after all ranks have saved.

    A checkpoint without a marker does not count. Older ones are removed only afterwards.
    """

    def __init__(self, stage_dir: StageDir, keep: int) -> None:
        self.stage_dir = stage_dir
        self.checkpoints = stage_dir.checkpoints
        self.keep = keep

    def on_save(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        barrier()
        if state.is_world_process_zero:
            fail_point("all ranks saved, before the marker")
            folder = self.checkpoints / f"checkpoint-{state.global_step}"
            files = sorted(p for p in folder.rglob("*") if p.is_file())
            # Flush them, so that after a power loss no marker exists without its files.
            for path in files:
                with open(path, "rb") as stream:
                    os.fsync(stream.fileno())
            zero_stage = args.deepspeed["zero_optimization"]["stage"]
            resume_state.write_checkpoint_marker(
                folder,
                self.stage_dir,
                {"world_size": args.world_size, "zero_stage": zero_stage},
                {str(p.relative_to(folder)): [p.stat().st_size, file_sha256(p)] for p in files},
            )
            fsync_dir(self.checkpoints)
            fail_point("after the marker, before pruning")
            for old in resume_state.complete_checkpoints(self.checkpoints)[: -self.keep]:
                resume_state.remove_checkpoint(old)
        barrier()


def newest_checkpoint(stage_dir: StageDir, zero_stage: int) -> Path | None:
    """The newest checkpoint whose files match its marker; None if none does.

    The main rank removes damaged newer checkpoints and those without a marker.
    """
    chosen: list[str | None] = [None]
    if is_main_rank():
        make_private(stage_dir.checkpoints)
        for folder in reversed(resume_state.complete_checkpoints(stage_dir.checkpoints)):
            if _is_intact(folder):
                check_resume_state(folder)
                resume_state.check_identity(folder, stage_dir)
                resume_state.check_split(folder, world_size(), zero_stage)
                chosen[0] = str(folder)
                break
            print(f"removing checkpoint {folder}: it is damaged", flush=True)
            resume_state.remove_checkpoint(folder)
        whole = resume_state.complete_checkpoints(stage_dir.checkpoints)
        for folder in set(resume_state.checkpoint_folders(stage_dir.checkpoints)).difference(whole):
            shutil.rmtree(folder)
    if dist.is_initialized():
        dist.broadcast_object_list(chosen, src=0)
    return Path(chosen[0]) if chosen[0] else None


def _is_intact(folder: Path) -> bool:
    try:
        files: dict[str, list[Any]] = resume_state.read_checkpoint_marker(folder)["files"]
    except DamagedFile:
        return False
    return all(
        (folder / name).is_file()
        and (folder / name).stat().st_size == size
        and file_sha256(folder / name) == digest
        for name, (size, digest) in files.items()
    )
