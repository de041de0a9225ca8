"""95% intervals of accuracies and of their differences."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z95 = 1.959963984540054


def wilson(correct: float, count: int) -> tuple[float, float]:
    """Wilson score interval of a proportion; (0, 1) without observations."""
    if not count:
        return 0.0, 1.0
    p, z2 = correct / count, Z95**2
    centre = (p + z2 / (2 * count)) / (1 + z2 / count)
    half = Z95 * math.sqrt(p * (1 - p) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def macro_average(scores: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Mean of task accuracies, each weighing the same, and half its 95% interval.

    Args:
        scores: (accuracy, number of questions) of each task.
    """
    mean = sum(p for p, _ in scores) / len(scores)
    variance = sum(p * (1 - p) / n for p, n in scores) / len(scores) ** 2
    return mean, Z95 * math.sqrt(variance)


def paired_difference(
    first: dict[str, list[int]], second: dict[str, list[int]]
) -> tuple[float, float]:
    """Macro-averaged difference second - first on the same questions, and half its 95% interval.

    Args:
        first, second: per task, 1 or 0 for each question, in the same order.
    """
    if first.keys() != second.keys() or any(len(first[k]) != len(second[k]) for k in first):
        raise ValueError("the two evaluations have different questions")
    means, variances = [], []
    for task, bits in first.items():
        deltas = [b - a for a, b in zip(bits, second[task], strict=True)]
        n, mean = len(deltas), sum(deltas) / len(deltas)
        means.append(mean)
        variances.append(sum((x - mean) ** 2 for x in deltas) / max(1, n - 1) / n)
    k = len(means)
    return sum(means) / k, Z95 * math.sqrt(sum(variances)) / k
