"""The loss of a step: divisors, micro-batches, distillation, selection of sequences."""

import itertools
import math
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.comparison.arm_rules import ARMS
from pipelines.objectives.losses import distillation, self_normalized_nll, weighted_nll
from pipelines.objectives.objective import NTP, Objective
from pipelines.objectives.selection import difference_score, top_half
from pipelines.objectives.token_nll import Head, token_kl, token_nll
from pipelines.recipe import load as recipes
from pipelines.recipe.schema import (
    OBJECTIVES,
    CompareConfig,
    MidTrainConfig,
    ObjectiveKind,
    VariantConfig,
)


def scores(rows: int = 4, columns: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(rows, columns, generator=generator) < 0.8
    nll = torch.rand(rows, columns, generator=generator) * mask
    ref = -torch.rand(rows, columns, generator=generator) * mask
    return nll, ref, mask


def test_the_sum_of_weights_divides_each_micro_batch_or_the_step() -> None:
    nll, ref, mask = scores()
    objective = Objective("remit", divisor="weights", eps=0.9)
    weights = objective.weights(-nll, ref, mask, None)
    num_targets = int(mask.sum())
    whole = objective.loss({"nll": nll}, weights, mask, num_targets, float(weights.sum()))
    torch.testing.assert_close(whole, (weights * nll).sum() / weights.sum())
    # One micro-batch is the whole step: the two agree.
    alone = objective.loss({"nll": nll}, weights, mask, num_targets)
    torch.testing.assert_close(alone, whole)
    halves = [
        float((weights[rows] * nll[rows]).sum() / weights[rows].sum() * mask[rows].sum())
        for rows in (slice(0, 2), slice(2, 4))
    ]
    parts = [
        objective.loss({"nll": nll[rows]}, weights[rows], mask[rows], num_targets)
        for rows in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close(sum(parts), torch.tensor(sum(halves) / num_targets))


def test_the_settings_of_a_recipe_reach_the_objective() -> None:
    given = {
        "eps": 0.1, "center": "batch", "map": "tanh", "standardize": True, "detach": False,
        "divisor": "weights",
    }  # fmt: skip
    section = recipes.load(
        "world-tiny",
        ["mid_train.objective=remit", "mid_train.scope=step", "mid_train.rho1.keep=0.3",
         "mid_train.kd.alpha=0.7", *(f"mid_train.remit.{key}={given[key]}" for key in given)],
    ).mid_train  # fmt: skip
    expected = Objective("remit", scope="step", keep=0.3, alpha=0.7, **given)  # type: ignore[arg-type]
    assert Objective.of(section) == expected
    nll, ref, mask = scores()
    narrow = Objective("remit", eps=0.1).weights(-nll, ref, mask, None)[mask]
    assert float(narrow.min()) == pytest.approx(0.9) and float(narrow.max()) == pytest.approx(1.1)
    kept = Objective("rho1", keep=0.3).weights(-nll, ref, mask, None)
    assert int(kept.sum()) == math.ceil(round(0.3 * int(mask.sum()), 6))


@pytest.mark.parametrize(
    ("name", "weights", "kl"),
    [("ntp", False, False), ("remit", True, False), ("rho1", True, False), ("kd", False, True)],
)
def test_what_an_objective_needs_of_the_reference(name: Any, weights: bool, kl: bool) -> None:
    assert (Objective(name).uses_weights, Objective(name).uses_kl) == (weights, kl)


def test_the_table_of_objectives_is_that_of_recipes_and_arms() -> None:
    names = [kind.name for kind in OBJECTIVES]
    hints = get_type_hints(MidTrainConfig)
    assert set(get_args(hints["objective"])) == {"auto", *names}
    assert {kind.section for kind in OBJECTIVES} <= {"", *hints}
    assert list(ARMS) == ["ntp", "kd", "miniplm", "rho1", "sft", "remit", "more-rl"]
    assert set(ARMS.values()) == set(names)
    for config, key in ((CompareConfig, "arms"), (VariantConfig, "arm")):
        (text,) = (field.metadata["help"] for field in fields(config) if field.name == key)
        assert [arm for arm in ARMS if arm not in text] in ([], ["more-rl"]), text


@pytest.mark.parametrize("kind", OBJECTIVES, ids=lambda kind: kind.name)
def test_an_objective_weights_tokens_where_the_table_says_so(kind: ObjectiveKind) -> None:
    nll, ref, mask = scores()
    objective, read = Objective(kind.name), ref if kind.reads == "logprobs" else None
    if not kind.weights_tokens:
        with pytest.raises(ValueError, match=f"objective {kind.name} has no weights"):
            objective.weights(-nll, read, mask, None)
        return
    weights = objective.weights(-nll, read, mask, None)
    assert weights.shape == mask.shape and not weights[~mask].any()
    assert (weights[mask] != 1).any(), "the weights of another objective"
    if kind.reads == "logprobs":
        with pytest.raises(ValueError, match="has no weights for what it was given"):
            objective.weights(-nll, None, mask, None)


def test_no_objective_has_the_weights_of_another() -> None:
    nll, ref, mask = scores()
    found = [
        Objective(kind.name).weights(-nll, ref, mask, None)[mask].tolist()
        for kind in OBJECTIVES if kind.weights_tokens
    ]  # fmt: skip
    assert all(a != b for a, b in itertools.combinations(found, 2))


def test_rho1_divides_by_what_it_keeps() -> None:
    nll, ref, mask = scores()
    objective = Objective("rho1", keep=0.5)
    weights = objective.weights(-nll, ref, mask, None)
    num_targets = int(mask.sum())
    micro = objective.loss({"nll": nll}, weights, mask, num_targets)
    torch.testing.assert_close(micro, (weights * nll).sum() / (0.5 * num_targets))
    step = objective.loss({"nll": nll}, weights, mask, num_targets, float(weights.sum()))
    torch.testing.assert_close(step, (weights * nll).sum() / weights.sum())


@pytest.mark.parametrize(
    "objective",
    [NTP, Objective("remit"), Objective("remit", divisor="weights"), Objective("rho1"),
     Objective("kd")],
)  # fmt: skip
@pytest.mark.parametrize("step_divisor", [None, 0.0])
@pytest.mark.parametrize("num_targets", [1, 0, torch.tensor(0)], ids=str)
def test_an_empty_mask_gives_loss_and_gradient_zero(
    objective: Objective, num_targets: torch.Tensor | int, step_divisor: float | None
) -> None:
    """Of a micro-batch (others of its step have targets), and of a whole step."""
    nll = torch.zeros(2, 3, requires_grad=True)
    empty = torch.zeros(2, 3, dtype=torch.bool)
    kl = nll * 0.0
    weights = None
    if objective.uses_weights:
        weights = objective.weights(-nll, torch.randn(2, 3), empty, None)
    loss = objective.loss({"nll": nll * empty, "kl": kl}, weights, empty, num_targets, step_divisor)
    loss.backward()
    assert loss.item() == 0.0 and torch.equal(nll.grad, torch.zeros(2, 3))


def test_distillation_by_hand() -> None:
    nll, kl = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 0.25]])
    assert float(distillation(nll, kl, 2, alpha=0.5)) == pytest.approx((1.5 + 0.375) / 2)
    assert float(distillation(nll, kl, 2, alpha=0.0)) == float(weighted_nll(nll, None, 2))


def test_self_normalized_weights_do_not_see_a_common_factor() -> None:
    nll, _, mask = scores()
    weights = torch.rand(4, 6) * mask
    one = self_normalized_nll(nll, weights, mask, 20)
    torch.testing.assert_close(self_normalized_nll(nll, 3 * weights, mask, 20), one)


@pytest.mark.parametrize("chunk_bytes", [1 << 20, 2 * 4 * 17 * 3])
def test_kl_is_that_of_the_two_distributions(chunk_bytes: int) -> None:
    torch.manual_seed(0)
    head, ref_head = torch.nn.Linear(5, 20), torch.nn.Linear(7, 17)
    hidden, ref_hidden = torch.randn(9, 5, requires_grad=True), torch.randn(9, 7)
    mask = torch.arange(9) % 4 != 1
    reference = Head(ref_hidden, ref_head.weight, ref_head.bias)
    kl = token_kl(
        hidden, head.weight, reference, mask, bias=head.bias, num_tokens=17, chunk_bytes=chunk_bytes
    )
    own = torch.distributions.Categorical(logits=head(hidden)[:, :17])
    ref = torch.distributions.Categorical(logits=ref_head(ref_hidden))
    expected = torch.distributions.kl_divergence(ref, own) * mask
    torch.testing.assert_close(kl, expected, atol=1e-6, rtol=1e-5)
    upstream = torch.randn(9)
    (kl * upstream).sum().backward()
    found = hidden.grad.clone(), head.weight.grad.clone()
    assert ref_head.weight.grad is None
    hidden.grad = None
    head.zero_grad()
    (expected * upstream).sum().backward()
    torch.testing.assert_close(found[0], hidden.grad, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found[1], head.weight.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk_bytes", [1 << 20, 4 * 30 * 4])
def test_the_kernel_is_fp32_and_exact_under_any_gradient(
    dtype: torch.dtype, chunk_bytes: int
) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(11, 8).to(dtype).requires_grad_()
    weight = torch.randn(30, 8).to(dtype).requires_grad_()
    bias = torch.randn(30).to(dtype).requires_grad_()
    labels = torch.randint(30, (11,))
    labels[4] = -100
    upstream = torch.randn(11)
    nll = token_nll(hidden, weight, labels, bias=bias, chunk_bytes=chunk_bytes)
    assert nll.dtype == torch.float32 and nll[4] == 0
    (nll * upstream).sum().backward()

    leaves = [t.detach().double().requires_grad_() for t in (hidden, weight, bias)]
    logits = leaves[0] @ leaves[1].T + leaves[2]
    naive = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(nll.double(), naive, atol=1e-5, rtol=1e-5)
    (naive * upstream.double()).sum().backward()
    # Gradients come back in the type of what they belong to.
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for ours, exact in zip((hidden, weight, bias), leaves, strict=True):
        torch.testing.assert_close(ours.grad.double(), exact.grad, atol=tolerance, rtol=tolerance)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_the_chosen_half_is_the_best_in_corpus_order(seed: int, count: int) -> None:
    scores = np.random.default_rng(seed).normal(size=2 * count)
    chosen = top_half(scores, count)
    left = np.setdiff1d(np.arange(2 * count), chosen)
    assert len(chosen) == count and (np.diff(chosen) > 0).all()
    assert scores[chosen].min() >= scores[left].max()
    # Nothing but the order of the scores counts.
    assert np.array_equal(top_half(3 * scores + 1, count), chosen)


def test_miniplm_by_hand() -> None:
    ref, small = np.array([-1.0, -2.0, 0.0]), np.array([-2.0, -4.0, 0.0])
    assert difference_score(ref, small, num_targets=2) == 1.5
    assert top_half(np.array([0.1, 0.9, 0.5, 0.9]), 2).tolist() == [1, 3]
    assert top_half(np.array([1.0, 1.0, 1.0, 1.0]), 2).tolist() == [0, 1]
