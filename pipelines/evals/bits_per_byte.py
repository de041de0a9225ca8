"""Held-out bits per byte: how well a model predicts text, comparable across tokenizers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pipelines.errors import UserError
from pipelines.evals.intervals import digest_of, ratio_interval
from pipelines.objectives.token_nll import IGNORE
from pipelines.run_dir import heartbeat

# Enough blocks for an interval; the result stores two numbers per block.
MAX_BLOCKS = 200


@dataclass(frozen=True)
class Windows:
    """Texts cut into windows. The first token of a window is context only; it is not predicted.

    Attributes:
        ids: token ids of each window, at least two, in the order of the texts.
        documents: the index of the text of each window.
        text_bytes: UTF-8 bytes of each text, without those of its unpredicted first token.
        texts_sha256: hash of all texts in order.
    """

    ids: list[list[int]]
    documents: list[int]
    text_bytes: list[int]
    texts_sha256: str

    @property
    def counts(self) -> list[int]:
        """Number of predicted tokens in each window."""
        return [len(window) - 1 for window in self.ids]


def opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that the tokenizer puts before a text: BOS, or nothing."""
    first: list[int] = tokenizer("a").input_ids[:1]
    return first if first == [tokenizer.bos_token_id] else []


def cut(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    named: str,
    sequence_length: int,
    max_tokens: int,
) -> Windows:
    """Cut texts into windows so that every token but the first of a text is predicted once.

    The first token of a text serves as context only. Under the document mask it is not a target in
    training, and no text follows an EOS there. Each further window of a text starts with the last
    token of the window before it. Reading stops with the text that reaches `max_tokens` tokens.

    Raises:
        UserError: no text of the domain `named` has two tokens.
    """
    found, taken = Windows([], [], [], ""), []
    num_tokens, step = 0, sequence_length - len(opening(tokenizer))
    for number, text in enumerate(texts):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        taken.append(text)
        # If a token holds only part of a character, it decodes to a different number of bytes.
        first = len(tokenizer.decode(ids[:1]).encode())
        found.text_bytes.append(max(len(text.encode()) - first, 0) if len(ids) > 1 else 0)
        own = [ids[i : i + step + 1] for i in range(0, len(ids) - 1, step)]
        found.ids.extend(own)
        found.documents.extend([number] * len(own))
        num_tokens += len(ids)
        if num_tokens >= max_tokens:
            break
    if not found.ids:
        raise UserError(
            f"eval.bits_per_byte.{named}: none of its {len(taken)} documents has two tokens. The "
            "first token is not scored, so nothing can be measured. Give longer documents."
        )
    return replace(found, texts_sha256=digest_of(taken))


def window_batches(
    windows: Sequence[list[int]], tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Yield batches, longest windows first: indices, `input_ids`, `shift_labels` [batch, seq]."""
    order = sorted(range(len(windows)), key=lambda i: len(windows[i]), reverse=True)
    start, pad = opening(tokenizer), tokenizer.pad_token_id
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        batch = [windows[row] for row in rows]
        width, unscored = len(batch[0]), [IGNORE] * len(start)
        inputs = torch.tensor([start + w[:-1] + [pad] * (width - len(w)) for w in batch])
        labels = torch.tensor([unscored + w[1:] + [IGNORE] * (width - len(w)) for w in batch])
        yield rows, inputs, labels
        heartbeat.tick()


@torch.inference_mode()
def bits_per_byte(
    scoring_model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    named: str,
    sequence_length: int,
    max_tokens: int,
    batch_size: int,
) -> dict[str, Any]:
    """Measure bits per byte: sum of -log2 p of the predicted tokens divided by their UTF-8 bytes.

    The model was prepared by `score_tokens_in_forward`.

    Returns:
        `bits_per_byte`, `half_interval` (half the 95% interval over the blocks; None for one
        block), `tokens`, `bytes`, and `blocks`: NLL in nats and bytes of each block of documents,
        with the hash of the texts.
    """
    found = cut(
        tokenizer, texts, named=named, sequence_length=sequence_length, max_tokens=max_tokens
    )
    num_bytes, block_of = sum(found.text_bytes), blocks(len(found.text_bytes))
    nll, device = 0.0, scoring_model.device
    block_nll = [0.0] * (block_of[-1] + 1)
    for rows, inputs, labels in window_batches(found.ids, tokenizer, batch_size):
        scored = scoring_model(input_ids=inputs.to(device), shift_labels=labels.to(device))
        losses = scored["nll"].double()
        nll += float(losses.sum())
        for row, own in zip(rows, losses.sum(1).tolist(), strict=True):
            block_nll[block_of[found.documents[row]]] += own
    block_bytes = np.bincount(block_of, found.text_bytes).astype(int).tolist()
    _, half = ratio_interval(block_nll, block_bytes)
    return {
        "bits_per_byte": nll / math.log(2) / num_bytes,
        "half_interval": None if half is None else half / math.log(2),
        "tokens": sum(found.counts),
        "bytes": num_bytes,
        "blocks": {"nll": block_nll, "bytes": block_bytes, "texts_sha256": found.texts_sha256},
    }


def blocks(num_documents: int) -> list[int]:
    """Assign each document to one of at most `MAX_BLOCKS` blocks of consecutive documents."""
    count = min(MAX_BLOCKS, num_documents)
    return [number * count // num_documents for number in range(num_documents)]
