"""The loop of pre-training and mid-training: transformers.Trainer with another loss."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainingArguments

from pipelines.objectives.losses import weighted_nll
from pipelines.objectives.token_nll import IGNORE, score_tokens_in_forward
from pipelines.objectives.weights import discrepancy, remit_weights


class MidTrainer(Trainer):
    """Trains on packed sequences with token weights from a frozen reference, or with weight 1.

    Args:
        reference: frozen model whose forward scores tokens, on the training device; None is
            plain next-token prediction.
        eps: half width of the range of the weights.
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        train_dataset: Dataset[Any],
        data_collator: Any,
        *,
        num_tokens: int,
        reference: Any | None = None,
        eps: float = 0.2,
    ) -> None:
        score_tokens_in_forward(model, num_tokens)
        super().__init__(
            model=model, args=args, train_dataset=train_dataset, data_collator=data_collator
        )
        # The loss below divides by the targets of the whole step, so nothing else may scale it.
        self.model_accepts_loss_kwargs = True
        self.reference = reference
        self.eps = eps
        self.weight_sums = WeightSums(eps, args.device)
        sequences = (
            args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        )
        self.tokens_per_step = sequences * len(train_dataset[0]["input_ids"])
        self.logged_at = (time.monotonic(), 0)

    def _get_train_sampler(self, *_: Any) -> Sampler[int]:
        return SequenceOrder(len(self.train_dataset), self.args.seed)  # type: ignore[arg-type]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Weighted NLL of this micro-batch, times the ranks over which the engine takes a mean."""
        assert num_items_in_batch is not None
        inputs = {key: value for key, value in inputs.items() if key != "labels"}
        nll = model(**inputs)["nll"]
        weights = None
        if self.reference is not None:
            weights = self._weights(nll, inputs)
        loss = weighted_nll(nll, weights, num_items_in_batch) * self.args.world_size
        return (loss, {"nll": nll}) if return_outputs else loss

    @torch.no_grad()
    def _weights(self, nll: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        assert self.reference is not None
        ref_nll = self.reference(**inputs)["nll"]
        mask = inputs["shift_labels"] != IGNORE
        weights = remit_weights(-nll, -ref_nll, mask, eps=self.eps)
        self.weight_sums.add(weights, discrepancy(-nll, -ref_nll, mask), mask)
        return weights

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {**logs, **self._rate()}
        if self.reference is not None and "loss" in logs:
            logs = {**logs, **self.weight_sums.take()}
        super().log(logs, start_time)

    def _rate(self) -> dict[str, float]:
        """Training tokens per second since the last log line, over all ranks; not in the first."""
        now, step = time.monotonic(), self.state.global_step
        then, last = self.logged_at
        self.logged_at = (now, step)
        if not last:
            return {}
        return {"tokens_per_second": (step - last) * self.tokens_per_step / (now - then)}


class SequenceOrder(Sampler[int]):
    """A seeded permutation of the packed sequences: sequence = f(seed, position).

    Neighbours in a packed file often come from one long document. A resume is a jump to a position.
    """

    def __init__(self, num_sequences: int, seed: int) -> None:
        self.num_sequences = num_sequences
        self.seed = seed

    def __len__(self) -> int:
        return self.num_sequences

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.num_sequences]).permutation(
            self.num_sequences
        )
        return (int(index) for index in order)


class WeightSums:
    """Statistics of the weights between two log lines, over all ranks."""

    def __init__(self, eps: float, device: torch.device) -> None:
        self.eps = eps
        self.sums = torch.zeros(7, dtype=torch.float64, device=device)

    def add(self, weights: Tensor, d: Tensor, mask: Tensor) -> None:
        """Count one micro-batch: weights, d and mask are [batch, seq]."""
        # The bounds as fp32 has them, which is where clamp puts the weights.
        low = torch.tensor(1.0 - self.eps, dtype=weights.dtype, device=weights.device)
        high = torch.tensor(1.0 + self.eps, dtype=weights.dtype, device=weights.device)
        at_low, at_high = mask & (weights <= low), mask & (weights >= high)
        # About 1, so that the square of a small spread survives.
        offset = (weights - 1.0).masked_fill(~mask, 0.0).double()
        self.sums += torch.stack([
            mask.sum().double(), offset.sum(), offset.square().sum(),
            at_low.sum().double(), at_high.sum().double(),
            d.double().sum(), d.double().square().sum(),
        ])  # fmt: skip

    def take(self) -> dict[str, float]:
        """The statistics since the last call; every rank calls it."""
        if dist.is_initialized():
            dist.all_reduce(self.sums)
        count, offset, square, low, high, d, d_square = self.sums.tolist()
        self.sums.zero_()
        if not count:
            return {}
        return {
            "weight_mean": 1.0 + offset / count,
            "weight_std": max(0.0, square / count - (offset / count) ** 2) ** 0.5,
            "weight_at_low": low / count,
            "weight_at_high": high / count,
            "d_mean": d / count,
            "d_std": max(0.0, d_square / count - (d / count) ** 2) ** 0.5,
        }
