"""Losses of mid-training: sums over tokens divided by a count that the caller passes in."""

from __future__ import annotations

from torch import Tensor


def weighted_nll(nll: Tensor, weights: Tensor | None, num_targets: Tensor | int) -> Tensor:
    """L = sum_t w_t * nll_t / N (arXiv 2602.03075, eq. 6; the divisor N is our choice).

    Args:
        nll: negative log-likelihood of each target, [batch, seq], 0 where there is no target.
        weights: [batch, seq] without gradient, or None for plain next-token prediction (w = 1).
        num_targets: N, the targets of the whole optimizer step: all ranks, all micro-batches.

    Returns:
        Scalar; summed over the micro-batches and ranks of a step it is the loss of the step.
    """
    total = nll.sum() if weights is None else (weights * nll).sum()
    return total / num_targets
