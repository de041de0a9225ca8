"""MiniPLM's selection of whole sequences (arXiv 2410.17215) by the scores of two models."""

from __future__ import annotations

import numpy as np


def difference_score(logprobs: np.ndarray, small_logprobs: np.ndarray, num_targets: int) -> float:
    """Compute r = mean NLL under the small model - mean NLL under the reference, for one sequence.

    Args:
        logprobs: log-probabilities under the reference, [seq]; 0 at positions without a target.
        small_logprobs: the same under the small model, [seq].
    """
    total = logprobs.sum(dtype=np.float64) - small_logprobs.sum(dtype=np.float64)
    return float(total / max(1, num_targets))


def top_half(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the `count` largest scores [pool], in order; ties go to the first."""
    best = np.argsort(-scores, kind="stable")[:count]
    return np.sort(best)
