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
from pipelines.evals.intervals import digest_of, ratio_interval
from pipelines.objectives.token_nll import IGNORE

# Enough for an interval; two numbers of each are kept.
MAX_BLOCKS = 200


@dataclass(frozen=True)
class Windows:
    """Texts cut into windows, each to be read after an end-of-document token.

    Attributes:
        ids: token ids of each window, in the order of the texts.
        documents: the number of the text that each window is of.
        num_tokens: of all the texts.
        text_bytes: of each text, in UTF-8.
        texts_sha256: of all the texts in their order.
    """

    ids: list[list[int]]
    documents: list[int]
    num_tokens: int
    text_bytes: list[int]
    texts_sha256: str


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
    documents: list[int] = []
    text_bytes: list[int] = []
    taken: list[str] = []
    num_tokens = 0
    for number, text in enumerate(texts):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        taken.append(text)
        text_bytes.append(len(text.encode()))
        num_tokens += len(ids)
        step = context_length - 1
        own = [ids[i : i + step] for i in range(0, len(ids), step)]
        windows += own
        documents += [number] * len(own)
        if num_tokens >= max_tokens:
            break
    return Windows(windows, documents, num_tokens, text_bytes, digest_of(taken))


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
) -> dict[str, Any]:
    """Sum of -log2 p over the tokens of the texts, over their UTF-8 bytes; see `cut`.

    Args:
        scoring_model: a model after `score_tokens_in_forward`.

    Returns:
        bits_per_byte with half its 95% interval over the blocks (None for one block), tokens and
        bytes; `blocks`: nll in nats and bytes of each block of documents, and the texts' hash.
    """
    found = cut(tokenizer, texts, context_length=context_length, max_tokens=max_tokens)
    num_bytes = sum(found.text_bytes)
    if not num_bytes:
        return {"bits_per_byte": math.nan, "tokens": 0, "bytes": 0}
    nll, device = 0.0, scoring_model.device
    block_of = blocks(len(found.text_bytes))
    block_nll = [0.0] * (block_of[-1] + 1)
    for rows, inputs, labels in window_batches(found.ids, tokenizer, batch_size):
        losses = scoring_model(input_ids=inputs.to(device), shift_labels=labels.to(device))["nll"]
        nll += float(losses.double().sum())
        for row, own in zip(rows, losses.double().sum(1).tolist(), strict=True):
            block_nll[block_of[found.documents[row]]] += own
    block_bytes = [0] * len(block_nll)
    for block, size in zip(block_of, found.text_bytes, strict=True):
        block_bytes[block] += size
    _, half = ratio_interval(block_nll, block_bytes)
    return {
        "bits_per_byte": nll / math.log(2) / num_bytes,
        "half_interval": None if half is None else half / math.log(2),
        "tokens": found.num_tokens,
        "bytes": num_bytes,
        "blocks": {
            "nll": block_nll, "bytes": block_bytes, "texts_sha256": found.texts_sha256,
        },
    }  # fmt: skip


def blocks(num_documents: int) -> list[int]:
    """The block of each document: at most `MAX_BLOCKS`, of documents that follow each other."""
    count = min(MAX_BLOCKS, num_documents)
    return [number * count // num_documents for number in range(num_documents)]
