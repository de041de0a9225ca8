"""Mid-training losses: each sums over tokens and divides by a count that the caller passes in."""

from __future__ import annotations

import torch
from torch import Tensor


def weighted_nll(nll: Tensor, weights: Tensor | None, divisor: Tensor | float) -> Tensor:
    """Compute L = sum_t w_t * nll_t / N (arXiv 2602.03075, eq. 6; the divisor is our choice).

    Args:
        nll: negative log-likelihood of each target, [batch, seq]; 0 at positions without a target.
        weights: [batch, seq], or None for plain next-token prediction (w = 1).
        divisor: N, the targets in the whole optimizer step, over all ranks and micro-batches; or
            the sum of the step's weights or, for RHO-1, the number of selected targets.

    Returns:
        A scalar. Its sum over the micro-batches and ranks of a step is the loss of the step.
    """
    total = nll.sum() if weights is None else (weights * nll).sum()
    return total / _not_zero(divisor)


def self_normalized_nll(
    nll: Tensor, weights: Tensor, mask: Tensor, num_targets: Tensor | float
) -> Tensor:
    """Compute (n / N) * sum_t w_t nll_t / sum_t w_t, where n counts the targets (our choice).

    Each micro-batch is normalized by the sum of its own weights; this is its part of the step.

    Args:
        nll, weights, mask: [batch, seq]; 0 or false at positions without a target.
        num_targets: N, the number of targets in the whole step.
    """
    weight_sum = weights.sum()
    share = mask.sum() / _not_zero(num_targets)
    # A micro-batch without targets adds 0: share and numerator are both 0.
    return share * (weights * nll).sum() / weight_sum.clamp(min=1e-12)


def distillation(nll: Tensor, kl: Tensor, num_targets: Tensor | float, *, alpha: float) -> Tensor:
    """Distil the reference: sum_t ((1 - alpha) * nll_t + alpha * KL(p_R || p_theta)_t) / N.

    Args:
        nll, kl: [batch, seq]; 0 at positions without a target. The KL has temperature 1.
        num_targets: N, the number of targets in the whole step.
        alpha: weight of the KL term (the paper's baseline uses 0.5).
    """
    return ((1.0 - alpha) * nll + alpha * kl).sum() / _not_zero(num_targets)


def _not_zero(divisor: Tensor | float) -> Tensor | float:
    """Replace a divisor of 0 by 1, so that a step without targets has loss 0 and gradient 0."""
    if isinstance(divisor, Tensor):
        return torch.where(divisor == 0, torch.ones_like(divisor), divisor)
    return divisor or 1.0
