"""At the end of each step, the ranks agree on whether to save and whether to stop."""

from __future__ import annotations

import math
import signal
import time
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState

from pipelines.errors import Stopped
from pipelines.machine.signals import SIGNALS
from pipelines.run_dir import heartbeat
from pipelines.run_dir.paths import StageDir


class StepBoundary(TrainerCallback):
    """Saves every so many steps or seconds; saves and stops if any rank is asked to stop.

    With several ranks, one all-reduce of two numbers per step makes all of them save after the same
    step. Call `raise_if_stopped` after training.

    Args:
        every_steps, every_seconds: interval between checkpoints, by the main rank's clock; 0: none.
        unit: checkpoints are written only after a multiple of so many steps (`generation_steps`).
    """

    def __init__(
        self, stage_dir: StageDir, every_steps: int, every_seconds: float, unit: int
    ) -> None:
        self.stage_dir = stage_dir
        self.every_steps = every_steps
        self.every_seconds = every_seconds
        self.unit = unit
        self.saved_at = time.monotonic()
        self.due = False
        self.signum = 0
        self.stopped: Stopped | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        for signum in SIGNALS:
            signal.signal(signum, self._note)
        heartbeat.beat(heartbeat.FIRST_STEP, state.global_step)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = self.signum or signum

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        step = state.global_step
        gpu = torch.cuda.max_memory_allocated() if args.device.type == "cuda" else 0
        heartbeat.beat(heartbeat.TRAINING, step, gpu)
        if step >= state.max_steps:
            return
        asked, due = self._agreed(args.device, state.is_world_process_zero)
        self.due = self.due or due or bool(self.every_steps and step % self.every_steps == 0)
        if step % self.unit:
            return
        if asked:
            self.stopped = Stopped(asked, step)
            control.should_training_stop = True
        if asked or self.due:
            control.should_save = True
            # Log before the save, so that a resume loses no sums since the last log line.
            control.should_log = True
            self.due = False
            self.saved_at = time.monotonic()
            heartbeat.beat(heartbeat.SAVING)

    def _agreed(self, device: torch.device, is_main: bool) -> tuple[int, bool]:
        """The signal that asks for a stop (0 for none), and whether a save is due by time."""
        asked, due = self.signum, False
        if is_main:
            asked = asked or self.stage_dir.requested_stop()
            if self.every_seconds and not self.every_steps:
                due = time.monotonic() - self.saved_at >= self.every_seconds
        if dist.is_initialized() and dist.get_world_size() > 1:
            flags = torch.tensor([asked, int(due)], device=device)
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
            asked, due = int(flags[0]), bool(flags[1])
        # Kept: a signal that came when no save was allowed, or to this rank alone, just now.
        self.signum = asked or self.signum
        return asked, due

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        heartbeat.beat(heartbeat.TRAINING)

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        heartbeat.beat(heartbeat.FINISHING, state.global_step)

    def raise_if_stopped(self) -> None:
        if self.stopped is not None:
            raise self.stopped


def generation_steps(trainer: Trainer) -> int:
    """Number of optimizer steps that share rollouts, which checkpoints do not contain.

    TRL's GRPO generates for `steps_per_generation` micro-batches and uses each `num_iterations`
    times. For every other trainer it is 1.
    """
    if not hasattr(trainer.args, "steps_per_generation"):
        return 1
    every = int(trainer.args.steps_per_generation) * int(trainer.args.num_iterations)
    return every // math.gcd(every, trainer.args.gradient_accumulation_steps)
