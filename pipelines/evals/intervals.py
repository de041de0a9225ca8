"""95% intervals of accuracies and of their differences."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Z95 = 1.959963984540054
RESAMPLES = 10_000


def _stats() -> Any:
    """Import scipy.stats only when an interval is needed: the import takes a second."""
    from scipy import stats

    return stats


def _quantile(freedom: int) -> float:
    """97.5% quantile of Student's t, rounded to 3 decimals; the normal quantile above 30."""
    return round(float(_stats().t.ppf(0.975, freedom)), 3) if freedom <= 30 else Z95


def wilson(correct: int, count: int) -> tuple[float, float]:
    """Wilson score interval of a proportion; (0, 1) without observations."""
    if not count:
        return 0.0, 1.0
    found = _stats().binomtest(int(correct), count).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def task_score(bits: Sequence[int]) -> dict[str, Any]:
    """Accuracy of a task with its Wilson interval, from one bit per question: 1 if it is right."""
    return {
        "accuracy": sum(bits) / len(bits),
        "interval": wilson(sum(bits), len(bits)),
        "questions": len(bits),
        "bits": "".join(map(str, bits)),
    }


def digest_of(questions: Iterable[str]) -> str:
    """SHA-256 over questions in order: equal only if the same questions were asked."""
    combined = hashlib.sha256()
    for question in questions:
        combined.update(hashlib.sha256(question.encode()).digest())
    return combined.hexdigest()


def macro_average(scores: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Unweighted mean of tasks, given as (accuracy, questions), and half its 95% interval.

    The variance of a task is that of Agresti and Coull (The American Statistician 52, 1998):
    p(1 - p) / (n + 4) with p = (x + 2) / (n + 4) for x right answers of n. It stays above 0 for a
    task whose answers are all right or all wrong.
    """
    mean = sum(p for p, _ in scores) / len(scores)
    adjusted = [((p * n + 2) / (n + 4), n + 4) for p, n in scores]
    variance = sum(p * (1 - p) / n for p, n in adjusted) / len(scores) ** 2
    return mean, Z95 * math.sqrt(variance)


def paired_difference(
    first: dict[str, list[int]], second: dict[str, list[int]]
) -> tuple[float, float]:
    """Macro-averaged difference second - first on the same questions, and half its 95% interval.

    The interval comes from a seeded paired bootstrap (Efron and Tibshirani 1993, chapter 13) with
    `RESAMPLES` resamples: each resamples the questions of every task, with the answers of both
    models. Differences are -1, 0 or 1, so a resample is one multinomial draw per task.

    If no two answers differ, a bootstrap finds no spread. Each task therefore gets the variance of
    one unseen discordant pair as well, half of it in each direction: with T tasks of n_t questions,
    half = sqrt(bootstrap half^2 + Z95^2 sum_t 1 / (n_t T)^2). The half pair in each cell is that of
    Agresti and Min (Statistics in Medicine 24, 2005); adding its variance is our choice. With d
    discordant pairs it widens the interval by 1 / (2d) of its width.

    Both have, by task, 1 or 0 for each question, in the same order; other tasks or numbers of
    questions raise a ValueError.
    """
    if first.keys() != second.keys() or any(len(first[k]) != len(second[k]) for k in first):
        raise ValueError("the two evaluations have different questions")
    rng = np.random.default_rng(0)
    means, resampled, unseen = [], np.zeros(RESAMPLES), 0.0
    for task, bits in first.items():
        deltas = np.asarray(second[task]) - np.asarray(bits)
        counts = np.array([np.sum(deltas == value) for value in (-1, 0, 1)])
        found = rng.multinomial(len(deltas), counts / len(deltas), size=RESAMPLES)
        means.append(float(deltas.mean()))
        resampled += (found[:, 2] - found[:, 0]) / len(deltas)
        unseen += 1 / len(deltas) ** 2
    low, high = np.percentile(resampled / len(means), (2.5, 97.5))
    half = math.hypot(float(high - low) / 2, Z95 * math.sqrt(unseen) / len(means))
    return sum(means) / len(means), half


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean of a few runs (seeds) and half its 95% interval by Student's t; None for one run."""
    n, mean = len(values), sum(values) / len(values)
    if n < 2:
        return mean, None
    variance = sum((x - mean) ** 2 for x in values) / (n - 1)
    return mean, _quantile(n - 1) * math.sqrt(variance / n)


def t_test(values: Sequence[float]) -> float | None:
    """Two-sided p-value of Student's t-test for mean 0; None for one value or equal values."""
    if len(values) < 2 or len(set(values)) == 1:
        return None
    return float(_stats().ttest_1samp(values, 0.0).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust p-values for multiple tests (Holm, Scandinavian Journal of Statistics 6, 1979).

    None stays None and is not counted.
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p, i) in enumerate(order):
        least = max(least, min(1.0, p * (len(order) - rank)))
        adjusted[i] = least
    return adjusted


def ratio_interval(sums: Sequence[float], counts: Sequence[int]) -> tuple[float, float | None]:
    """Mean per token, sum(sums) / sum(counts), and half its 95% interval over documents.

    Each document has the sum of its tokens' values and their number. The interval is that of a
    ratio estimator, so tokens of one document may be correlated; None for fewer than two documents.
    """
    n, total = len(sums), sum(counts)
    mean = sum(sums) / total
    if n < 2:
        return mean, None
    squares = sum((s - mean * c) ** 2 for s, c in zip(sums, counts, strict=True))
    return mean, _quantile(n - 1) * math.sqrt(squares * n / (n - 1)) / total


def bits_difference(
    first: dict[str, Any], second: dict[str, Any]
) -> tuple[float, float | None] | None:
    """Bits per byte of the second model minus the first's, and half its 95% interval.

    It is paired over the `blocks` of two results; None if they have none, or are of other texts.
    """
    if not first or any(first[key] != second.get(key) for key in ("bytes", "texts_sha256")):
        return None
    deltas = [y - x for x, y in zip(first["nll"], second["nll"], strict=True)]
    mean, half = ratio_interval(deltas, first["bytes"])
    return mean / math.log(2), None if half is None else half / math.log(2)
