"""Which tokens are up-weighted: mean weight and clipped share by token group, and single tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipelines.objectives.objective import Objective


def weights_of(
    objective: Objective,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    documents: Tensor,
    micro_batch_size: int,
) -> Tensor:
    """Compute the weights of many sequences as training would, one micro-batch at a time.

    `center="batch"` and RHO-1's ranking see the sequences of one micro-batch. All tensors are
    [sequences, seq], see `remit_weights`; the weights are fp32, and 0 where the mask is false.
    """
    tensors = (logprobs, ref_logprobs, mask, documents)
    parts = zip(*(x.split(micro_batch_size) for x in tensors), strict=True)
    return torch.cat([objective.weights(*part) for part in parts])


def by_group(
    weights: np.ndarray, groups: Sequence[str], names: Sequence[str], eps: float
) -> dict[str, dict[str, float]]:
    """Count targets and compute mean weight and shares clipped to 1 -+ eps, by group of tokens.

    Weights are fp32 [tokens], NaN for a token that is not a target. Of the groups in `names`, those
    without targets are omitted.
    """
    group, target = np.asarray(groups), ~np.isnan(weights)
    found = {}
    for name in names:
        if len(own := weights[(group == name) & target]):
            found[name] = {
                "tokens": len(own),
                "mean_weight": float(own.mean(dtype=np.float64)),
                # Compare with the bounds rounded to fp32, which are the values that clamp produces.
                "clipped_low": float((own <= np.float32(1.0 - eps)).mean()),
                "clipped_high": float((own >= np.float32(1.0 + eps)).mean()),
            }
    return found


def extremes(
    weights: np.ndarray, ids: np.ndarray, *, count: int = 20, least: int = 20
) -> tuple[list[tuple[int, int, float]], list[tuple[int, int, float]]]:
    """Token ids with the highest and with the lowest mean weight, as (id, targets, mean weight).

    Each list has at most `count` ids, none is in both, and each id has `least` targets or more.
    Weights are [tokens], NaN for a token that is not a target.
    """
    target = ~np.isnan(weights)
    sums = np.bincount(ids[target], weights[target].astype(np.float64))
    times = np.bincount(ids[target])
    often = np.flatnonzero(times >= least)
    means = sums[often] / times[often]
    order = np.argsort(-means, kind="stable")
    listed = [(int(often[i]), int(times[often[i]]), float(means[i])) for i in order]
    count = min(count, len(listed) // 2)
    return listed[:count], listed[len(listed) - count :][::-1]
