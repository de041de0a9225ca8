"""`remit analyze` on a tiny flywheel: whole, half-finished, with a reference that is the base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

MODELS = [
    "base@1", "base",
    *(f"round-{k}/{step}" for k in (0, 1)
      for step in ("10-mid-train@1", "10-mid-train", "20-sft", "30-dpo", "40-rlvr")),
]  # fmt: skip
Remit = Callable[..., Any]


@pytest.fixture
def copied(tiny_run: Any, tmp_path: Path) -> Path:
    """A copy of the run."""
    shutil.copytree(tiny_run.root, tmp_path / "tiny")
    return tmp_path / "tiny"


def analysis(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "analysis" / "result.json").read_text())
    return found


def numbers(values: list[float | None]) -> list[float]:
    return [x for x in values if x is not None]


def test_dynamics_of_every_kept_model(tiny_run: Any) -> None:
    result = analysis(tiny_run.root)
    assert result["dynamics_reference"] == "round-0/40-rlvr" and result["missing"] == []
    found = {entry["checkpoint"]: entry for entry in result["dynamics"]}
    assert list(found) == MODELS
    assert found["round-0/40-rlvr"]["gap"]["pretrain"] == {"mean": 0.0, "half_interval": 0.0}
    # 20 steps of 8 x 128 tokens each, the model in the middle kept.
    places = [(found[n]["phase"], found[n]["round"], found[n]["step"], found[n]["tokens"])
              for n in MODELS[:4]]  # fmt: skip
    assert places == [
        ("pretrain", None, 10, 10_240), ("pretrain", None, 20, 20_480),
        ("anneal", 0, 10, 30_720), ("anneal", 0, 20, 40_960),
    ]  # fmt: skip
    assert {found[name]["phase"] for name in MODELS if name[-1] in "tor"} == {"post"}
    for entry in result["dynamics"]:
        assert entry["gap"].keys() == {"pretrain", "mid_train"}


def test_gaps_are_those_of_bits_per_byte(tiny_run: Any, copied: Path, remit: Remit) -> None:
    bits = {
        name: json.loads((copied / name / "result.json").read_text())["bits_per_byte"]
        for name in ("base-eval", "round-0/50-eval", "round-1/15-eval")
    }
    tokens = analysis(copied)["heldout_tokens"]
    found = {e["checkpoint"]: e["gap"] for e in analysis(copied)["dynamics"]}
    made = {"base": "base-eval", "round-1/10-mid-train": "round-1/15-eval"}
    for domain, count in tokens.items():
        rl = bits["round-0/50-eval"][domain]
        for checkpoint, evaluated in made.items():
            own = bits[evaluated][domain]
            # Both stop at 2,000 tokens, one after the document, one after the window.
            assert abs(count - own["tokens"]) < 128
            nats = (own["bits_per_byte"] - rl["bits_per_byte"]) * own["bytes"] / own["tokens"]
            mean = found[checkpoint][domain]["mean"]
            assert mean == pytest.approx(nats * np.log(2), abs=0.02)


def test_accuracy_along_the_annealing(tiny_run: Any) -> None:
    result = analysis(tiny_run.root)
    assert result["accuracy_missing"] == ""
    along = {entry["checkpoint"]: entry for entry in result["accuracy"]}
    assert [(name, e["round"], e["done"]) for name, e in along.items()] == [
        ("base", None, 0.0),
        ("round-0/10-mid-train@1", 0, 0.5), ("round-0/10-mid-train", 0, 1.0),
        ("round-1/10-mid-train@1", 1, 0.5), ("round-1/10-mid-train", 1, 1.0),
    ]  # fmt: skip
    # The answers of an evaluation to the first ten questions of each family.
    for name, evaluation in (("base", "base-eval"), ("round-1/10-mid-train", "round-1/15-eval")):
        whole = json.loads((tiny_run.root / evaluation / "result.json").read_text())["tasks"]
        bits = {family: score["bits"] for family, score in along[name]["tasks"].items()}
        assert bits == {family: score["bits"][:10] for family, score in whole.items()}


def test_weights_are_those_of_the_training(tiny_run: Any) -> None:
    (entry,) = analysis(tiny_run.root)["rounds"]
    assert (entry["round"], entry["mid"], entry["reference"]) == (
        1, "round-1/10-mid-train", "round-0/40-rlvr"
    )  # fmt: skip
    assert entry["domains"].keys() == {"problem", "prose"}
    assert {"digits", "connectives", "punctuation", "other"} == entry["classes"].keys()
    for groups in (entry["domains"], entry["classes"]):
        # 79 sequences of 128 tokens, fewer targets.
        assert 9_500 < sum(group["tokens"] for group in groups.values()) < 79 * 128
        for group in groups.values():
            assert 0.8 <= group["mean_weight"] <= 1.2
            assert 0 <= group["clipped_low"] + group["clipped_high"] <= 1
    high, low = entry["highest"], entry["lowest"]
    means = [token["mean_weight"] for token in [*high, *reversed(low)]]
    assert means == sorted(means, reverse=True) and all(t["count"] >= 20 for t in [*high, *low])
    assert {token["id"] for token in high}.isdisjoint(token["id"] for token in low)


def test_sequences_follow_from_their_log_probabilities(tiny_run: Any) -> None:
    (entry,) = analysis(tiny_run.root)["rounds"]
    pieces = entry["sequences"]
    assert 10 < len(pieces) <= 20 and {p["domain"] for p in pieces} == {"problem", "prose"}
    for piece in pieces:
        assert (piece["source"], piece["licence"], piece["publish"]) == (
            "world", "built-in world", True
        )  # fmt: skip
        lengths = {len(piece[key]) for key in ("tokens", "weights", "d", "logprobs")}
        assert lengths == {len(piece["tokens"])}
        d, own, ref = (numbers(piece[key]) for key in ("d", "logprobs", "ref_logprobs"))
        np.testing.assert_allclose(d, np.subtract(ref, own), atol=2e-4)
        # Within a sequence the weight rises with d, up to the clip.
        order = np.argsort(d, kind="stable")
        weights = np.array(numbers(piece["weights"]))[order]
        assert (np.diff(weights) >= -2e-4).all()


def test_movement(tiny_run: Any) -> None:
    found = analysis(tiny_run.root)["movement"]
    assert [entry["round"] for entry in found] == [0, 1]
    for entry in found:
        for pair in ("base_to_mid", "mid_to_post"):
            assert entry[pair]["kl"] > entry[pair]["half_interval"] > 0


def test_the_command_shows_what_the_flywheel_made(
    tiny_run: Any, copied: Path, remit: Remit, tmp_path: Path
) -> None:
    # Moving a run changes no identity, so the analysis is not made again.
    done = remit("analyze", copied, "--json", check=True)
    assert "is complete, skipped" in done.stderr
    assert done.json["command"] == "analyze" and done.json["status"] == "done"
    whole = analysis(copied)
    assert done.json["analysis"]["dynamics"] == whole["dynamics"]
    assert "sequences" not in done.json["analysis"]["rounds"][0]
    text = remit("analyze", copied, check=True).stdout
    assert all(name in text for name in [*MODELS, "digits", "KL(base || mid)"])
    assert "\x1b" not in text


def test_a_half_finished_run_and_the_base_as_its_own_reference(copied: Path, remit: Remit) -> None:
    for name in ("round-1/20-sft", "round-1/30-dpo", "round-1/40-rlvr", "round-1/50-eval"):
        shutil.rmtree(copied / name)
    shutil.rmtree(copied / "round-0" / "40-rlvr" / "model")
    shutil.copytree(copied / "base" / "model", copied / "round-0" / "40-rlvr" / "model")
    results = [copied / name / "result.json" for name in ("base", "round-0/40-rlvr")]
    base, made = (json.loads(path.read_text()) for path in results)
    results[1].write_text(json.dumps(made | {"model_sha256": base["model_sha256"]}))
    done = remit("analyze", copied, "--json", "analysis.tokens=2_000", check=True)
    (missing,) = done.json["analysis"]["missing"]
    assert "is missing in round 1, because the round has no post-trained model" in missing
    (entry,) = done.json["analysis"]["rounds"]
    for group in (*entry["domains"].values(), *entry["classes"].values()):
        assert group["mean_weight"] == 1.0, "the reference is the base: every weight is 1"
        assert group["clipped_low"] == group["clipped_high"] == 0.0
    assert any(g["mean_weight"] != 1.0 for g in entry["at_end"]["classes"].values())
    gaps = {
        e["checkpoint"]: e["gap"]["pretrain"]["mean"] for e in done.json["analysis"]["dynamics"]
    }
    assert gaps["base"] == 0.0 and gaps["round-0/10-mid-train"] != 0.0
    assert "mid_to_post" not in done.json["analysis"]["movement"][1]
    events = [json.loads(line) for line in (copied / "ledger.jsonl").open()]
    assert [e["event"] for e in events[-2:]] == ["start", "finish"], "repeated, not refused"


def test_a_run_with_one_model_has_nothing_to_compare(copied: Path, remit: Remit) -> None:
    for name in ("round-0", "round-1", "analysis"):
        shutil.rmtree(copied / name)
    refused = remit("analyze", copied)
    assert refused.returncode == 2 and "no finished base with" in refused.stderr
    assert not (copied / "analysis").exists()


def test_what_was_trained_is_not_told_otherwise(copied: Path, remit: Remit) -> None:
    before = (copied / "analysis" / "result.json").read_text()
    refused = remit("analyze", copied, "rlvr.enabled=false", "analysis.tokens=2_000")
    assert refused.returncode == 2 and "rlvr.enabled is a setting of what was" in refused.stderr
    assert (copied / "analysis" / "result.json").read_text() == before


def test_a_folder_that_is_no_flywheel(remit: Remit, tmp_path: Path) -> None:
    refused = remit("analyze", tmp_path)
    assert refused.returncode == 2 and "flywheel.yaml" in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_failing_analysis_loses_nothing(tiny_run: Any, copied: Path, remit: Remit) -> None:
    shutil.rmtree(copied / "analysis")
    kept = copied / "base" / "snapshots" / "1" / "model.safetensors"
    kept.write_bytes(kept.read_bytes()[:1000])
    failed = remit(*tiny_run.args, cwd=copied.parent)
    assert failed.returncode == 1
    assert (failed.json["status"], failed.json["stage"]) == ("failed", "analysis")
    assert failed.json["scores"] == tiny_run.finished.json["scores"]
    assert "failed: stage analysis" in failed.stderr and "post-1" in failed.stderr
    assert json.loads((copied / "ledger.jsonl").read_text().splitlines()[-1])["event"] == "fail"
