"""Held-out bits per byte: how well a model predicts text, comparable across tokenizers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from pipelines.objectives.token_nll import IGNORE


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
    """Sum of -log2 p over the tokens of the texts, over their UTF-8 bytes.

    A text is cut into windows of `context_length - 1` tokens, each after an end-of-document token,
    so that every token is predicted once.

    Args:
        scoring_model: a model after `score_tokens_in_forward`.
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
    if not num_bytes:
        return {"bits_per_byte": math.nan, "tokens": 0, "bytes": 0}
    windows.sort(key=len, reverse=True)
    nll = 0.0
    for start in range(0, len(windows), batch_size):
        batch = windows[start : start + batch_size]
        width = len(batch[0])
        start_id, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        inputs = torch.tensor([[start_id, *w[:-1]] + [pad] * (width - len(w)) for w in batch])
        labels = torch.tensor([w + [IGNORE] * (width - len(w)) for w in batch])
        device = scoring_model.device
        nll += float(
            scoring_model(input_ids=inputs.to(device), shift_labels=labels.to(device))["nll"]
            .double()
            .sum()
        )
    return {
        "bits_per_byte": nll / math.log(2) / num_bytes,
        "tokens": num_tokens,
        "bytes": num_bytes,
    }
