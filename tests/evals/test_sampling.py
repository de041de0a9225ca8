"""pass@k, mean@n and entropy by hand; drawn answers of a real model through the CLI."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines.evals.generation import Decoding, SeededSampler, generate_answers
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


def test_draws_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.1, 0.0, 0.25, 0.6, 0.05])
    # Numbers in equal steps: each token is drawn as often as it is likely.
    uniforms = (torch.arange(1000, dtype=torch.float64)[:, None] + 0.5) / 1000
    drawn = SeededSampler(uniforms, prompt_length=3)(
        torch.zeros(1000, 3, dtype=torch.long), probabilities.log().expand(1000, 5)
    )
    assert torch.bincount(drawn.argmax(-1), minlength=5).tolist() == [100, 0, 250, 600, 50]
    assert (drawn > -torch.inf).sum(-1).eq(1).all()


def test_draws_belong_to_their_prompts(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    prompts = [tokenizer(text).input_ids for text in ("add 3", "sort 312 now", "x", "count it")]
    drawing = Decoding(8, num_samples=3, temperature=1.5, top_p=0.9)

    def drawn(order: list[int], batch_size: int) -> list[list[str]]:
        given = [prompts[i] for i in order]
        found = generate_answers(
            model, tokenizer, given, drawing, batch_size=batch_size, seeds=order
        )
        return [found[order.index(i)] for i in range(4)]

    together = drawn([0, 1, 2, 3], 100)
    assert drawn([2, 0, 3, 1], 3) == together
    assert all(len(set(answers)) > 1 for answers in together)


def test_what_a_model_says_of_generation_changes_no_answer(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    prompts = [tokenizer(text).input_ids for text in ("add 3", "sort 312 now")]

    def answers(decoding: Decoding) -> list[list[str]]:
        return generate_answers(
            model, tokenizer, prompts, decoding, batch_size=2, seeds=range(len(prompts))
        )

    for decoding in (Decoding(8), Decoding(8, num_samples=3, temperature=1.5)):
        expected = answers(decoding)
        model.generation_config.repetition_penalty = 9.0
        model.generation_config.suppress_tokens = list(range(5, 30))
        model.generation_config.min_new_tokens = 8
        assert answers(decoding) == expected


def test_cli_draws_answers(remit: Any, tiny_model: Path, tmp_path: Path) -> None:
    found = {}
    for ranks in ("1", "2"):
        run = tmp_path / ranks
        remit(
            "eval", "--model", tiny_model, "--config", "world-tiny", "--run-dir", run,
            "--gpus", ranks, "eval.tasks.world.samples=8", "eval.tasks.world.limit=60",
            "eval.tasks.world.sampled_questions=2", "eval.tasks.world.temperature=2.0",
            f"eval.batch_size={32 * int(ranks)}", check=True,
        )  # fmt: skip
        found[ranks] = json.loads((run / "eval" / "result.json").read_text())["tasks"]
    assert found["1"] == found["2"]
    for task in found["1"].values():
        drawn = task["sampled"]
        assert task["questions"] > task["sampled_questions"] == 2
        assert drawn["mean@8"] == drawn["pass@1"]
        assert drawn["pass@1"]["mean"] <= drawn["pass@4"]["mean"] <= drawn["pass@8"]["mean"]
        assert 0 < drawn["entropy"]["mean"] <= math.log(8)
