"""Metrics over several samples per question: pass@k, mean@n and the entropy of the answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pipelines.evals.intervals import Z95


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate of the probability that at least one of k samples is right.

    Source: Chen et al. 2021, arXiv 2107.03374, equation 1: 1 - C(n - c, k) / C(n, k).

    Raises:
        ValueError: k is not between 1 and the number of samples.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, but there are {num_samples}")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def entropy(answers: Sequence[str]) -> float:
    """Empirical entropy, in nats, of the sampled answers to one question: 0 if all are equal."""
    counts = Counter(answers).values()
    return sum(-count / len(answers) * math.log(count / len(answers)) for count in counts)


def sampled_scores(correct: Sequence[int], num_samples: int, entropies: Sequence[float]) -> Any:
    """Mean@n, pass@k for k = 1, 2, 4, ... n, and entropy, with half their 95% intervals, by name.

    Args:
        correct: for each question, the number of right answers among its `num_samples`.
        entropies: entropy of the final answers to each question, in nats; empty if it is not known.
    """
    ks = [2**i for i in range(num_samples.bit_length()) if 2**i <= num_samples]
    values = {f"mean@{num_samples}": [c / num_samples for c in correct]}
    values |= {f"pass@{k}": [pass_at_k(num_samples, c, k) for c in correct] for k in ks}
    if entropies:
        values["entropy"] = list(entropies)
    return {name: _mean(found) for name, found in values.items()}


def _mean(values: Sequence[float]) -> dict[str, float]:
    n, mean = len(values), sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / max(1, n - 1)
    return {"mean": mean, "half_interval": Z95 * math.sqrt(variance / n)}
