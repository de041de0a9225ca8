"""Answers to many prompts: sorted by length, in large batches, each rank its share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from pipelines.models.batches import in_batches


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


class SeededSampler(LogitsProcessor):
    """Leaves of the next token's distribution the one token that a given number draws.

    The number is uniform in [0, 1), and the token the first whose cumulated probability is above
    it. So a draw belongs to its prompt, whatever else is in the batch and on however many ranks.

    Args:
        uniforms: float64 [rows, new tokens].
        prompt_length: tokens of the padded prompts.
    """

    def __init__(self, uniforms: Tensor, prompt_length: int) -> None:
        self.uniforms = uniforms
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.prompt_length
        cumulated = scores.double().softmax(-1).cumsum(-1)
        sought = self.uniforms[:, step : step + 1].to(scores.device) * cumulated[:, -1:]
        drawn = torch.searchsorted(cumulated, sought, right=True)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)


def _sampler(decoding: Decoding, seeds: Sequence[int], prompt_length: int) -> LogitsProcessorList:
    """Draws of `num_samples` answers to each prompt, from a generator for each answer."""
    uniforms = [
        np.random.default_rng([seed, number]).random(decoding.max_new_tokens)
        for seed in seeds
        for number in range(decoding.num_samples)
    ]
    return LogitsProcessorList([
        TemperatureLogitsWarper(float(decoding.temperature)),
        TopPLogitsWarper(min(1.0, decoding.top_p)),
        SeededSampler(torch.from_numpy(np.stack(uniforms)), prompt_length),
    ])  # fmt: skip


def decode_plainly(model: Any) -> None:
    """Take what `generation_config.json` says from a model, but for the ids of special tokens.

    `generate` would fill in from it whatever the caller does not set: penalties, suppressed tokens,
    a least length. Its end-of-text tokens stay: they belong to the model's chat format.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
    )


@torch.inference_mode()
def generate_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    decoding: Decoding,
    *,
    batch_size: int,
    seeds: Sequence[int] = (),
    on_share: Callable[[float], None] = lambda share: None,
) -> list[list[str]]:
    """The continuations of each prompt, in the order of the prompts.

    Args:
        prompts: token ids of each prompt.
        seeds: of the draws, one for each prompt; unused where decoding is greedy.
        batch_size: sequences generated together; halved where they do not fit into memory.
        on_share: told after each batch the part that is done, from 0 to 1.
    """
    # The longest first: what fits then, fits later.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    stop = decoding.stop
    stop_ids = tokenizer(stop, add_special_tokens=False).input_ids if stop else []
    each = max(1, decoding.num_samples)
    decode_plainly(model)
    generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=decoding.max_new_tokens,
        eos_token_id=[tokenizer.eos_token_id, *(stop_ids if len(stop_ids) == 1 else [])],
        pad_token_id=tokenizer.pad_token_id,
    )

    def generate(chosen: Sequence[int]) -> list[list[str]]:
        batch = tokenizer.pad(
            {"input_ids": [prompts[i] for i in chosen for _ in range(each)]},
            padding_side="left", return_tensors="pt",
        ).to(model.device)  # fmt: skip
        length = batch["input_ids"].shape[1]
        draws = None
        if decoding.num_samples:
            draws = _sampler(decoding, [seeds[i] for i in chosen], length)
        generated = model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
            logits_processor=draws, generation_config=generation_config,
        )  # fmt: skip
        texts = tokenizer.batch_decode(generated[:, length:], skip_special_tokens=True)
        cut = [text.split(stop)[0] if stop else text for text in texts]
        return [cut[i : i + each] for i in range(0, len(cut), each)]

    answers = in_batches(order, max(1, batch_size // each), generate, "prompts", on_share)
    return [given for _, given in sorted(zip(order, answers, strict=True))]
