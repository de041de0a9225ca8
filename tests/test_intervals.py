"""95% intervals against published values and arithmetic by hand."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from pipelines.evals.intervals import (
    Z95,
    macro_average,
    mean_interval,
    paired_difference,
    ratio_interval,
    wilson,
)


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_published(correct: int, count: int, low: float, high: float) -> None:
    assert wilson(correct, count) == pytest.approx((low, high), abs=5e-5)


def test_wilson_edges() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(20, 20)
    assert (low, high) == pytest.approx((1 - 0.1611, 1.0), abs=5e-5)
    for correct in range(11):
        low, high = wilson(correct, 10)
        assert 0 <= low <= high <= 1
        assert low - 1e-12 <= correct / 10 <= high + 1e-12
        mirrored = wilson(10 - correct, 10)
        assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-12)


def test_more_questions_narrow_it() -> None:
    widths = [high - low for low, high in (wilson(n // 2, n) for n in (10, 100, 1000))]
    assert widths == sorted(widths, reverse=True)
    assert widths[2] == pytest.approx(2 * Z95 * math.sqrt(0.25 / 1000), rel=0.01)


def test_macro_average_weighs_tasks_the_same() -> None:
    mean, half = macro_average([(0.5, 100), (0.2, 400)])
    # With two right and two wrong more: 52 of 104 and 82 of 404, of the mean of two: a quarter.
    variance = (0.25 / 104 + (82 / 404) * (322 / 404) / 404) / 4
    assert mean == pytest.approx(0.35)
    assert half == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-6)
    # 7 of 9.
    assert macro_average([(1.0, 5)]) == (1.0, pytest.approx(1.959964 * math.sqrt(14 / 81 / 9)))


def test_paired_difference_by_hand() -> None:
    rng = random.Random(0)
    first = {"a": [rng.randint(0, 1) for _ in range(400)], "b": [1, 0] * 100}
    second = {"a": [rng.randint(0, 1) for _ in range(400)], "b": [1, 1] * 100}
    deltas = {
        task: [y - x for x, y in zip(first[task], second[task], strict=True)] for task in "ab"
    }
    means = {task: sum(found) / len(found) for task, found in deltas.items()}
    assert means["b"] == 0.5
    difference, half = paired_difference(first, second)
    assert difference == pytest.approx((means["a"] + 0.5) / 2)
    # A bootstrap has the variance of the sample, over n; with many questions it is a normal one.
    variance = sum(
        sum((d - means[task]) ** 2 for d in found) / len(found) ** 2
        for task, found in deltas.items()
    )
    assert half == pytest.approx(Z95 * math.sqrt(variance) / 2, rel=0.03)
    assert paired_difference(first, second) == (difference, half)
    back = paired_difference(second, first)
    assert back == (pytest.approx(-difference), pytest.approx(half, rel=0.03))


def test_pairing_narrows_what_agrees() -> None:
    bits = {"a": [0, 1] * 50}
    assert paired_difference(bits, bits) == (0.0, pytest.approx(Z95 / 100))


def test_equal_answers_are_no_certainty() -> None:
    bits = {"a": [1] * 20}
    assert paired_difference(bits, bits) == (0.0, pytest.approx(Z95 / 20))
    many = {"a": [1, 0] * 50 + [1] * 300}, {"a": [0, 1] * 50 + [1] * 300}
    plain = Z95 * math.sqrt(100 / 400**2)
    assert plain < paired_difference(*many)[1] < 1.03 * plain  # the bootstrap moves it by 1% itself
    assert math.hypot(1, 1 / math.sqrt(100)) < 1.02


def test_intervals_cover() -> None:
    rng = np.random.default_rng(0)
    counts, rates = (20, 40, 40), (0.97, 0.9, 0.02)
    hits = 0
    for _ in range(2000):
        scores = [(rng.binomial(n, p) / n, n) for n, p in zip(counts, rates, strict=True)]
        mean, half = macro_average(scores)
        hits += abs(mean - sum(rates) / 3) < half
    assert 0.93 < hits / 2000 < 0.995
    hits = 0
    for _ in range(200):
        # Answers that differ are rare: two in a hundred each way.
        deltas = {n: rng.choice([-1, 0, 1], n, p=[0.02, 0.96, 0.02]) for n in (30, 40)}
        first = {str(n): (found < 0).astype(int).tolist() for n, found in deltas.items()}
        second = {str(n): (found > 0).astype(int).tolist() for n, found in deltas.items()}
        difference, half = paired_difference(first, second)
        hits += abs(difference) < half
    assert 0.93 < hits / 200 <= 1.0


@pytest.mark.parametrize("other", [{"a": [1]}, {"b": [1, 0]}, {"a": [1, 0], "b": [1, 0]}, {}])
def test_other_questions_are_not_compared(other: dict[str, list[int]]) -> None:
    with pytest.raises(ValueError, match="different questions"):
        paired_difference({"a": [1, 0]}, other)


def test_a_ratio_of_equal_documents_is_their_mean() -> None:
    values = [0.2, 0.5, 0.1, 0.9]
    plain = mean_interval(values)
    ratio = ratio_interval([10 * value for value in values], [10] * 4)
    assert ratio == (pytest.approx(plain[0]), pytest.approx(plain[1]))
    assert ratio_interval([3.0], [2]) == (1.5, None)


def test_a_ratio_interval_covers() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        counts = rng.integers(1, 40, 60)
        own = rng.normal(0.3, 0.5, 60)
        sums = own * counts + rng.normal(0, 1, 60) * np.sqrt(counts)
        mean, half = ratio_interval(sums.tolist(), counts.tolist())
        assert half is not None
        hits += abs(mean - 0.3) < half
    assert 0.92 < hits / 1000 < 0.97
