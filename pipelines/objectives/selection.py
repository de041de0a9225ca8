"""MiniPLM's selection of whole sequences (arXiv 2410.17215), from two sets of scores."""

from __future__ import annotations

import numpy as np


def difference_score(logprobs: np.ndarray, small_logprobs: np.ndarray, num_targets: int) -> float:
    """r = mean NLL under the small model - mean NLL under the reference, of one sequence.

    Args:
        logprobs: of the reference, [context], 0 where there is no target.
        small_logprobs: of the small model, [context], 0 where there is no target.
        num_targets: targets of the sequence.
    """
    total = logprobs.sum(dtype=np.float64) - small_logprobs.sum(dtype=np.float64)
    return float(total / max(1, num_targets))


def top_half(scores: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest scores in corpus order; of equal ones the first.

    Args:
        scores: r of each sequence of the pool, [pool].
        count: sequences to keep, half of the pool.
    """
    best = np.argsort(-scores, kind="stable")[:count]
    return np.sort(best)
