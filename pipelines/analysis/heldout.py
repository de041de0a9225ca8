"""Compare models on held-out text, with intervals over the windows of `bits_per_byte.cut`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from pipelines.evals.bits_per_byte import cut, window_batches
from pipelines.evals.intervals import ratio_interval


@dataclass(frozen=True)
class HeldOut:
    """Held-out text of one domain: the token ids of its windows."""

    windows: list[list[int]]

    @property
    def counts(self) -> list[int]:
        """Number of predicted tokens in each window."""
        return [len(window) - 1 for window in self.windows]


def read_heldout(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    named: str,
    sequence_length: int,
    max_tokens: int,
) -> HeldOut:
    """Read the first windows of some texts, up to the one that reaches `max_tokens`."""
    own = cut(tokenizer, texts, named=named, sequence_length=sequence_length, max_tokens=max_tokens)
    starts = np.cumsum([0, *own.counts])[:-1]
    return HeldOut(own.ids[: np.count_nonzero(starts < max_tokens)])


@torch.inference_mode()
def window_logprobs(
    model: Any, tokenizer: PreTrainedTokenizerBase, heldout: HeldOut, batch_size: int
) -> np.ndarray:
    """Sum the log-probabilities of the tokens in each window, float64 [windows].

    The model was prepared by `score_tokens_in_forward`.
    """
    sums = np.zeros(len(heldout.windows))
    for rows, inputs, labels in window_batches(heldout.windows, tokenizer, batch_size):
        nll = model(input_ids=inputs.to(model.device), shift_labels=labels.to(model.device))["nll"]
        sums[rows] = -nll.double().sum(1).cpu().numpy()
    return sums


@torch.inference_mode()
def window_kl(
    model: Any,
    reference: Any,
    tokenizer: PreTrainedTokenizerBase,
    heldout: HeldOut,
    batch_size: int,
) -> np.ndarray:
    """Sum KL(reference || model) over the predicted positions of each window, float64 [windows].

    Both models were prepared by `score_tokens_in_forward`: `model` with the head of `reference`.
    """
    sums = np.zeros(len(heldout.windows))
    for rows, inputs, labels in window_batches(heldout.windows, tokenizer, batch_size):
        inputs, labels = inputs.to(model.device), labels.to(model.device)
        hidden = reference(input_ids=inputs)["hidden"]
        kl = model(input_ids=inputs, shift_labels=labels, ref_hidden=hidden)["kl"]
        sums[rows] = kl.double().sum(1).cpu().numpy()
    return sums


def gap(logprobs: np.ndarray, rl_logprobs: np.ndarray, counts: list[int]) -> dict[str, Any]:
    """Mean over tokens of log p_RL - log p_checkpoint in nats, with its interval over windows.

    The arguments are the sums over each window and its number of tokens, [windows].
    """
    mean, half = ratio_interval((rl_logprobs - logprobs).tolist(), counts)
    return {"mean": mean, "half_interval": half}


def divergence(sums: np.ndarray, counts: list[int]) -> dict[str, Any]:
    """Mean KL per token in nats, with its interval over windows."""
    mean, half = ratio_interval(sums.tolist(), counts)
    return {"kl": mean, "half_interval": half}
