"""Held-out bits per byte: how well a model predicts text, comparable across tokenizers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pipelines import heartbeat
from pipelines.objectives.token_nll import IGNORE


@dataclass(frozen=True)
class Windows:
    """Texts cut into windows, each to be read after an end-of-document token.

    Attributes:
        ids: token ids of each window, in the order of the texts.
        num_tokens, num_bytes: of all the texts, in UTF-8.
    """

    ids: list[list[int]]
    num_tokens: int
    num_bytes: int


def cut(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    context_length: int,
    max_tokens: int,
) -> Windows:
    """Windows of `context_length - 1` tokens: after one token more, every token is predicted once.

    Texts are taken to `max_tokens` tokens, the last one whole.
    """
    windows: list[list[int]] = []
    num_bytes = num_tokens = 0
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        num_bytes += len(text.encode())
        num_tokens += len(ids)
        step = context_length - 1
        windows += [ids[i : i + step] for i in range(0, len(ids), step)]
        if num_tokens >= max_tokens:
            break
    return Windows(windows, num_tokens, num_bytes)


def window_batches(
    windows: Sequence[list[int]], tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """The longest windows first: their numbers, `input_ids` and `shift_labels` [batch, seq]."""
    order = sorted(range(len(windows)), key=lambda i: len(windows[i]), reverse=True)
    start_id, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = [windows[row] for row in rows]
        width = len(batch[0])
        inputs = torch.tensor([[start_id, *w[:-1]] + [pad] * (width - len(w)) for w in batch])
        labels = torch.tensor([w + [IGNORE] * (width - len(w)) for w in batch])
        yield rows, inputs, labels
        heartbeat.moves()


@torch.inference_mode()
def bits_per_byte(
    scoring_model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    context_length: int,
    max_tokens: int,
    batch_size: int,
) -> dict[str, float]:
    """Sum of -log2 p over the tokens of the texts, over their UTF-8 bytes; see `cut`.

    Args:
        scoring_model: a model after `score_tokens_in_forward`.
    """
    found = cut(tokenizer, texts, context_length=context_length, max_tokens=max_tokens)
    if not found.num_bytes:
        return {"bits_per_byte": math.nan, "tokens": 0, "bytes": 0}
    nll, device = 0.0, scoring_model.device
    for _, inputs, labels in window_batches(found.ids, tokenizer, batch_size):
        nll += float(
            scoring_model(input_ids=inputs.to(device), shift_labels=labels.to(device))["nll"]
            .double()
            .sum()
        )
    return {
        "bits_per_byte": nll / math.log(2) / found.num_bytes,
        "tokens": found.num_tokens,
        "bytes": found.num_bytes,
    }
