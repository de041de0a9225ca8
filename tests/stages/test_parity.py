"""The same step whatever the ranks, the accumulation and the ZeRO stage; exact at d = 0."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

STEPS = 4
COMMON = (
    "--config", "world-tiny", f"mid_train.tokens={STEPS * 8 * 128}", "mid_train.logging_steps=1",
    "mid_train.warmup_ratio=0.0",
)  # fmt: skip
# ranks, micro-batch (the global batch is 8), ZeRO stage -> accumulation
LAYOUTS = {
    "1 rank, accumulation 1": (1, 8, 2),
    "1 rank, accumulation 4": (1, 2, 2),
    "2 ranks, accumulation 1, ZeRO-1": (2, 4, 1),
    "2 ranks, accumulation 2, ZeRO-2": (2, 2, 2),
    "2 ranks, accumulation 1, ZeRO-3": (2, 4, 3),
}


@pytest.fixture(scope="module")
def mid_train(
    remit: Any, tiny_run: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Run mid-train from the tiny base under a name of its own; its stage folder."""
    run_dir = tmp_path_factory.mktemp("parity") / "run"

    def run(name: str, *args: str) -> Path:
        base = tiny_run.root / "base"
        remit(
            "mid-train", *COMMON, "--base", base, "--run-dir", run_dir, f"stage.name={name}", *args,
            check=True,
        )  # fmt: skip
        return run_dir / f"mid-train-{name}"

    return run


def logged(stage: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").open()]
    return [line for line in lines if "loss" in line]


@pytest.mark.parametrize("objective", ["remit", "kd"])
def test_chunks_of_the_loss_inside_gathered_shards(
    mid_train: Callable[..., Path], tiny_run: Any, objective: str
) -> None:
    ref = str(tiny_run.root / "round-0" / "40-rlvr")
    whole, chunked = (
        logged(mid_train(f"{objective}{chunk_bytes}", "--ref", ref, "--gpus", str(ranks),
                         "mid_train.micro_batch_size=4", f"mid_train.zero_stage={zero}",
                         f"mid_train.objective={objective}", f"chunk_bytes={chunk_bytes}"))
        # 4 x 128 tokens of 57 and more tokens: 100,000 bytes are a chunk of some 400 and the rest.
        for ranks, zero, chunk_bytes in ((1, 2, 1 << 26), (2, 3, 100_000))
    )  # fmt: skip
    assert len(whole) == len(chunked) == STEPS
    for ours, theirs in zip(chunked, whole, strict=True):
        for key in ("loss", "grad_norm"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-5), (key, ours["step"])


@pytest.fixture(scope="module")
def layouts(mid_train: Callable[..., Path], tiny_run: Any) -> dict[str, Path]:
    """One ReMiT mid-training per layout, all else equal."""
    ref = str(tiny_run.root / "round-0" / "40-rlvr")
    return {
        title: mid_train(
            f"layout{number}", "--ref", ref, "--gpus", str(ranks),
            f"mid_train.micro_batch_size={micro}", f"mid_train.zero_stage={zero}",
        )
        for number, (title, (ranks, micro, zero)) in enumerate(LAYOUTS.items())
    }  # fmt: skip


@pytest.mark.parametrize("title", list(LAYOUTS)[1:])
def test_loss_and_gradient_norm_equal_those_of_one_rank(
    layouts: dict[str, Path], title: str
) -> None:
    expected = logged(layouts["1 rank, accumulation 1"])
    found = logged(layouts[title])
    assert len(found) == STEPS
    for ours, theirs in zip(found, expected, strict=True):
        for key in ("loss", "grad_norm", "weight_std", "weight_mean", "d_std"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-5), (key, ours["step"])


def test_the_layouts_were_what_they_say(layouts: dict[str, Path]) -> None:
    for title, (ranks, micro, zero) in LAYOUTS.items():
        result = json.loads((layouts[title] / "result.json").read_text())
        assert result["engine"] == "DeepSpeedEngine"
        assert (result["world_size"], result["micro_batch_size"], result["zero_stage"]) == (
            ranks, micro, zero,
        )  # fmt: skip
        assert ranks * micro * result["accumulation"] == 8
        assert result["reload_logits_difference"] < 1e-4


def test_reference_equal_to_the_base_is_plain_prediction_at_first(
    mid_train: Callable[..., Path], tiny_run: Any
) -> None:
    plain = logged(mid_train("ntp"))
    remit = logged(mid_train("self", "--ref", str(tiny_run.root / "base")))
    first = remit[0]
    assert (first["weight_mean"], first["weight_std"], first["d_std"]) == (1.0, 0.0, 0.0)
    assert first["weight_at_low"] == first["weight_at_high"] == 0.0
    assert first["loss"] == plain[0]["loss"]
    assert first["grad_norm"] == plain[0]["grad_norm"]
    # The learner has moved away from the reference.
    assert remit[-1]["weight_std"] > 0
    assert remit[-1]["loss"] != plain[-1]["loss"]


def test_another_reference_gives_other_weights_at_once(
    layouts: dict[str, Path], mid_train: Callable[..., Path], tiny_run: Any
) -> None:
    rl = logged(layouts["1 rank, accumulation 1"])[0]
    sft = logged(mid_train("sft-ref", "--ref", str(tiny_run.root / "round-0" / "20-sft")))[0]
    assert rl["weight_std"] > 0 and sft["weight_std"] > 0
    assert rl["weight_std"] != sft["weight_std"]


def test_post_training_runs_sharded_over_two_ranks(
    remit: Any, tiny_run: Any, tmp_path: Path
) -> None:
    # RLVR generates from gathered weights under ZeRO-3, which TRL does.
    zero = [f"{kind}.zero_stage=3" for kind in ("sft", "dpo", "rlvr")]
    remit(
        "post-train", "--config", "world-tiny", "--base", tiny_run.root / "base", "--gpus", "2",
        "--run-dir", tmp_path / "run", *zero, "sft.max_steps=2", "dpo.max_steps=2",
        "rlvr.max_steps=2",
        "rlvr.micro_batch_size=8", check=True,
    )  # fmt: skip
    for name in ("20-sft", "30-dpo", "40-rlvr"):
        result = json.loads((tmp_path / "run" / "post-train" / name / "result.json").read_text())
        assert (result["zero_stage"], result["world_size"]) == (3, 2)
        assert result["reload_logits_difference"] < 1e-4


def test_two_ranks_score_as_one(remit: Any, tiny_run: Any, tmp_path: Path) -> None:
    model = tiny_run.root / "round-0" / "20-sft"
    results = []
    for ranks in ("1", "2"):
        remit(
            "eval", "--config", "world-tiny", "--model", model, "--gpus", ranks,
            "--run-dir", tmp_path / ranks, "eval.tasks.world.limit=51", check=True,
        )  # fmt: skip
        results.append(json.loads((tmp_path / ranks / "eval" / "result.json").read_text()))
    assert results[0]["tasks"] == results[1]["tasks"]
    assert results[1]["world_size"] == 2
    for domain, found in results[0]["bits_per_byte"].items():
        assert results[1]["bits_per_byte"][domain] == pytest.approx(found)
