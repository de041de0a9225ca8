"""Losses of mid-training: sums over tokens divided by a count that the caller passes in."""

from __future__ import annotations

import torch
from torch import Tensor


def weighted_nll(nll: Tensor, weights: Tensor | None, divisor: Tensor | float) -> Tensor:
    """L = sum_t w_t * nll_t / N (arXiv 2602.03075, eq. 6; the divisor is our choice).

    Args:
        nll: negative log-likelihood of each target, [batch, seq], 0 where there is no target.
        weights: [batch, seq], or None for plain next-token prediction (w = 1).
        divisor: N, the targets of the whole optimizer step: all ranks, all micro-batches. Or the
            sum of the weights of the whole step; or, for RHO-1, the number of targets kept.

    Returns:
        Scalar; summed over the micro-batches and ranks of a step it is the loss of the step.
    """
    total = nll.sum() if weights is None else (weights * nll).sum()
    return total / _not_zero(divisor)


def self_normalized_nll(
    nll: Tensor, weights: Tensor, mask: Tensor, num_targets: Tensor | float
) -> Tensor:
    """(n / N) * sum_t w_t nll_t / sum_t w_t, where n counts the targets given (our choice).

    What one micro-batch adds to the loss of a step when each is divided by its own weights.

    Args:
        nll, weights: [batch, seq], 0 where there is no target.
        mask: true where the position is a target, [batch, seq].
        num_targets: N, the targets of the whole step.
    """
    weight_sum = weights.sum()
    share = mask.sum() / _not_zero(num_targets)
    # Without a target both are 0, and so is the loss.
    return share * (weights * nll).sum() / weight_sum.clamp(min=1e-12)


def distillation(nll: Tensor, kl: Tensor, num_targets: Tensor | float, *, alpha: float) -> Tensor:
    """Knowledge distillation: sum_t ((1 - alpha) * nll_t + alpha * KL(p_R || p_theta)_t) / N.

    Args:
        nll: [batch, seq], 0 where there is no target.
        kl: forward KL from the reference at temperature 1, [batch, seq], 0 where there is no
            target.
        num_targets: N, the targets of the whole step.
        alpha: share of the KL term (the paper's rival: 0.5).
    """
    return ((1.0 - alpha) * nll + alpha * kl).sum() / _not_zero(num_targets)


def _not_zero(divisor: Tensor | float) -> Tensor | float:
    """The divisor, but 1 for 0: a step without targets has the loss 0 and no gradient."""
    if isinstance(divisor, Tensor):
        return torch.where(divisor == 0, torch.ones_like(divisor), divisor)
    return divisor or 1.0
