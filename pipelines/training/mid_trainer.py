"""The trainer of pre-training and mid-training: transformers.Trainer with a custom loss."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainingArguments

from pipelines.objectives.objective import NTP, Objective
from pipelines.objectives.token_nll import CHUNK_BYTES, IGNORE, score_tokens_in_forward
from pipelines.objectives.weights import discrepancy


class MidTrainer(Trainer):
    """Trains on packed sequences with one objective of `pipelines.objectives`.

    Args:
        num_tokens: size of the base's tokenizer, to which logits are cut.
        reference: frozen model on the training device whose forward scores tokens. None without a
            reference, or if the batches carry its scores (`ref_logprobs`).
        chunk_bytes: bytes of logits that the loss computes at once.
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
        objective: Objective = NTP,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self.objective, self.reference = objective, reference
        ref_head = reference.get_output_embeddings() if reference and objective.uses_kl else None
        score_tokens_in_forward(model, num_tokens, ref_head, chunk_bytes)
        # The sampler starts at the resumed step; Trainer would load and drop all earlier batches.
        args.ignore_data_skip = True
        super().__init__(
            model=model, args=args, train_dataset=train_dataset, data_collator=data_collator
        )
        # The loss below is divided by the targets of the whole step; Trainer must not rescale it.
        self.model_accepts_loss_kwargs = True
        self.weight_sums = WeightSums(args.device, objective.clip, objective.uses_ref_logprobs)
        self.step_divisor: float | None = None
        self.sequences_per_step = (
            args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        )
        self.tokens_per_step = self.sequences_per_step * len(train_dataset[0]["input_ids"])
        self.logged_at = (time.monotonic(), 0)

    def _get_train_sampler(self, *_: Any) -> Sampler[int]:
        def begin() -> int:
            return int(self.state.global_step * self.sequences_per_step)

        return SequenceOrder(len(self.train_dataset), self.args.seed, begin)  # type: ignore[arg-type]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """This micro-batch's part of the loss, times the number of ranks (the engine averages)."""
        assert num_items_in_batch is not None
        inputs = {key: value for key, value in inputs.items() if key != "labels"}
        weights = inputs.pop("weights", None)
        if self.objective.uses_kl:
            inputs["ref_hidden"] = self._reference_hidden(inputs)
        scores = model(**inputs)
        if weights is None and self.objective.uses_weights:
            weights = self._weights(scores["nll"], inputs)
        loss = self.objective.loss(
            scores, weights, inputs["shift_labels"] != IGNORE, num_items_in_batch, self.step_divisor
        )
        loss = loss * self.args.world_size
        return (loss, scores) if return_outputs else loss

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of a step; with `scope: step` they carry weights computed over it."""
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        if self.objective.scope == "step" and self.objective.uses_weights and batches:
            self._weigh_step(batches)
        return batches, num_items

    @torch.no_grad()
    def _weigh_step(self, batches: list[dict[str, Any]]) -> None:
        """Compute weights over all micro-batches and ranks, by an extra forward of the learner."""
        prepared = [self._prepare_inputs(batch) for batch in batches]
        logprobs, ref_logprobs, targets, documents = (
            _over_ranks(torch.cat(parts))
            for parts in zip(*(self._step_part(inputs) for inputs in prepared), strict=True)
        )
        read = ref_logprobs if self.objective.uses_ref_logprobs else None
        weights = self.objective.weights(logprobs, read, targets, documents)
        if self.objective.divides_by_weights:
            self.step_divisor = float(weights.sum())
        rows = len(weights) // self.args.world_size
        own = slice(self.args.process_index * rows, (self.args.process_index + 1) * rows)
        d = discrepancy(logprobs, ref_logprobs, targets)
        self.weight_sums.add(weights[own], d[own], targets[own])
        sizes = [len(inputs["input_ids"]) for inputs in prepared]
        for batch, part in zip(batches, weights[own].split(sizes), strict=True):
            batch["weights"] = part

    def _step_part(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        scored = {k: v for k, v in inputs.items() if k not in ("labels", "ref_logprobs")}
        logprobs = -self.model_wrapped(**scored)["nll"]
        # Only center=document reads documents, so zeros will do if they are missing.
        documents = inputs.get("documents", torch.zeros_like(inputs["input_ids"]))
        targets = inputs["shift_labels"] != IGNORE
        ref_logprobs = self._reference_logprobs(inputs)
        # Without a reference, the learner stands in for it, so that d is 0.
        read = logprobs if ref_logprobs is None else ref_logprobs
        return logprobs, read, targets, documents

    def _weights(self, nll: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        ref_logprobs = self._reference_logprobs(inputs)
        mask = inputs["shift_labels"] != IGNORE
        weights = self.objective.weights(-nll, ref_logprobs, mask, inputs.get("documents"))
        d = discrepancy(-nll, -nll if ref_logprobs is None else ref_logprobs, mask)
        self.weight_sums.add(weights.detach(), d, mask)
        return weights

    @torch.no_grad()
    def _reference_logprobs(self, inputs: dict[str, Tensor]) -> Tensor | None:
        """fp32 [batch, seq], from the score cache or from the reference's forward; None if the
        objective does not read them."""
        if not self.objective.uses_ref_logprobs:
            return None
        if "ref_logprobs" in inputs:
            return inputs["ref_logprobs"]
        assert self.reference is not None
        return -self.reference(**inputs)["nll"]  # type: ignore[no-any-return]

    @torch.no_grad()
    def _reference_hidden(self, inputs: dict[str, Tensor]) -> Tensor:
        assert self.reference is not None
        unscored = {key: value for key, value in inputs.items() if key != "shift_labels"}
        return self.reference(**unscored)["hidden"]  # type: ignore[no-any-return]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # Trainer counts epochs from where the sampler started, so correct it after a resume.
        self.state.epoch = self.state.global_step / self.state.max_steps
        if "loss" in logs:
            weights = self.weight_sums.take() if self.objective.uses_weights else {}
            logs = {**logs, **self._rate(), **weights}
        super().log(logs, start_time)

    def _rate(self) -> dict[str, float]:
        """Tokens per second over all ranks since the last log line; empty for the first line."""
        now, step = time.monotonic(), self.state.global_step
        then, last = self.logged_at
        self.logged_at = (now, step)
        if not last:
            return {}
        return {"tokens_per_second": (step - last) * self.tokens_per_step / (now - then)}


def _over_ranks(rows: Tensor) -> Tensor:
    """Gather the rows of all ranks, in rank order; every rank must have the same number."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)


class SequenceOrder(Sampler[int]):
    """A seeded permutation of the packed sequences: sequence = f(seed, position).

    The order is shuffled because neighbours in a packed set often come from one long document.
    `begin` returns the position to start from when training starts or resumes.
    """

    def __init__(self, num_sequences: int, seed: int, begin: Callable[[], int]) -> None:
        self.num_sequences = num_sequences
        self.seed = seed
        self.begin = begin

    def __len__(self) -> int:
        return self.num_sequences

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.num_sequences])
        order = rng.permutation(self.num_sequences)
        return (int(index) for index in order[self.begin() :])


class WeightSums:
    """Accumulates statistics of the weights between two log lines, over all ranks.

    Weights are clipped to 1 +- `clip`, or not (None). Without a reference there is no d.
    """

    def __init__(self, device: torch.device, clip: float | None, has_reference: bool) -> None:
        self.clip, self.has_reference = clip, has_reference
        self.sums = torch.zeros(7, dtype=torch.float64, device=device)

    def add(self, weights: Tensor, d: Tensor, mask: Tensor) -> None:
        """Add one micro-batch; weights, d and mask are [batch, seq]."""
        # Compare with the bounds rounded to fp32, which are the values that clamp produces.
        clip = self.clip or 0.0
        low, high = weights.new_tensor(1.0 - clip), weights.new_tensor(1.0 + clip)
        at_low, at_high = mask & (weights <= low), mask & (weights >= high)
        # Sum offsets from 1, so that the squares of a small spread do not cancel.
        offset = (weights - 1.0).masked_fill(~mask, 0.0).double()
        self.sums += torch.stack([
            mask.sum().double(), offset.sum(), offset.square().sum(),
            at_low.sum().double(), at_high.sum().double(),
            d.double().sum(), d.double().square().sum(),
        ])  # fmt: skip

    def take(self) -> dict[str, float]:
        """Return the statistics since the last call, and reset them; every rank must call it."""
        if dist.is_initialized():
            dist.all_reduce(self.sums)
        count, offset, square, low, high, d, d_square = self.sums.tolist()
        self.sums.zero_()
        if not count:
            return {}
        found = {
            "weight_mean": 1.0 + offset / count,
            "weight_std": max(0.0, square / count - (offset / count) ** 2) ** 0.5,
        }
        if self.clip is not None:
            found |= {"weight_at_low": low / count, "weight_at_high": high / count}
        if self.has_reference:
            spread = max(0.0, d_square / count - (d / count) ** 2) ** 0.5
            found |= {"d_mean": d / count, "d_std": spread}
        return found
