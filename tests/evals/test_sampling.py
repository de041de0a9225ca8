"""pass@k, mean@n and entropy by hand; drawn answers of a real model through the CLI."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.evals.sampling import entropy, pass_at_k, sampled_scores


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), st.data())
def test_pass_at_k_counts_all_draws(drawn: tuple[int, int], data: st.DataObject) -> None:
    n, correct = drawn
    k = data.draw(st.integers(1, n))
    answers = [1] * correct + [0] * (n - correct)
    draws = list(itertools.combinations(answers, k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_more_than_was_drawn() -> None:
    with pytest.raises(ValueError, match="pass@5 needs at least 5"):
        pass_at_k(4, 1, 5)


def test_entropy_by_hand() -> None:
    assert entropy(["4", "4", "4"]) == 0.0
    assert entropy(["4", "5"]) == pytest.approx(math.log(2))
    assert entropy(["a", "a", "b", "c"]) == pytest.approx(1.5 * math.log(2))


def test_scores_by_hand() -> None:
    found = sampled_scores([4, 0, 2], 4, [0.0, 1.0, 0.5])
    assert list(found) == ["mean@4", "pass@1", "pass@2", "pass@4", "entropy"]
    assert found["mean@4"]["mean"] == pytest.approx(0.5) == found["pass@1"]["mean"]
    # Of two of four answers, both wrong: 1 of 6 pairs.
    assert found["pass@2"]["mean"] == pytest.approx((1 + 0 + 5 / 6) / 3)
    assert found["pass@4"]["mean"] == pytest.approx(2 / 3)
    assert found["entropy"]["half_interval"] == pytest.approx(1.959964 * 0.5 / math.sqrt(3))


def test_cli_draws_answers(remit: Any, tiny_model: Path, tmp_path: Path) -> None:
    remit(
        "eval", "--model", tiny_model, "--config", "world-tiny", "--run-dir", tmp_path / "run",
        "eval.tasks.world.samples=8", "eval.tasks.world.limit=20",
        "eval.tasks.world.temperature=2.0", check=True,
    )  # fmt: skip
    tasks = json.loads((tmp_path / "run" / "eval" / "result.json").read_text())["tasks"]
    for task in tasks.values():
        drawn = task["sampled"]
        assert drawn["mean@8"] == drawn["pass@1"]
        assert drawn["pass@1"]["mean"] <= drawn["pass@4"]["mean"] <= drawn["pass@8"]["mean"]
        assert 0 < drawn["entropy"]["mean"] <= math.log(8)
