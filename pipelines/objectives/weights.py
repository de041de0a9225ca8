"""Token weights of mid-training, as pure functions of log-probabilities.

The ReMiT equation (arXiv 2602.03075, section 3, equations 3 to 5) is `remit_weights`.
"""

from __future__ import annotations

from torch import Tensor


def remit_weights(
    logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, *, eps: float = 0.2
) -> Tensor:
    """ReMiT's weights: softly up-weight what the reference knows better than the learner.

        d_t = ref_logprobs_t - logprobs_t                      (eq. 3; = loss_learner - loss_ref)
        c_t = d_t - mean of d over the targets of the sequence  (eq. 4)
        w_t = clip(2 * sigmoid(c_t), 1 - eps, 1 + eps)          (eq. 5)

    The weights carry no gradient (our choice: the paper does not say). A sequence is one row, the
    packed training context (our choice).

    Args:
        logprobs: learner's log-probability of each target, [batch, seq]; detached here.
        ref_logprobs: the frozen reference's, [batch, seq].
        mask: true where the position is a target, [batch, seq].
        eps: half width of the clip range (paper: 0.2).

    Returns:
        fp32 weights [batch, seq], 0 where the mask is false. All 1 where d is constant in a row.
    """
    targets = mask.bool()
    d = discrepancy(logprobs, ref_logprobs, targets)
    count = targets.sum(dim=-1, keepdim=True).clamp(min=1)
    centred = d - d.sum(dim=-1, keepdim=True) / count
    weights = (2.0 * centred.sigmoid()).clamp(1.0 - eps, 1.0 + eps)
    return weights.masked_fill(~targets, 0.0)


def discrepancy(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """d_t of equation 3 in fp32, without gradient, 0 where the mask is false: [batch, seq]."""
    d = ref_logprobs.detach().float() - logprobs.detach().float()
    return d.masked_fill(~mask.bool(), 0.0)
