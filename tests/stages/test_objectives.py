"""Every objective through the real command: exact where it can be, the same over every layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

STEPS = 4
COMMON = (
    "--config", "world-tiny", f"mid_train.tokens={STEPS * 8 * 128}", "mid_train.logging_steps=1",
    "mid_train.warmup_ratio=0.0", "score.shard_sequences=10",
)  # fmt: skip
MidTrain = Callable[..., Path]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("objectives") / "run"


@pytest.fixture(scope="module")
def mid_train(remit: Any, tiny_run: Any, run_dir: Path) -> MidTrain:
    """Run mid-train from the tiny base under a name of its own; its stage folder."""
    base, ref = tiny_run.root / "base", tiny_run.root / "round-0" / "40-rlvr"

    def run(name: str, *args: str, ref: Path | None = ref) -> Path:
        given = ("--ref", str(ref)) if ref else ()
        remit(
            "mid-train", *COMMON, "--base", base, *given, "--run-dir", run_dir,
            f"stage.name={name}", *args, check=True,
        )  # fmt: skip
        return run_dir / f"mid-train-{name}"

    return run


def logged(stage: Path, *keys: str) -> list[list[float]]:
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").open()]
    return [[line[key] for key in keys] for line in lines if "loss" in line]


def result(stage: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((stage / "result.json").read_text())
    return loaded


def test_cached_scores_give_the_inline_weights_within_the_rounding(
    mid_train: MidTrain, run_dir: Path
) -> None:
    inline = mid_train("inline")
    cached = mid_train("cached", "mid_train.reference=cached")
    scores = result(run_dir / "mid-train-cached-score")
    assert scores["shards"] == 4 and scores["tokens"] == STEPS * 8 * 128
    size = sum(file.stat().st_size for file in Path(scores["scores"]).glob("*.npy"))
    assert size == pytest.approx(2 * scores["tokens"], rel=0.1), "two bytes a token"
    for one, other in zip(
        *(logged(stage, "loss", "weight_std", "d_mean") for stage in (inline, cached)), strict=True
    ):
        assert other == pytest.approx(one, abs=2e-3)
    assert logged(inline, "weight_std") != logged(cached, "weight_std"), "the cache was not read"


def test_a_score_shard_that_is_damaged_is_made_again(
    mid_train: MidTrain, remit: Any, tiny_run: Any, run_dir: Path
) -> None:
    mid_train("cached", "mid_train.reference=cached")
    folder = Path(result(run_dir / "mid-train-cached-score")["scores"])
    whole = {file.name: file.read_bytes() for file in folder.glob("*.npy")}
    damaged = sorted(folder.glob("*.npy"))[1]
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    (run_dir / "mid-train-cached" / "result.json").unlink()
    command = (
        "mid-train", *COMMON, "--base", tiny_run.root / "base", "--ref",
        tiny_run.root / "round-0" / "40-rlvr", "--run-dir", run_dir, "stage.name=cached",
        "mid_train.reference=cached",
    )  # fmt: skip
    refused = remit(*command)
    assert refused.returncode == 2 and damaged.name in refused.stderr
    remit(*command, check=True)
    log = (run_dir / "mid-train-cached-score" / "log.txt").read_text()
    assert "1 of 4 shards to score" in log
    assert {file.name: file.read_bytes() for file in folder.glob("*.npy")} == whole


def test_scores_of_another_kind_are_refused_by_name(
    remit: Any, tiny_run: Any, run_dir: Path, mid_train: MidTrain
) -> None:
    mid_train("cached", "mid_train.reference=cached")
    # As if someone had scored and then taken the score stage out of the plan.
    from pipelines.data.score_cache import ScoreKey, open_scores
    from pipelines.errors import UserError

    scores = Path(result(run_dir / "mid-train-cached-score")["scores"])
    key = json.loads((scores / "complete.json").read_text())["key"]
    with pytest.raises(UserError, match="document_mask: True instead of False"):
        open_scores(
            scores.parent, ScoreKey(**(key | {"document_mask": False})), "", 32, "the reference"
        )


def test_kd_from_the_base_itself_is_half_of_plain_training(
    mid_train: MidTrain, tiny_run: Any
) -> None:
    plain = logged(mid_train("ntp", ref=None), "loss")
    kd = logged(mid_train("kd", "mid_train.objective=kd", ref=tiny_run.root / "base"), "loss")
    # At the first step the divergence is 0; later it pulls back.
    assert kd[0][0] == pytest.approx(plain[0][0] / 2, rel=1e-5)
    assert kd[-1][0] != pytest.approx(plain[-1][0] / 2, rel=1e-5)


def test_rho1_trains_on_the_share_it_keeps(mid_train: MidTrain) -> None:
    stage = mid_train("rho1", "mid_train.objective=rho1", "mid_train.rho1.keep=0.5")
    for mean, spread in logged(stage, "weight_mean", "weight_std"):
        # Half of the weights are 1, half are 0.
        assert mean == pytest.approx(0.5, abs=1e-3) and spread == pytest.approx(0.5, abs=1e-3)
    found = result(stage)
    assert found["objective"] == "rho1" and "weight_std" in found
    assert "weight_at_low" not in found, "it has no clip"


def test_miniplm_trains_on_half_of_a_pool(mid_train: MidTrain, run_dir: Path) -> None:
    stage = mid_train("miniplm", "mid_train.objective=miniplm")
    pool = [
        result(run_dir / f"mid-train-miniplm-{name}")["tokens"] for name in ("score", "score-small")
    ]
    assert pool == [2 * STEPS * 8 * 128] * 2
    found = result(stage)
    assert found["objective"] == "miniplm" and found["steps"] == STEPS
    chosen = found["selection"]
    assert chosen["pool_sequences"] == 2 * chosen["kept_sequences"] == chosen["looked_at"]
    for part in ("pool", "kept"):
        assert sum(s[part] for s in chosen["domains"].values()) == pytest.approx(1, abs=1e-3)
    assert found["tokens"] == STEPS * 8 * 128
    plain = logged(mid_train("ntp", ref=None), "loss")
    assert logged(stage, "loss") != plain, "other sequences"


def test_miniplm_keeps_the_half_that_the_reference_knows_better(
    mid_train: MidTrain, run_dir: Path
) -> None:
    # One step on the 8 sequences that are kept of 16.
    stage = mid_train(
        "half", "mid_train.objective=miniplm", "mid_train.tokens=1024", "mid_train.snapshots=0"
    )

    def scores(name: str) -> np.ndarray:
        """Log-probabilities of the pool, [16, context]; 0 where there is no target."""
        folder = Path(result(run_dir / f"mid-train-half-{name}")["scores"])
        files = sorted(folder.glob("*.npy"))
        return np.concatenate([np.load(file) for file in files])[:16].astype(np.float64)

    ref, base = scores("score"), scores("score-small")
    targets = (base != 0).sum(axis=1)
    order = np.argsort((ref - base).sum(axis=1) / targets)
    better, worse = (-base[half].sum() / targets[half].sum() for half in (order[8:], order[:8]))
    ((loss,),) = logged(stage, "loss")
    assert abs(better - worse) > 5e-3
    assert loss == pytest.approx(better, abs=2e-3)


def test_a_pool_that_is_scored_serves_the_arms_that_train_on_its_beginning(
    mid_train: MidTrain, run_dir: Path
) -> None:
    # Another seed, of whose sequences nothing is scored yet.
    mid_train("pool", "mid_train.objective=miniplm", "seed=5")
    pool = result(run_dir / "mid-train-pool-score")
    cached = mid_train("of-pool", "mid_train.reference=cached", "seed=5")
    found = result(run_dir / "mid-train-of-pool-score")
    assert found["scores"] == pool["scores"] and "tokens_per_second" not in found
    assert found["tokens"] == pool["tokens"] // 2
    inline = mid_train("beside-pool", "seed=5")
    for one, other in zip(*(logged(s, "loss", "d_mean") for s in (inline, cached)), strict=True):
        assert other == pytest.approx(one, abs=2e-3)


def test_centring_over_documents_and_gradient_through_the_weights(mid_train: MidTrain) -> None:
    stages = [
        mid_train("plain-remit"),
        mid_train("documents", "mid_train.remit.center=document"),
        mid_train("attached", "mid_train.remit.detach=false"),
    ]
    first = [logged(stage, "loss", "weight_std", "grad_norm")[0] for stage in stages]
    assert first[1][1] != pytest.approx(first[0][1], rel=1e-4), "another mean"
    # The same weights and loss at the first step, another gradient.
    assert first[2][:2] == pytest.approx(first[0][:2], rel=1e-6)
    assert first[2][2] != pytest.approx(first[0][2], rel=1e-2)
