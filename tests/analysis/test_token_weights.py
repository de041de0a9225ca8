"""Weights by group and by token: numbers worked out by hand, and a naive loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipelines.analysis.token_weights import by_group, extremes, weights_of
from pipelines.analysis.training_text import target_rows
from pipelines.objectives.objective import Objective

NAN = float("nan")


def naive_weights(logprobs: np.ndarray, ref: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Equations 3 to 5 in float64, one token after another."""
    found = np.zeros(logprobs.shape)
    for row in range(len(logprobs)):
        targets = [t for t in range(logprobs.shape[1]) if mask[row, t]]
        d = {t: float(ref[row, t]) - float(logprobs[row, t]) for t in targets}
        mean = sum(d.values()) / max(1, len(d))
        for t in targets:
            found[row, t] = min(1.2, max(0.8, 2 / (1 + math.exp(mean - d[t]))))
    return found


def test_weights_are_those_of_the_equation() -> None:
    rng = np.random.default_rng(0)
    logprobs, ref = (-rng.exponential(2.0, (5, 9)).astype(np.float32) for _ in range(2))
    mask = rng.random((5, 9)) > 0.2
    found = weights_of(
        Objective("remit"), torch.tensor(logprobs), torch.tensor(ref), torch.tensor(mask),
        torch.zeros(5, 9, dtype=torch.long), micro_batch_size=2,
    )  # fmt: skip
    np.testing.assert_allclose(found.numpy(), naive_weights(logprobs, ref, mask), atol=1e-6)
    same = weights_of(
        Objective("remit"), torch.tensor(ref), torch.tensor(ref), torch.tensor(mask),
        torch.zeros(5, 9, dtype=torch.long), micro_batch_size=2,
    )  # fmt: skip
    assert torch.equal(same, torch.tensor(mask).float()), "reference = learner: all weights are 1"


def test_a_micro_batch_is_what_the_mean_over_a_batch_sees() -> None:
    logprobs = torch.tensor([[0.0, -0.2], [-0.4, -0.6]])
    given = (logprobs, torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool), torch.zeros(2, 2))
    objective = Objective("remit", center="batch", map="identity")
    alone = weights_of(objective, *given, micro_batch_size=1)
    together = weights_of(objective, *given, micro_batch_size=2)
    torch.testing.assert_close(alone, torch.tensor([[0.9, 1.1], [0.9, 1.1]]))
    torch.testing.assert_close(together, torch.tensor([[0.8, 0.9], [1.1, 1.2]]))


def test_values_move_to_the_token_that_is_predicted() -> None:
    values = np.array([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]], dtype=np.float32)
    mask = np.array([[True, True, False], [False, True, False]])
    np.testing.assert_array_equal(target_rows(values, mask), [NAN, 1.0, 2.0, NAN, NAN, 0.0])


def test_groups_by_hand() -> None:
    weights = np.array([NAN, 0.8, 1.0, 1.2, 1.2, 0.9], dtype=np.float32)
    found = by_group(weights, ["a", "a", "a", "b", "b", "b"], ["a", "b", "c"], eps=0.2)
    assert found["a"] == {
        "tokens": 2, "mean_weight": pytest.approx(0.9), "clipped_low": 0.5, "clipped_high": 0.0
    }  # fmt: skip
    assert found["b"]["tokens"] == 3 and found["b"]["mean_weight"] == pytest.approx(1.1)
    assert found["b"]["clipped_high"] == pytest.approx(2 / 3) and found["b"]["clipped_low"] == 0.0
    assert list(found) == ["a", "b"], "a group without a target is left out"


def test_extremes_by_hand() -> None:
    ids = np.array([7, 7, 5, 5, 3, 3, 2, 9, 9])
    weights = np.array([1.2, 1.0, 0.9, NAN, 0.8, 0.8, 1.2, 1.0, 1.1], dtype=np.float32)
    high, low = extremes(weights, ids, count=5, least=2)
    assert [(i, n) for i, n, _ in high] == [(7, 2)], "of three tokens seen often, one in each list"
    assert high[0][2] == pytest.approx(1.1)
    assert [(i, n, round(m, 3)) for i, n, m in low] == [(3, 2, 0.8)]
    assert extremes(weights, ids, least=3) == ([], [])
