"""Expected behaviours of the built-in world: met, not met, or not part of this plan."""

from __future__ import annotations

from typing import Any

from pipelines.report.summary import expectations


def evaluation(right: int, questions: int = 200) -> dict[str, Any]:
    bits = "1" * right + "0" * (questions - right)
    accuracy = right / questions
    task = {
        "accuracy": accuracy, "interval": [accuracy - 0.05, accuracy + 0.05],
        "questions": questions, "bits": bits,
    }  # fmt: skip
    return {
        "kind": "evaluate", "average": accuracy,
        "tasks": {f"family-{i}": task for i in range(10)},
    }  # fmt: skip


def round_0(**changes: Any) -> dict[str, dict[str, Any]]:
    plain = {
        "base-eval": evaluation(10),
        "round-0/10-mid-train": {"kind": "mid_train", "objective": "ntp"},
        "round-0/15-eval": evaluation(80),
        "round-0/30-dpo": {"kind": "dpo", "heldout_pair_accuracy": 0.7},
        "round-0/40-rlvr": {
            "kind": "rlvr", "reward_first_quarter": 0.3, "reward_last_quarter": 0.4,
            "zero_variance_groups": 0.2,
        },
        "round-0/50-eval": evaluation(100),
    }  # fmt: skip
    return plain | changes


CONSTANT = {f"family-{i}": 0.1 for i in range(10)}


def unmet(results: dict[str, dict[str, Any]]) -> list[str]:
    return [e.text for e in expectations(results, CONSTANT) if not e.met]


def test_a_plan_without_remit_is_not_asked_for_its_weights() -> None:
    found = expectations(round_0(), CONSTANT)
    assert len(found) == 7 and unmet(round_0()) == []
    assert not any("ReMiT" in e.text for e in found)


def test_every_round_counts() -> None:
    remit = {"kind": "mid_train", "objective": "remit", "weight_std": 0.15}
    dead = remit | {"weight_std": 0.0}
    both = round_0(**{"round-1/10-mid-train": remit, "round-2/10-mid-train": dead})
    assert unmet(both) == ["ReMiT: standard deviation of the token weights above 0.01"]
    assert expectations(both, CONSTANT)[-1].measured == "round-1 0.150, round-2 0.000"


def test_each_can_fail() -> None:
    dpo = {"kind": "dpo", "heldout_pair_accuracy": 0.5}
    rlvr = {
        "kind": "rlvr", "reward_first_quarter": 0.4, "reward_last_quarter": 0.4,
        "zero_variance_groups": 0.9,
    }  # fmt: skip
    assert len(unmet(round_0(**{"round-0/30-dpo": dpo, "round-0/40-rlvr": rlvr}))) == 3
    assert "mid-0 average between" in unmet(round_0(**{"round-0/15-eval": evaluation(8)}))[0]
    high = unmet(round_0(**{"round-0/15-eval": evaluation(195)}))
    assert [text.split()[0] for text in high] == ["mid-0", "post-0", "no"]
    assert (
        "above the best constant answer"
        in unmet(round_0(**{"round-0/50-eval": evaluation(25)}))[-1]
    )


def test_a_run_that_has_not_come_to_the_models_has_those_of_its_steps() -> None:
    results = round_0()
    del results["round-0/50-eval"]
    found = [e.text.split(":")[0] for e in expectations(results, CONSTANT)]
    assert found == [
        "DPO",
        "RLVR",
        "RLVR",
    ]
