"""Token weights by value: against numbers worked out by hand and a naive loop in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.objectives.losses import weighted_nll
from pipelines.objectives.weights import WeightMap, discrepancy, remit_weights, rho1_weights


def naive(logprobs, ref_logprobs, mask, eps):
    """Equations 3 to 5, token by token, in Python floats."""
    rows = []
    for own, ref, targets in zip(
        logprobs.tolist(), ref_logprobs.tolist(), mask.tolist(), strict=True
    ):
        d = [r - o for o, r in zip(own, ref, strict=True)]
        counted = [x for x, t in zip(d, targets, strict=True) if t]
        mean = sum(counted) / len(counted) if counted else 0.0
        rows.append(
            [
                min(max(2 / (1 + math.exp(-(x - mean))), 1 - eps), 1 + eps) if t else 0.0
                for x, t in zip(d, targets, strict=True)
            ]
        )
    return torch.tensor(rows)


def test_numbers_worked_out_by_hand() -> None:
    # d = 0.3, 0.1, 0.2, (masked 9): mean 0.2; c = 0.1, -0.1, 0; 2 sigmoid(0.1) = 1.0499584.
    logprobs = torch.tensor([[-1.0, -1.0, -1.0, -1.0]])
    ref = torch.tensor([[-0.7, -0.9, -0.8, 8.0]])
    mask = torch.tensor([[1, 1, 1, 0]])
    weights = remit_weights(logprobs, ref, mask)
    expected = torch.tensor([[1.0499584, 0.9500416, 1.0, 0.0]])
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=0)


def test_clip_binds_at_ln_one_and_a_half() -> None:
    # 2 sigmoid(c) = 1.2 at c = ln 1.5 = 0.405.
    d = torch.tensor([[0.5, -0.5, 0.4, -0.4]])
    weights = remit_weights(torch.zeros(1, 4), d, torch.ones(1, 4))
    bounds = torch.tensor([1.2, 0.8])
    assert torch.equal(weights[0, :2], bounds)
    assert 1.19 < weights[0, 2] < 1.2 and 0.8 < weights[0, 3] < 0.81


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 0.9))
def test_equals_the_naive_loop(seed: int, eps: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logprobs = -torch.rand(3, 7, generator=generator) * 4
    ref = -torch.rand(3, 7, generator=generator) * 4
    mask = torch.rand(3, 7, generator=generator) < 0.7
    weights = remit_weights(logprobs, ref, mask, eps=eps)
    torch.testing.assert_close(weights, naive(logprobs, ref, mask, eps), atol=2e-6, rtol=0)
    assert weights.dtype == torch.float32


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(-3, 3))
def test_a_constant_added_to_d_changes_nothing(seed: int, constant: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logprobs, ref = torch.randn(2, 6, generator=generator), torch.randn(2, 6, generator=generator)
    mask = torch.ones(2, 6, dtype=torch.bool)
    moved = remit_weights(logprobs, ref + constant, mask)
    torch.testing.assert_close(moved, remit_weights(logprobs, ref, mask), atol=1e-5, rtol=0)


def test_reference_equal_to_learner_gives_exactly_one() -> None:
    logprobs = torch.randn(4, 9)
    mask = torch.rand(4, 9) < 0.5
    assert torch.equal(remit_weights(logprobs, logprobs.clone(), mask), mask.float())


def test_masked_tokens_enter_no_mean() -> None:
    logprobs = torch.zeros(1, 5)
    ref = torch.tensor([[0.1, 0.2, 0.3, 100.0, -100.0]])
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    weights = remit_weights(logprobs, ref, mask)
    alone = remit_weights(logprobs[:, :3], ref[:, :3], mask[:, :3])
    assert torch.equal(weights[:, :3], alone)
    assert torch.equal(weights[:, 3:], torch.zeros(1, 2))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000), st.floats(0.05, 0.9), st.sampled_from(["sigmoid", "identity", "tanh"])
)
def test_weights_lie_in_their_range_and_rise_with_d(seed: int, eps: float, map: WeightMap) -> None:
    generator = torch.Generator().manual_seed(seed)
    d, _ = torch.sort(3 * torch.randn(2, 20, generator=generator))
    weights = remit_weights(torch.zeros(2, 20), d, torch.ones(2, 20), eps=eps, map=map)
    assert (weights.diff() >= 0).all()
    bounds = torch.tensor([1 - eps, 1 + eps])
    assert bounds[0] <= weights.min() and weights.max() <= bounds[1]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.permutations(range(4)))
def test_permuted_sequences_have_permuted_weights(seed: int, order: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    logprobs, ref = torch.randn(4, 5, generator=generator), torch.randn(4, 5, generator=generator)
    mask = torch.rand(4, 5, generator=generator) < 0.8
    for weigh in (remit_weights, rho1_weights):
        together = weigh(logprobs, ref, mask)
        permuted = weigh(logprobs[order], ref[order], mask[order])
        # A row's sum is added up in an order that depends on where the row lies.
        torch.testing.assert_close(permuted, together[order], atol=1e-6, rtol=0)


def test_no_gradient_reaches_the_weights_or_the_reference() -> None:
    logprobs = torch.randn(2, 4, requires_grad=True)
    ref = torch.randn(2, 4, requires_grad=True)
    mask = torch.ones(2, 4)
    weights = remit_weights(logprobs, ref, mask)
    weighted_nll(-logprobs, weights, 8).backward()
    assert ref.grad is None
    torch.testing.assert_close(logprobs.grad, -weights / 8)


def test_all_ones_is_plain_nll_and_an_empty_mask_is_nothing() -> None:
    nll = torch.rand(2, 4, requires_grad=True)
    assert torch.equal(weighted_nll(nll, torch.ones(2, 4), 8), weighted_nll(nll, None, 8))
    empty = torch.zeros(2, 4)
    weights = remit_weights(-nll, -torch.rand(2, 4), empty)
    loss = weighted_nll(nll, weights, 1)
    loss.backward()
    assert loss == 0 and torch.equal(nll.grad, empty)


@pytest.mark.parametrize("parts", [[1, 1], [2, 6], [3, 1, 4]])
def test_ragged_micro_batches_add_up_to_the_step(parts: list[int]) -> None:
    count = sum(parts)
    nll, weights = torch.rand(1, count), torch.rand(1, count)
    whole = weighted_nll(nll, weights, count)
    pieces = zip(nll.split(parts, 1), weights.split(parts, 1), strict=True)
    torch.testing.assert_close(sum(weighted_nll(n, w, count) for n, w in pieces), whole)


def test_discrepancy_is_reference_minus_learner() -> None:
    d = discrepancy(torch.tensor([[-2.0, -1.0]]), torch.tensor([[-0.5, -3.0]]), torch.ones(1, 2))
    assert torch.equal(d, torch.tensor([[1.5, -2.0]]))


MAPS = {"sigmoid": lambda c: 2 / (1 + math.exp(-c)), "identity": lambda c: 1 + c,
        "tanh": lambda c: 1 + math.tanh(c)}  # fmt: skip


def naive_with_switches(logprobs, ref, mask, documents, *, eps, center, map, standardize):
    """Every switch, token by token, in Python floats."""
    rows, columns = mask.shape
    cells = [(i, j) for i in range(rows) for j in range(columns) if mask[i, j]]
    d = {(i, j): float(ref[i, j]) - float(logprobs[i, j]) for i, j in cells}

    def group(i, j):
        return {"sequence": i, "document": (i, int(documents[i, j]))}.get(center, 0)

    weights = torch.zeros(rows, columns)
    for cell in cells:
        peers = [d[other] for other in cells if group(*other) == group(*cell)]
        mean = sum(peers) / len(peers)
        c = d[cell] - (0 if center == "none" else mean)
        if standardize:
            c /= math.sqrt(max(sum((x - mean) ** 2 for x in peers) / len(peers), 1e-8))
        weights[cell] = min(max(MAPS[map](c), 1 - eps), 1 + eps)
    return weights


def random_scores(seed: int, rows: int = 3, columns: int = 8) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    logprobs, ref = (-torch.rand(2, rows, columns, generator=generator) * 4).unbind()
    mask = torch.rand(rows, columns, generator=generator) < 0.7
    documents = torch.randint(2, (rows, columns), generator=generator).cumsum(-1)
    return logprobs, ref, mask, documents


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("map", list(MAPS))
@pytest.mark.parametrize("center", ["none", "sequence", "document", "batch"])
@pytest.mark.parametrize("eps", [0.2, 0.9])
def test_every_switch_equals_the_naive_loop(
    eps: float, center: str, map: str, standardize: bool
) -> None:
    switches = {"eps": eps, "center": center, "map": map, "standardize": standardize}
    for seed in range(5):
        logprobs, ref, mask, documents = random_scores(seed)
        weights = remit_weights(logprobs, ref, mask, documents=documents, **switches)
        expected = naive_with_switches(logprobs, ref, mask, documents, **switches)
        torch.testing.assert_close(weights, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("center", ["sequence", "document", "batch"])
@pytest.mark.parametrize("standardize", [False, True])
def test_a_constant_d_is_weight_one_under_every_center(center: str, standardize: bool) -> None:
    logprobs, _, mask, documents = random_scores(3)
    weights = remit_weights(
        logprobs, logprobs + 0.7, mask, center=center, standardize=standardize, documents=documents
    )
    torch.testing.assert_close(weights, mask.float(), atol=5e-3 if standardize else 1e-6, rtol=0)


def test_centring_over_a_document_does_not_see_the_other_documents_of_its_row() -> None:
    logprobs, ref, _, _ = random_scores(5, rows=1, columns=6)
    documents = torch.tensor([[0, 0, 0, 1, 1, 1]])
    ones = torch.ones(1, 6)
    together = remit_weights(logprobs, ref, ones, center="document", documents=documents)
    for part in (slice(0, 3), slice(3, 6)):
        alone = remit_weights(logprobs[:, part], ref[:, part], ones[:, part])
        torch.testing.assert_close(together[:, part], alone, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="documents"):
        remit_weights(logprobs, ref, ones, center="document")


def test_without_detach_the_gradient_is_autograds() -> None:
    logprobs, ref, mask, _ = random_scores(7)
    own = logprobs.clone().requires_grad_()
    weights = remit_weights(own, ref, mask, detach=False, eps=0.9)
    weighted_nll(-own, weights, 10).backward()

    free = logprobs.clone().double().requires_grad_()
    d = (ref.double() - free).masked_fill(~mask, 0)
    c = d - d.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)
    naive_weights = (2 * torch.sigmoid(c)).clamp(0.1, 1.9).masked_fill(~mask, 0)
    (-(naive_weights * free).sum() / 10).backward()
    torch.testing.assert_close(own.grad, free.grad.float(), atol=1e-6, rtol=1e-5)
    # At d = 0, uncentred, a token's gradient is 1 + NLL / 2 times that of plain training.
    own = logprobs.clone().requires_grad_()
    ones = torch.ones_like(mask)
    weights = remit_weights(own, logprobs, ones, center="none", detach=False)
    weighted_nll(-own, weights, 1).backward()
    torch.testing.assert_close(-own.grad, 1 - logprobs / 2, atol=1e-5, rtol=0)


def test_rho1_by_hand() -> None:
    # d = 3, 1, 2, (masked 9), 0, 1: ceil(0.6 * 5) = 3 are kept; of the two ones the first.
    ref = torch.tensor([[3.0, 1.0, 2.0], [9.0, 0.0, 1.0]])
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    weights = rho1_weights(torch.zeros(2, 3), ref, mask)
    assert weights.tolist() == [[1, 1, 1], [0, 0, 0]]
    assert rho1_weights(torch.zeros(2, 3), ref, mask, k=1.0).tolist() == mask.tolist()


def test_rho1_keeps_no_token_for_a_rounding_error() -> None:
    # 0.07 * 100 is 7.000000000000001 in floating point.
    mask = torch.ones(1, 100, dtype=torch.bool)
    weights = rho1_weights(torch.zeros(1, 100), torch.arange(100.0)[None], mask, k=0.07)
    assert weights.sum() == 7


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 1.0), st.floats(-3, 3))
def test_rho1_keeps_the_largest_share(seed: int, k: float, constant: float) -> None:
    logprobs, ref, mask, _ = random_scores(seed)
    weights = rho1_weights(logprobs, ref, mask, k=k)
    kept = weights.bool()
    assert int(kept.sum()) == math.ceil(round(k * int(mask.sum()), 6))
    assert not (kept & ~mask).any()
    d = ref - logprobs
    if kept.any() and (mask & ~kept).any():
        assert d[kept].min() >= d[mask & ~kept].max()
    assert torch.equal(rho1_weights(logprobs, ref, torch.zeros_like(mask)), torch.zeros(3, 8))
    order = torch.tensor([2, 0, 1])
    moved = rho1_weights(logprobs[order], ref[order], mask[order], k=k)
    assert torch.equal(moved, weights[order])


SLOPES = {"sigmoid": 0.5, "identity": 1.0, "tanh": 1.0}


@pytest.mark.parametrize("map", list(SLOPES))
def test_rounded_scores_move_a_weight_within_the_stated_bound(map: WeightMap) -> None:
    """Slope * (own error + mean error of the sequence); docs/background/method.md."""
    generator = torch.Generator().manual_seed(11)
    logprobs, ref = (-6 * torch.rand(2, 16, 128, generator=generator)).unbind()
    mask = torch.rand(16, 128, generator=generator) < 0.9

    def excess(rounded: torch.Tensor, errors: torch.Tensor) -> float:
        moved = remit_weights(logprobs, rounded, mask, map=map, eps=0.9)
        moved = (moved - remit_weights(logprobs, ref, mask, map=map, eps=0.9)).abs()
        mean = errors.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)
        assert moved.max() > 0
        return float((moved - SLOPES[map] * (errors + mean))[mask].max())

    stated = (ref.abs() / 2048).masked_fill(~mask, 0.0)
    kept = ref.half().float()
    errors = (kept - ref).abs().masked_fill(~mask, 0.0)
    assert (errors <= stated).all()
    assert excess(kept, errors) < 1e-6
    assert excess(kept, stated) < 1e-6
    # A coarser cache would be seen.
    assert excess((32 * ref).round() / 32, stated) > 1e-3
