"""The same step whatever the ranks, the accumulation and the ZeRO stage; exact at d = 0."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ranks import logged, pair_and_single

from pipelines.run_dir.paths import StageDir

STEPS = 4
COMMON = (
    f"mid_train.tokens={STEPS * 8 * 128}", "mid_train.logging_steps=1",
    "mid_train.warmup_ratio=0.0", "mid_train.snapshots=0",
)  # fmt: skip
# ranks, micro-batch (the global batch is 8), ZeRO stage -> accumulation
LAYOUTS = {
    "1 rank, accumulation 1": (1, 8, 2),
    "1 rank, accumulation 4": (1, 2, 2),
    "2 ranks, accumulation 1, ZeRO-1": (2, 4, 1),
    "2 ranks, accumulation 2, ZeRO-2": (2, 2, 2),
    "2 ranks, accumulation 1, ZeRO-3": (2, 4, 3),
}
MidTrain = Callable[..., StageDir]


@pytest.fixture(scope="module")
def mid_train(
    tiny_run: Any, stage_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MidTrain]:
    """Mid-train from the tiny base on one rank or two; the reference is a stage of the tiny run."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs 2 cores")
    with pair_and_single(tiny_run, tmp_path_factory.mktemp("parity"), stage_env) as groups:

        def run(name: str, *overrides: str, ref: str = "round-0/40-rlvr", ranks: int = 1) -> Any:
            stages = {"base": "base"} | ({"ref": ref} if ref else {})
            inputs = {role: tiny_run.root / stage / "model" for role, stage in stages.items()}
            objective = f"mid_train.objective={'remit' if ref else 'ntp'}"
            return groups[ranks].train(name, inputs, *COMMON, objective, *overrides)

        yield run


@pytest.mark.parametrize("objective", ["remit", "kd"])
def test_chunks_of_the_loss_inside_gathered_shards(mid_train: MidTrain, objective: str) -> None:
    whole, chunked = (
        logged(mid_train(f"{objective}{chunk_bytes}", "mid_train.micro_batch_size=4",
                         f"mid_train.zero_stage={zero}", f"mid_train.objective={objective}",
                         f"chunk_bytes={chunk_bytes}", ranks=ranks))
        # 4 x 128 tokens of 57 and more tokens: 100,000 bytes are a chunk of some 400 and the rest.
        for ranks, zero, chunk_bytes in ((1, 2, 1 << 26), (2, 3, 100_000))
    )  # fmt: skip
    assert len(whole) == len(chunked) == STEPS
    for ours, theirs in zip(chunked, whole, strict=True):
        for key in ("loss", "grad_norm"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-5), (key, ours["step"])


@pytest.fixture(scope="module")
def layouts(mid_train: MidTrain) -> dict[str, StageDir]:
    """One ReMiT mid-training per layout, all else equal."""
    return {
        title: mid_train(
            f"layout{number}", f"mid_train.micro_batch_size={micro}",
            f"mid_train.zero_stage={zero}", ranks=ranks,
        )
        for number, (title, (ranks, micro, zero)) in enumerate(LAYOUTS.items())
    }  # fmt: skip


@pytest.mark.parametrize("title", list(LAYOUTS)[1:])
def test_loss_and_gradient_norm_equal_those_of_one_rank(
    layouts: dict[str, StageDir], title: str
) -> None:
    expected = logged(layouts["1 rank, accumulation 1"])
    found = logged(layouts[title])
    assert len(found) == STEPS
    for ours, theirs in zip(found, expected, strict=True):
        for key in ("loss", "grad_norm", "weight_std", "weight_mean", "d_std"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-5), (key, ours["step"])


def test_the_layouts_were_what_they_say(layouts: dict[str, StageDir]) -> None:
    for title, (ranks, micro, zero) in LAYOUTS.items():
        result = json.loads(layouts[title].result.read_text())
        assert result["engine"] == "DeepSpeedEngine"
        assert (result["world_size"], result["micro_batch_size"], result["zero_stage"]) == (
            ranks, micro, zero,
        )  # fmt: skip
        assert ranks * micro * result["accumulation"] == 8
        assert result["reload_logits_difference"] < 1e-4


def test_the_command_makes_what_these_ranks_make(
    layouts: dict[str, StageDir], remit: Any, tiny_run: Any, tmp_path: Path
) -> None:
    ref = tiny_run.root / "round-0" / "40-rlvr"
    remit(
        "mid-train", "--config", "world-tiny", *COMMON, "--base", tiny_run.root / "base", "--ref",
        ref, "--run-dir", tmp_path / "run", "--gpus", "2", "mid_train.micro_batch_size=4",
        "mid_train.zero_stage=3", check=True,
    )  # fmt: skip
    ours = layouts["2 ranks, accumulation 1, ZeRO-3"]
    theirs = StageDir(tmp_path / "run" / "mid-train")
    assert (ours.model / "model.safetensors").read_bytes() == (
        theirs.model / "model.safetensors"
    ).read_bytes()


def test_reference_equal_to_the_base_is_plain_prediction_at_first(mid_train: MidTrain) -> None:
    plain = logged(mid_train("ntp", ref=""))
    remit = logged(mid_train("self", ref="base"))
    first = remit[0]
    assert (first["weight_mean"], first["weight_std"], first["d_std"]) == (1.0, 0.0, 0.0)
    assert first["weight_at_low"] == first["weight_at_high"] == 0.0
    assert first["loss"] == plain[0]["loss"]
    assert first["grad_norm"] == plain[0]["grad_norm"]
    # The learner has moved away from the reference.
    assert remit[-1]["weight_std"] > 0
    assert remit[-1]["loss"] != plain[-1]["loss"]


def test_another_reference_gives_other_weights_at_once(
    layouts: dict[str, StageDir], mid_train: MidTrain
) -> None:
    rl = logged(layouts["1 rank, accumulation 1"])[0]
    sft = logged(mid_train("sft-ref", ref="round-0/20-sft"))[0]
    assert rl["weight_std"] > 0 and sft["weight_std"] > 0
    assert rl["weight_std"] != sft["weight_std"]


EXACT = {
    "divided by weights": ("mid_train.remit.divisor=weights",),
    "centred over the batch": ("mid_train.remit.center=batch",),
    "rho1": ("mid_train.objective=rho1",),
}


@pytest.mark.parametrize("switches", EXACT.values(), ids=list(EXACT))
def test_scope_step_is_the_same_over_every_layout(
    mid_train: MidTrain, switches: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id.replace(" ", "-")
    whole, split = (
        logged(mid_train(f"{name}-{ranks}", "mid_train.scope=step", *switches,
                         f"mid_train.micro_batch_size={micro}", f"mid_train.zero_stage={zero}",
                         ranks=ranks))
        # One micro-batch; two micro-batches on each of two ranks.
        for ranks, micro, zero in ((1, 8, 2), (2, 2, 3))
    )  # fmt: skip
    for one, other in zip(whole, split, strict=True):
        for key in ("loss", "grad_norm", "weight_std"):
            assert other[key] == pytest.approx(one[key], rel=2e-5), (key, one["step"])


def test_scope_step_divides_by_the_sum_of_the_weights_of_the_step(mid_train: MidTrain) -> None:
    by_weights, by_targets = (
        logged(mid_train(f"step-{divisor}", "mid_train.scope=step", "mid_train.micro_batch_size=2",
                         f"mid_train.remit.divisor={divisor}"))[0]
        for divisor in ("weights", "targets")
    )  # fmt: skip
    mean = by_weights["weight_mean"]
    assert mean != pytest.approx(1.0, abs=1e-4)
    assert by_weights["loss"] * mean == pytest.approx(by_targets["loss"], rel=1e-5)


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
