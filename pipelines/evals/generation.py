"""Generate answers to many prompts, in large batches sorted by length."""

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
        stop: text at which an answer is cut off; if it is a single token, generation stops there.
        num_samples: samples per prompt; 0 gives one greedy answer.
    """

    max_new_tokens: int
    stop: str = ""
    num_samples: int = 0
    temperature: float = 1.0
    top_p: float = 1.0


class SeededSampler(LogitsProcessor):
    """Samples each next token by inverse transform sampling from a given uniform number.

    It keeps only the first token whose cumulative probability exceeds the number, which lies in
    [0, 1). A sample thus depends only on its prompt and seed, and not on the rest of the batch or
    on the number of ranks. The numbers are float64 [rows, new tokens].
    """

    def __init__(self, uniforms: Tensor, prompt_length: int) -> None:
        self.uniforms, self.prompt_length = uniforms, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.prompt_length
        cumulative = scores.double().softmax(-1).cumsum(-1)
        threshold = self.uniforms[:, step : step + 1].to(scores.device) * cumulative[:, -1:]
        sampled = torch.searchsorted(cumulative, threshold, right=True)
        return torch.full_like(scores, -torch.inf).scatter_(1, sampled, 0.0)


def _sampler(decoding: Decoding, seeds: Sequence[int], prompt_length: int) -> LogitsProcessorList:
    """Logits processors that sample `num_samples` answers per prompt, each from its own seed."""
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
    """Reset a model's generation config, except for the ids of its special tokens.

    `generate` would otherwise read every setting that the caller leaves open from the model's
    `generation_config.json`: penalties, suppressed tokens, a minimum length. The end-of-text tokens
    stay, because they belong to the model's chat format.
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
    """Generate the continuations of each prompt, given by its token ids, in their order.

    Args:
        seeds: one sampling seed per prompt; unused if decoding is greedy.
        batch_size: sequences generated together; halved when they do not fit into memory.
    """
    # Longest first: if the first batch fits into memory, the later ones do too.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    stop, each = decoding.stop, max(1, decoding.num_samples)
    stop_ids = tokenizer(stop, add_special_tokens=False).input_ids if stop else []
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
        length, sampler = batch["input_ids"].shape[1], None
        if decoding.num_samples:
            sampler = _sampler(decoding, [seeds[i] for i in chosen], length)
        generated = model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
            logits_processor=sampler, generation_config=generation_config,
        )  # fmt: skip
        texts = tokenizer.batch_decode(generated[:, length:], skip_special_tokens=True)
        cut = [text.split(stop)[0] if stop else text for text in texts]
        return [cut[i : i + each] for i in range(0, len(cut), each)]

    answers = in_batches(order, max(1, batch_size // each), generate, "prompts", on_share)
    return [given for _, given in sorted(zip(order, answers, strict=True))]
