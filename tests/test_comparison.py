"""`remit compare`: what it plans, what its tables say, and a small run of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.comparison import Row, curves, tables
from pipelines.evals.intervals import mean_interval

TINY = ("--config", "world-tiny", "mid_train.tokens=2048", "eval.tasks.world.limit=20",
        "eval.bits_per_byte_tokens=500")  # fmt: skip


def row(arm: str, seed: int, *accuracies: float, point: str = "mid") -> Row:
    tasks = {
        f"t{i}": {"accuracy": a, "questions": 10, "bits": ""} for i, a in enumerate(accuracies)
    }
    average = sum(accuracies) / len(accuracies)
    return Row(arm, seed, point, "id", average, tasks, {}, 100, 1.0, 2.0)


def test_means_and_intervals_over_seeds() -> None:
    # 0.1, 0.2, 0.3: mean 0.2, s = 0.1, t(2) = 4.303, half = 4.303 * 0.1 / sqrt(3).
    mean, half = mean_interval([0.1, 0.2, 0.3])
    assert (mean, half) == (pytest.approx(0.2), pytest.approx(0.24843, abs=1e-4))
    assert mean_interval([0.4]) == (0.4, None)


def test_gains_are_paired_by_seed() -> None:
    found = [row("ntp", 0, 0.1), row("remit", 0, 0.2), row("ntp", 1, 0.5), row("remit", 1, 0.6)]
    (table,) = tables(found)
    assert table.arms == ["ntp", "remit"] and table.seeds == [0, 1]
    assert table.gain[1].mean == pytest.approx(0.1)
    # The seeds differ by 0.4, the pairs do not.
    assert table.gain[1].half == pytest.approx(0, abs=1e-9)
    assert table.cells["average"][1].half > 1
    assert tables([row("remit", 0, 0.2)])[0].gain == []


def test_a_table_for_each_point() -> None:
    found = [row("ntp", 0, 0.1), row("ntp", 0, 0.3, point="post")]
    assert [table.point for table in tables(found)] == ["mid", "post"]
    assert [table.cells["t0"][0].mean for table in tables(found)] == [0.1, 0.3]


def test_when_an_arm_reaches_the_end_of_ntp() -> None:
    found = [
        row("ntp", 0, 0.1, point="1/2"), row("ntp", 0, 0.4),
        row("remit", 0, 0.3, point="1/2"), row("remit", 0, 0.5),
        row("kd", 0, 0.1, point="1/2"), row("kd", 0, 0.2),
    ]  # fmt: skip
    drawn = {curve.arm: curve for curve in curves(found)}
    assert drawn["ntp"].parts == [0.5, 1.0] and drawn["ntp"].reaches_ntp == 1.0
    # 0.4 lies half-way between 0.3 at 50% and 0.5 at 100%.
    assert drawn["remit"].reaches_ntp == pytest.approx(0.75)
    assert drawn["kd"].reaches_ntp is None
    assert curves([row("ntp", 0, 0.4)]) == []


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("compare.objectives=[ntp,remt]",), ["'remt'", "rho1"]),
        (("compare.objectives=[]",), ["no arm"]),
        (("eval.tasks.world.enabled=false",), ["no task of eval.tasks"]),
        (("compare.seeds=0",), ["compare.seeds = 0"]),
        (("compare.objectives=[sft]",), ["no SFT stage", "compare.sft_ref"]),
    ],
)
def test_what_it_refuses(
    remit: Callable[..., Any], tiny_model: Path, tmp_path: Path, args: tuple[str, ...],
    words: list[str],
) -> None:  # fmt: skip
    done = remit("compare", *TINY, "--base", tiny_model, "--ref", tiny_model, *args, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert [word for word in words if word not in done.stderr] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_all_arms_from_one_base(remit: Callable[..., Any], tiny_run: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    args = ("compare", *TINY, "--base", tiny_run.root / "base", "--ref",
            tiny_run.root / "round-0" / "40-rlvr", "--run-dir", run, "compare.seeds=2",
            "compare.points=1", "--json")  # fmt: skip
    values = remit(*args, check=True).json
    (table,) = values["tables"]
    assert table["arms"] == ["ntp", "kd", "miniplm", "rho1", "sft", "remit"]
    assert table["seeds"] == [0, 1] and len(table["cells"]) == 11
    rows = [json.loads(line) for line in (run / "compare" / "rows.jsonl").open()]
    assert rows == values["rows"] and len(rows) == 24
    assert {row["point"] for row in rows} == {"1/2", "mid"}
    assert [curve["parts"] for curve in values["curves"]] == [[0.5, 1.0]] * 6
    halfway, final = (
        json.loads((run / "compare" / "seed-0" / "ntp" / name / "result.json").read_text())
        for name in ("12-eval-1-of-2", "15-eval")
    )
    assert halfway["bits_per_byte"] != final["bits_per_byte"]
    assert all(len(task["bits"]) == task["questions"] for task in rows[0]["tasks"].values())
    spent = {row["arm"]: row["flops"] for row in rows if row["seed"] == 0}
    # 6 for training; 2 more for the reference; MiniPLM scores a pool of twice the budget twice.
    ratios = {arm: flops / spent["ntp"] for arm, flops in spent.items()}
    assert ratios == pytest.approx(
        {"ntp": 1, "kd": 4 / 3, "miniplm": 1 + 8 / 6, "rho1": 4 / 3, "sft": 4 / 3, "remit": 4 / 3}
    )
    objectives = {
        row["arm"]: json.loads(
            (run / "compare" / "seed-0" / row["arm"] / "10-mid-train" / "result.json").read_text()
        )
        for row in rows
    }  # fmt: skip
    assert objectives["sft"]["reference"].endswith("20-sft/model")
    assert objectives["sft"]["objective"] == "remit"

    again = remit(*args, check=True).json
    assert again["rows"] == values["rows"]
    events = [json.loads(line)["event"] for line in (run / "ledger.jsonl").open()]
    assert events.count("finish") == events.count("start") == events.count("skip")
