"""Greedy answers to many prompts: sorted by length, in large batches, each rank its share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase


@torch.inference_mode()
def greedy_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    stop: str = "",
) -> list[str]:
    """The greedy continuation of each prompt, in the order of the prompts.

    Args:
        prompts: token ids of each prompt.
        stop: text at which an answer is cut; generation ends early on it where it is one token.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    stop_ids = tokenizer(stop, add_special_tokens=False).input_ids if stop else []
    eos_ids = [tokenizer.eos_token_id, *(stop_ids if len(stop_ids) == 1 else [])]
    answers: list[str] = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = tokenizer.pad(
            {"input_ids": [prompts[i] for i in chosen]}, padding_side="left", return_tensors="pt"
        ).to(model.device)
        generated = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=eos_ids,
            pad_token_id=tokenizer.pad_token_id,
        )
        new_ids = generated[:, batch["input_ids"].shape[1] :]
        for i, text in zip(
            chosen, tokenizer.batch_decode(new_ids, skip_special_tokens=True), strict=True
        ):
            answers[i] = text.split(stop)[0] if stop else text
    return answers
