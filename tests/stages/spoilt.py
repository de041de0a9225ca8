"""A stage whose loss or gradient is spoilt at one micro-batch of rank 1, for `test_not_finite.py`.

Each rank prints its number and the sum over its weights' bits after each step, and at the end.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from pipelines.run_dir.job import StageJob


def run(job: StageJob) -> dict[str, Any]:
    """Run the stage with `REMIT_SPOILT` ("loss" or "gradient") at micro-batch `REMIT_SPOILT_AT`."""
    import deepspeed
    import torch
    from accelerate import Accelerator
    from transformers import TrainerCallback

    from pipelines.plan.kinds import kind_of
    from pipelines.training import engine

    what, at = os.environ["REMIT_SPOILT"], int(os.environ["REMIT_SPOILT_AT"])
    rank = os.environ["RANK"]
    backward, train = Accelerator.backward, engine.train
    calls = 0

    def spoilt(self: Any, loss: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == at and rank == "1":
            if what == "loss":
                loss = loss * float("nan")
            else:
                loss.register_hook(lambda gradient: gradient * float("inf"))
        backward(self, loss, **kwargs)

    def bits(trainer: Any) -> None:
        total = 0
        for p in trainer.model.parameters():
            with deepspeed.zero.GatheredParameters([p], enabled=hasattr(p, "ds_id")):
                total += int(p.detach().float().contiguous().view(torch.int32).long().sum())
        print(f"weights of {rank}: {trainer.state.global_step} {total}\n", end="", flush=True)

    class Bits(TrainerCallback):
        trainer: Any

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            bits(self.trainer)

    def watched(trainer: Any, *args: Any) -> None:
        callback = Bits()
        callback.trainer = trainer
        trainer.add_callback(callback)
        try:
            train(trainer, *args)
        except FloatingPointError:
            bits(trainer)
            # The end of one rank ends the other.
            torch.distributed.barrier()
            raise

    Accelerator.backward, engine.train = spoilt, watched
    return dict(importlib.import_module(kind_of(job.kind).module).run(job))
