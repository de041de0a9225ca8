"""Accuracy along the annealing: which questions, and the scores of given answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.analysis import annealing
from pipelines.analysis.annealing import first_questions, scores_of
from pipelines.evals.questions import task_problems
from pipelines.recipe import load as recipes

TEN = ["analysis.accuracy_questions=10", "eval.tasks.world.limit=400"]


def test_the_first_questions_of_each_family() -> None:
    config = recipes.load("world-tiny", TEN)
    (asked,) = first_questions(config)
    assert {asked.families.count(family) for family in asked.families} == {10}
    everything = task_problems("world", config.eval.tasks["world"], config.data_root)
    for family in set(asked.families):
        own = [p.prompt for p, f in zip(asked.problems, asked.families, strict=True) if f == family]
        assert own == [p.prompt for p in everything if p.record["family"] == family][:10]


@pytest.mark.parametrize("off", ["analysis.accuracy_questions=0", "eval.tasks.world.enabled=false"])
def test_nothing_to_ask(off: str) -> None:
    assert first_questions(recipes.load("world-tiny", [off])) == []


def test_scores_of_given_answers(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    """One right answer of every ten, and in one family all ten."""
    from pipelines.models.tokenizer import load_tokenizer

    asked = first_questions(recipes.load("world-tiny", TEN))
    (only,) = asked
    whole, seen = only.families[0], dict.fromkeys(only.families, 0)
    answers = []
    for problem, family in zip(only.problems, only.families, strict=True):
        seen[family] += 1
        right = family == whole or seen[family] == 3
        answers.append([f"so {problem.answer}" if right else "so it is nothing"])

    def generate(model: Any, tokenizer: Any, prompts: list[Any], decoding: Any, **_: Any) -> Any:
        assert len(prompts) == 100 and decoding.num_samples == 0 and decoding.max_new_tokens == 8
        return answers

    monkeypatch.setattr(annealing, "generate_answers", generate)
    found = scores_of(None, load_tokenizer(tiny_model), asked, 8)
    assert found["tasks"][whole]["bits"] == "1" * 10
    others = [score for family, score in found["tasks"].items() if family != whole]
    assert len(others) == 9 and {score["bits"] for score in others} == {"0010000000"}
    # Wilson's interval of 1 in 10.
    assert others[0]["interval"] == pytest.approx((0.0179, 0.4042), abs=1e-4)
    assert found["average"] == pytest.approx(0.19)
    # With two answers more of each kind: p = 3 / 14 in nine families and 12 / 14 in one,
    # 1.96 sqrt((9 * 3 * 11 + 12 * 2) / 14^3) / 10.
    assert found["average_half_interval"] == pytest.approx(0.0670, abs=1e-4)
