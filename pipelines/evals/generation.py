"""Answers to many prompts: sorted by length, in large batches, each rank its share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded.

    Attributes:
        max_new_tokens: length of an answer.
        stop: text at which an answer is cut; generation ends early on it where it is one token.
        num_samples: answers drawn for each prompt; 0: one, greedy.
        temperature, top_p: of the draws.
    """

    max_new_tokens: int
    stop: str = ""
    num_samples: int = 0
    temperature: float = 1.0
    top_p: float = 1.0


@torch.inference_mode()
def generate_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    decoding: Decoding,
    *,
    batch_size: int,
) -> list[list[str]]:
    """The continuations of each prompt, in the order of the prompts.

    Args:
        prompts: token ids of each prompt.
        batch_size: sequences generated together; halved where they do not fit into memory.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    stop = decoding.stop
    stop_ids = tokenizer(stop, add_special_tokens=False).input_ids if stop else []
    each = max(1, decoding.num_samples)
    options: dict[str, Any] = {"do_sample": False}
    if decoding.num_samples:
        options = {
            "do_sample": True,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "top_k": 0,
            "num_return_sequences": each,
        }
    options |= {
        "max_new_tokens": decoding.max_new_tokens,
        "eos_token_id": [tokenizer.eos_token_id, *(stop_ids if len(stop_ids) == 1 else [])],
        "pad_token_id": tokenizer.pad_token_id,
    }
    answers: list[list[str]] = [[] for _ in prompts]
    size = max(1, batch_size // each)
    start = 0
    while start < len(order):
        chosen = order[start : start + size]
        batch = tokenizer.pad(
            {"input_ids": [prompts[i] for i in chosen]}, padding_side="left", return_tensors="pt"
        ).to(model.device)
        try:
            generated = model.generate(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **options
            )
        except torch.OutOfMemoryError:
            if len(chosen) == 1:
                raise
            size = len(chosen) // 2
            print(f"{len(chosen)} prompts do not fit: {size} from here on", flush=True)
            continue
        new_ids = generated[:, batch["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(new_ids, skip_special_tokens=True)
        for place, text in enumerate(texts):
            answers[chosen[place // each]].append(text.split(stop)[0] if stop else text)
        start += len(chosen)
    return answers
