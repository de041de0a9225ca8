"""Token weights of mid-training, as pure functions of log-probabilities.

`remit_weights` implements ReMiT (arXiv 2602.03075, section 3, equations 3 to 5), `rho1_weights`
RHO-1's token selection (arXiv 2404.07965, equation 4).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Center = Literal["none", "sequence", "document", "batch"]
WeightMap = Literal["sigmoid", "identity", "tanh"]


def remit_weights(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    *,
    eps: float = 0.2,
    center: Center = "sequence",
    map: WeightMap = "sigmoid",
    standardize: bool = False,
    detach: bool = True,
    documents: Tensor | None = None,
) -> Tensor:
    """Compute ReMiT's weights: they favour tokens that the reference predicts better.

        d_t = ref_logprobs_t - logprobs_t                      (eq. 3; = loss_learner - loss_ref)
        c_t = d_t - mean of d over the targets of the sequence  (eq. 4)
        w_t = clip(2 * sigmoid(c_t), 1 - eps, 1 + eps)          (eq. 5)

    The defaults follow the paper. Two of them are our choice, since the paper leaves them open: the
    weights carry no gradient, and a sequence is one row, the packed training context. The other
    settings are for ablations.

    Args:
        logprobs: learner's log-probability of each target, [batch, seq].
        ref_logprobs: frozen reference's log-probability, [batch, seq]; it gets no gradient.
        mask: true where the position has a target, [batch, seq].
        eps: half width of the clip range (paper: 0.2).
        center: group of the mean: `sequence` (one row), `document`, `batch` (all rows) or `none`.
        map: `sigmoid` (the paper's 2 sigmoid(c)), `identity` (1 + c) or `tanh` (1 + tanh(c)).
        standardize: divide c by the standard deviation of d in the group (`none`: in all rows).
        detach: if false, the gradient flows through the weights into the learner.
        documents: document number of each position, [batch, seq]; for `center="document"`.

    Returns:
        fp32 [batch, seq]; 0 where the mask is false, 1 where d is constant within a group.

    Raises:
        ValueError: `center="document"` without documents, or an unknown center or map.
    """
    targets = mask.bool()
    d = discrepancy(logprobs, ref_logprobs, targets, detach=detach)
    group = _groups(targets, center, documents)
    centred = d if center == "none" else d - _mean(d, targets, group)
    if standardize:
        about_mean = d - _mean(d, targets, group)
        variance = _mean(about_mean.square().masked_fill(~targets, 0.0), targets, group)
        # A spread below 1e-4 is rounding error: a constant d must give weight 1.
        centred = centred / variance.clamp(min=1e-8).sqrt()
    weights = _mapped(centred, map).clamp(1.0 - eps, 1.0 + eps)
    return weights.masked_fill(~targets, 0.0)


def rho1_weights(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, *, k: float = 0.6) -> Tensor:
    """Compute RHO-1's selection: weight 1 for the fraction `k` of targets with most excess loss.

    The excess loss loss_learner - loss_ref, d_t of `remit_weights`, is ranked over all rows given
    (arXiv 2404.07965, equations 3 and 4).

    Args:
        logprobs, ref_logprobs: [batch, seq]; no gradient flows through the ranking.
        mask: true where the position has a target, [batch, seq].
        k: fraction of the targets to select: ceil(k * targets) of them; ties go to the first.

    Returns:
        fp32 weights [batch, seq], 1 or 0; 0 where the mask is false.
    """
    targets = mask.bool()
    d = discrepancy(logprobs, ref_logprobs, targets).masked_fill(~targets, -math.inf)
    # Round before ceil: in floating point 0.6 * 5 is slightly above 3.
    num_selected = math.ceil(round(k * int(targets.sum()), 6))
    order = d.flatten().argsort(descending=True, stable=True)
    weights = torch.zeros_like(d).flatten()
    weights[order[:num_selected]] = 1.0
    return weights.view_as(d)


def discrepancy(
    logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, *, detach: bool = True
) -> Tensor:
    """Compute d_t of equation 3 in fp32, [batch, seq]; 0 where the mask is false."""
    own = logprobs.detach() if detach else logprobs
    d = ref_logprobs.detach().float() - own.float()
    return d.masked_fill(~mask.bool(), 0.0)


def _mapped(centred: Tensor, map: WeightMap) -> Tensor:
    if map == "sigmoid":
        return 2.0 * centred.sigmoid()
    if map == "identity":
        return 1.0 + centred
    if map == "tanh":
        return 1.0 + centred.tanh()
    raise ValueError(f"unknown map {map!r}: choose sigmoid, identity or tanh")


def _groups(targets: Tensor, center: Center, documents: Tensor | None) -> Tensor | int | None:
    """Return the groups to average over: a dimension (each row), None (all rows), or group ids."""
    if center == "sequence":
        return -1
    if center in ("batch", "none"):
        return None
    if center != "document":
        raise ValueError(f"unknown center {center!r}: choose none, sequence, document or batch")
    if documents is None:
        raise ValueError("center='document' needs documents: the document number of each position")
    row = torch.arange(len(targets), device=targets.device)[:, None]
    return (row * (int(documents.max()) + 1) + documents).flatten()


def _mean(values: Tensor, targets: Tensor, group: Tensor | int | None) -> Tensor:
    """Average values [batch, seq] over the targets of each group; non-targets must be 0."""
    if group is None:
        return values.sum() / targets.sum().clamp(min=1)
    if isinstance(group, int):
        num_targets = targets.sum(dim=group, keepdim=True).clamp(min=1)
        return values.sum(dim=group, keepdim=True) / num_targets
    size = int(group.max()) + 1
    total = values.new_zeros(size).index_add(0, group, values.flatten())
    count = values.new_zeros(size).index_add(0, group, targets.flatten().to(values.dtype))
    return (total / count.clamp(min=1))[group].view_as(values)
