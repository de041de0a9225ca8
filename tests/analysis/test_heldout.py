"""Gaps and divergences on held-out text against the whole distributions in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from pipelines.analysis.heldout import (
    HeldOut,
    divergence,
    gap,
    read_heldout,
    window_kl,
    window_logprobs,
)
from pipelines.models.tokenizer import load_tokenizer
from pipelines.objectives.token_nll import score_tokens_in_forward

TEXTS = ["add 3 4", "so 7", "the cat saw a red box", "x"]


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(tiny_model)


@pytest.fixture
def pair(tiny_model: Path) -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """Two models: the second has other weights."""
    first, second = (LlamaForCausalLM.from_pretrained(tiny_model).eval() for _ in range(2))
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in second.parameters():
            weight += 0.3 * torch.randn_like(weight) * weight.std()
    return first, second


def naive_logprobs(model: LlamaForCausalLM, window: list[int]) -> torch.Tensor:
    """Log-distributions before each token of a window but its first, float64 [targets, vocab]."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([window[:-1]]), use_cache=False).logits
    return logits[0].double().log_softmax(-1)


def test_log_probabilities_and_divergences(tokenizer: Any, pair: Any) -> None:
    first, second = pair
    heldout = read_heldout(tokenizer, TEXTS, named="web", sequence_length=10, max_tokens=10_000)
    assert heldout.counts == [6, 3, 10, 10], "in their order, cut to the context"
    expected, expected_kl = [], []
    for window in heldout.windows:
        p, q = naive_logprobs(first, window), naive_logprobs(second, window)
        expected.append(float(q.gather(1, torch.tensor(window[1:])[:, None]).sum()))
        expected_kl.append(float((p.exp() * (p - q)).sum()))
    score_tokens_in_forward(first, len(tokenizer))
    score_tokens_in_forward(second, len(tokenizer), first.get_output_embeddings())
    found = window_logprobs(second, tokenizer, heldout, batch_size=4)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    kl = window_kl(second, first, tokenizer, heldout, batch_size=4)
    np.testing.assert_allclose(kl, expected_kl, rtol=1e-3, atol=1e-5)
    assert (kl > 0).all()


def test_text_is_taken_to_a_number_of_tokens(tokenizer: Any) -> None:
    heldout = read_heldout(tokenizer, ["a" * 50], named="web", sequence_length=9, max_tokens=20)
    assert heldout.counts == [9, 9, 9]
    assert read_heldout(tokenizer, TEXTS, named="web", sequence_length=99, max_tokens=8).counts == [
        6,
        3,
    ]


def test_gap_by_hand() -> None:
    # Windows of 1 and 3 tokens whose gaps are 1 and 0.2 a token: (1 + 0.6) / 4.
    found = gap(np.array([-2.0, -3.0]), np.array([-1.0, -2.4]), [1, 3])
    assert found["mean"] == pytest.approx(0.4)
    # Residuals 1 - 0.4 and 0.6 - 1.2: sqrt(2 / 1 (0.36 + 0.36)) / 4 times t = 12.706.
    assert found["half_interval"] == pytest.approx(12.706 * 1.2 / 4)
    assert gap(np.array([-1.0]), np.array([-1.0]), [2]) == {"mean": 0.0, "half_interval": None}
    assert divergence(np.array([1.0, 3.0]), [5, 5])["kl"] == pytest.approx(0.4)


def test_windows_without_text() -> None:
    assert HeldOut([]).counts == []
