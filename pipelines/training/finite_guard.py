"""Stop before an update whose loss or gradient is not finite, and save the batch that caused it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback

from pipelines.run_dir import heartbeat
from pipelines.run_dir.paths import StageDir, write_json
from pipelines.training.ranks import barrier, of_all_ranks

ROW = "row_number"


class NumberedRows(Dataset):  # type: ignore[type-arg]
    """A data set whose items carry their row number under the key `ROW`."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.rows[index], ROW: int(index)}


def numbered(collate: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    """Wrap a collate function so that its batches carry the row numbers of their items."""

    def with_numbers(rows: list[Any]) -> Any:
        if ROW not in rows[0]:
            return collate(rows)
        numbers = [row[ROW] for row in rows]
        batch = collate([{k: v for k, v in row.items() if k != ROW} for row in rows])
        if isinstance(batch, list):
            return [{**row, ROW: number} for row, number in zip(batch, numbers, strict=True)]
        batch[ROW] = torch.tensor(numbers)
        return batch

    return with_numbers


def take_numbers(batch: Any) -> list[int]:
    """Remove the row numbers from a batch, and return them."""
    if isinstance(batch, list):
        return [row.pop(ROW) for row in batch]
    numbers: list[int] = batch.pop(ROW).tolist()
    return numbers


class FiniteGuard(TrainerCallback):
    """Ends training on all ranks before an update that is not finite.

    A loss that is not finite makes the whole gradient NaN, which every rank notices by its norm.
    DeepSpeed's ZeRO optimizers skip such an update; for a plain optimizer (ZeRO 0) a hook stops it.
    """

    def __init__(self, trainer: Trainer, stage_dir: StageDir) -> None:
        self.trainer = trainer
        self.stage_dir = stage_dir
        self.rows: list[list[int]] = []
        self.losses: list[Tensor] = []
        trainer.train_dataset = NumberedRows(trainer.train_dataset)
        trainer.data_collator = numbered(trainer.data_collator)
        # The collate functions ignore keys that they do not know.
        trainer.args.remove_unused_columns = False
        self.take_batches = trainer.get_batch_samples
        trainer.get_batch_samples = self._get_batch_samples

    def _get_batch_samples(self, batches: Iterator[Any], *args: Any, **kwargs: Any) -> Any:
        self.rows, self.losses = [], []

        def recorded() -> Iterator[Any]:
            for batch in batches:
                self.rows.append(take_numbers(batch))
                yield batch

        return self.take_batches(recorded(), *args, **kwargs)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        wrapped = self.trainer.accelerator.deepspeed_engine_wrapped
        self.engine = wrapped.engine
        self.engine_backward = wrapped.backward
        wrapped.backward = self._backward
        if not hasattr(self.engine.optimizer, "overflow"):
            self.engine.basic_optimizer.register_step_pre_hook(self._check_gradients)

    def _backward(self, loss: Tensor, sync_gradients: bool = True, **kwargs: Any) -> None:
        heartbeat.beat()
        self.losses.append(loss.detach())
        # Multiplying by 1 leaves a finite loss unchanged to the last bit.
        spoiled = loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan).to(loss.dtype)
        self.engine_backward(spoiled, sync_gradients=sync_gradients, **kwargs)
        if sync_gradients and getattr(self.engine.optimizer, "overflow", False):
            self._stop()

    def _check_gradients(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        present = [grad for grad in grads if grad is not None]
        # Gradients are averaged over the ranks, so all ranks see the same values.
        if not bool(torch.stack(torch._foreach_norm(present)).isfinite().all()):
            self._stop()

    def _stop(self) -> None:
        """Write the batch's rows and losses from all ranks, and raise on every rank."""
        rank = self.trainer.args.process_index
        pairs = zip(self.losses, self.rows, strict=False)
        parts = [{"loss": str(float(loss)), "rows": rows} for loss, rows in pairs]
        found = of_all_ranks({"rank": rank, "micro_batches": parts})
        step = self.trainer.state.global_step + 1
        guilty = [
            f"rank {one['rank']}" for one in found
            if any(part["loss"] in ("nan", "inf", "-inf") for part in one["micro_batches"])
        ]  # fmt: skip
        what = f"the loss is not finite on {' and '.join(guilty)}"
        reason = (
            f"{what if guilty else 'the gradient is not finite'} at step {step}; the weights are "
            f"still those of step {step - 1}. The rows of the batch are in "
            f"{self.stage_dir.not_finite}. Try a smaller learning rate or a longer warm-up, and "
            "check the input model and the data for values that are not finite. Earlier "
            "checkpoints were kept"
        )
        if rank == 0:
            rows = "index into the training set: packed sequences, or records in training order"
            write_json(
                self.stage_dir.not_finite,
                {"reason": reason, "step": step, "row_numbers": rows, "ranks": found},
            )
        barrier()
        raise FloatingPointError(reason)
