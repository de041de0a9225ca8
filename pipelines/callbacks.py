"""Trainer callbacks of every gradient stage: metrics, when to save, when a checkpoint exists."""

from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from pipelines.checkpoint import file_sha256
from pipelines.errors import DamagedFile, UserError
from pipelines.ownership import check_resume_state, make_private
from pipelines.run_dir import SNAPSHOT_FACTS, StageDir, fsync_dir, read_json, write_json

MARKER = "complete.json"


class MetricsWriter(TrainerCallback):
    """One line of `metrics.jsonl` for each log of the trainer, by the main rank."""

    def __init__(self, stage_dir: StageDir) -> None:
        self.path = stage_dir.metrics
        self.started = time.time()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.started = time.time()
        self._write(state, {"event": "begin"})

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        numbers = {k: v for k, v in (logs or {}).items() if _is_number(v)}
        self._write(state, numbers)
        if not math.isfinite(numbers.get("loss", 0.0)):
            # The loss is a mean over the ranks, so all of them stop here.
            raise FloatingPointError(
                f"the loss is {numbers['loss']} at step {state.global_step}, and nothing after it "
                "would be of use. A smaller learning rate or a longer warm-up may help, or the "
                "input model holds values that are not finite. Earlier checkpoints stay."
            )

    def _write(self, state: TrainerState, values: dict[str, Any]) -> None:
        if not state.is_world_process_zero:
            return
        now = time.time()
        line = {
            "step": state.global_step,
            "max_steps": state.max_steps,
            "time": round(now, 3),
            "elapsed": round(now - self.started, 3),
            **{
                k: v if not isinstance(v, float) or math.isfinite(v) else str(v)
                for k, v in values.items()
            },
        }
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class SnapshotWriter(TrainerCallback):
    """Keep models along the training, at even steps before the last; every rank takes part.

    Args:
        trainer: gathers the weights.
        count: models to keep; 0 keeps none.
    """

    def __init__(
        self,
        trainer: Trainer,
        stage_dir: StageDir,
        tokenizer: PreTrainedTokenizerBase,
        count: int,
    ) -> None:
        self.trainer = trainer
        self.stage_dir = stage_dir
        self.tokenizer = tokenizer
        self.count = count

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        for number in range(1, self.count + 1):
            if state.global_step == round(number * state.max_steps / (self.count + 1)):
                self._write(number, state.global_step, state.is_world_process_zero)

    def _write(self, number: int, step: int, is_main: bool) -> None:
        folder = self.stage_dir.snapshot(number)
        temporary = folder.with_name(f"{number}.tmp")
        if is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        self.trainer.save_model(str(temporary))
        if is_main:
            self.tokenizer.save_pretrained(temporary)
            (temporary / "training_args.bin").unlink(missing_ok=True)
            write_json(temporary / SNAPSHOT_FACTS, {"step": step})
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)


class CheckpointClock(TrainerCallback):
    """Ask for a checkpoint every so many steps or seconds; the main rank's clock decides."""

    def __init__(self, every_steps: int, every_seconds: float) -> None:
        self.every_steps = every_steps
        self.every_seconds = every_seconds
        self.last = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step >= state.max_steps:
            return
        if self.every_steps and state.global_step % self.every_steps == 0:
            control.should_save = True
        elif self.every_seconds and self._time_is_up(args.device):
            control.should_save = True
        if control.should_save:
            self.last = time.monotonic()

    def _time_is_up(self, device: torch.device) -> bool:
        due = time.monotonic() - self.last >= self.every_seconds
        if dist.is_initialized() and dist.get_world_size() > 1:
            flag = torch.tensor([int(due)], device=device)
            dist.broadcast(flag, src=0)
            due = bool(flag.item())
        return due


class CheckpointMarker(TrainerCallback):
    """A checkpoint exists only when its marker does: written last, after all ranks have saved.

    Older complete checkpoints are pruned only then.
    """

    def __init__(self, stage_dir: StageDir, keep: int) -> None:
        self.checkpoints = stage_dir.checkpoints
        self.keep = keep

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if dist.is_initialized():
            dist.barrier()
        if state.is_world_process_zero:
            folder = self.checkpoints / f"checkpoint-{state.global_step}"
            files = sorted(p for p in folder.rglob("*") if p.is_file())
            write_json(
                folder / MARKER,
                {
                    "step": state.global_step,
                    "world_size": args.world_size,
                    "zero_stage": args.deepspeed["zero_optimization"]["stage"],
                    "files": {
                        str(p.relative_to(folder)): [p.stat().st_size, file_sha256(p)]
                        for p in files
                    },
                },
            )
            fsync_dir(self.checkpoints)
            for old in complete_checkpoints(self.checkpoints)[: -self.keep]:
                shutil.rmtree(old)
        if dist.is_initialized():
            dist.barrier()


def complete_checkpoints(checkpoints: Path) -> list[Path]:
    """Checkpoint folders with a marker, oldest first."""
    found = [p for p in checkpoints.glob("checkpoint-*") if (p / MARKER).is_file()]
    return sorted(found, key=lambda p: int(p.name.split("-")[1]))


def newest_checkpoint(stage_dir: StageDir, zero_stage: int) -> Path | None:
    """The newest checkpoint whose files are what its marker says; the main rank removes others."""
    main_rank = not dist.is_initialized() or dist.get_rank() == 0
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    chosen: list[str | None] = [None]
    if main_rank:
        make_private(stage_dir.checkpoints)
        for folder in reversed(complete_checkpoints(stage_dir.checkpoints)):
            if _is_intact(folder):
                check_resume_state(folder)
                _check_split(folder, ranks, zero_stage)
                chosen[0] = str(folder)
                break
            print(f"checkpoint {folder} is damaged and is left out", flush=True)
        for folder in stage_dir.checkpoints.glob("checkpoint-*"):
            if str(folder) != chosen[0]:
                shutil.rmtree(folder)
    if dist.is_initialized():
        dist.broadcast_object_list(chosen, src=0)
    return Path(chosen[0]) if chosen[0] else None


def _check_split(folder: Path, ranks: int, zero_stage: int) -> None:
    marker = read_json(folder / MARKER)
    saved = (marker["world_size"], marker["zero_stage"])
    if saved != (ranks, zero_stage):
        raise UserError(
            f"{folder} was saved by {saved[0]} ranks under ZeRO-{saved[1]}, and this start has "
            f"{ranks} ranks under ZeRO-{zero_stage}: the optimizer state is split otherwise. Go on "
            "as it was saved, or remove the stage's checkpoints folder to start the stage anew."
        )


def _is_intact(folder: Path) -> bool:
    try:
        files: dict[str, list[Any]] = read_json(folder / MARKER, needs=("files",))["files"]
    except DamagedFile:
        return False
    return all(
        (folder / name).is_file()
        and (folder / name).stat().st_size == size
        and file_sha256(folder / name) == digest
        for name, (size, digest) in files.items()
    )
