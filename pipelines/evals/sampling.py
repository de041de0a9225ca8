"""What several drawn answers to each question say: pass@k, mean@n, and how varied they are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pipelines.evals.intervals import Z95


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k answers is right.

    Source: Chen et al. 2021, arXiv 2107.03374, equation 1: 1 - C(n - c, k) / C(n, k).

    Raises:
        ValueError: k above the number of answers drawn.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} needs at least {k} answers, and {num_samples} were drawn")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def entropy(answers: Sequence[str]) -> float:
    """Entropy in nats of the answers drawn to one question, as they are distributed.

    At most log(n) for n answers; a narrow model gives few different ones.
    """
    counts = Counter(answers).values()
    return sum(-count / len(answers) * math.log(count / len(answers)) for count in counts)


def sampled_scores(correct: Sequence[int], num_samples: int, entropies: Sequence[float]) -> Any:
    """mean@n, pass@k for k = 1, 2, 4, ... n, and the mean entropy of the final answers.

    Args:
        correct: right answers among the `num_samples` of each question.
        entropies: entropy of the final answers to each question, in nats; empty where it is not
            known.

    Returns:
        Means over the questions with half their 95% intervals, by name.
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
