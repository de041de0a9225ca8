"""`remit compare`: what it plans, what its tables say, and a small run of it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import config as recipes
from pipelines.arms import needed, plan_compare
from pipelines.checkpoint import find_checkpoint
from pipelines.comparison import curves, tables
from pipelines.errors import UserError
from pipelines.evals.intervals import mean_interval
from pipelines.flywheel import Stage
from pipelines.rows import Row, parsed

TINY = ("--config", "world-tiny", "mid_train.tokens=2048", "eval.tasks.world.limit=20",
        "eval.bits_per_byte_tokens=500", "compare.points=0")  # fmt: skip


def row(arm: str, seed: int, *accuracies: float, point: str = "mid") -> Row:
    tasks = {
        f"t{i}": {"accuracy": a, "questions": 10, "bits": ""} for i, a in enumerate(accuracies)
    }
    average = sum(accuracies) / len(accuracies)
    return Row(
        arm,
        seed,
        point,
        "ntp",
        "id",
        {},
        average,
        tasks,
        {"web": 2 - average},
        {},
        100,
        40,
        1,
        1.0,
        2.0,
    )


def test_means_and_intervals_over_seeds() -> None:
    # 0.1, 0.2, 0.3: mean 0.2, s = 0.1, t(2) = 4.303, half = 4.303 * 0.1 / sqrt(3).
    mean, half = mean_interval([0.1, 0.2, 0.3])
    assert (mean, half) == (pytest.approx(0.2), pytest.approx(0.24843, abs=1e-4))
    assert mean_interval([0.4]) == (0.4, None)


def test_gains_are_paired_by_seed() -> None:
    found = [row("ntp", 0, 0.1), row("remit", 0, 0.2), row("ntp", 1, 0.5), row("remit", 1, 0.6)]
    (table,) = tables(found)
    assert table.arms == ["ntp", "remit"] and table.seeds == [0, 1]
    own, gain = table.average.gains
    assert own is None and gain is not None and gain.against == "ntp"
    assert gain.mean == pytest.approx(0.1) and gain.by_seed == pytest.approx({0: 0.1, 1: 0.1})
    # The seeds differ by 0.4, the pairs do not.
    assert gain.half == pytest.approx(0, abs=1e-9)
    assert table.average.cells[1].half > 1
    assert tables([row("remit", 0, 0.2)])[0].average.gains == [None]


def test_a_table_for_each_point() -> None:
    found = [row("ntp", 0, 0.1), row("ntp", 0, 0.3, point="post")]
    assert [table.point for table in tables(found)] == ["mid", "post"]
    assert [table.accuracy["t0"].cells[0].mean for table in tables(found)] == [0.1, 0.3]
    assert [table.bits_per_byte["web"].cells[0].mean for table in tables(found)] == [1.9, 1.7]


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
    assert drawn["remit"].steps_to_ntp == 30
    assert drawn["kd"].reaches_ntp is None
    assert curves([row("ntp", 0, 0.4)]) == []


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("compare.objectives=[ntp,remt]",), ["'remt'", "rho1"]),
        (("compare.objectives=[]",), ["no arm"]),
        (("eval.tasks.world.enabled=false",), ["no task or benchmark"]),
        (("compare.seeds=0",), ["compare.seeds = 0"]),
        (("objectives=[sft]",), ["no SFT stage", "compare.sft_ref"]),
        (("objectives=[more-rl]",), ["more-rl", "compare.post_train=true"]),
        (("base_per_seed=true",), ["leave --base and --ref out"]),
        (("seed=4294967295", "seeds=2"), ["compare.seeds = 2", "4294967295"]),
        (("rows=here.jsonl",), ["compare.rows", "is a list", "rows=[...]"]),
        (("points=999999",), ["compare.points = 999999", "2 steps"]),
        (("small=nowhere",), ["compare.small", "nowhere"]),
        (("rows=[nowhere.jsonl]", "objectives=[ntp]"), ["compare.rows", "nowhere.jsonl"]),
    ],
)
def test_what_it_refuses(
    remit: Callable[..., Any], tiny_model: Path, tmp_path: Path, args: tuple[str, ...],
    words: list[str],
) -> None:  # fmt: skip
    done = remit("compare", *TINY, "--base", tiny_model, "--ref", tiny_model, *args, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert [word for word in words if word not in done.stderr] == []
    assert done.stderr.count("override") <= 1
    assert list(tmp_path.iterdir()) == []


def planned(tiny_model: Path | None, *overrides: str) -> dict[str, Stage]:
    config = recipes.load("world-tiny", ["compare.seeds=1", *overrides])
    given = None if tiny_model is None else find_checkpoint(str(tiny_model), "--base")
    return {stage.name: stage for stage in plan_compare(config, given, given)}


def test_arms_of_equal_flops(tiny_model: Path) -> None:
    stages = planned(
        tiny_model, "compare.objectives=[ntp,miniplm,rho1,remit]", "compare.budget=flops",
        "mid_train.tokens=24576",
    )  # fmt: skip
    tokens = {
        name.split("/")[2]: stage.config.mid_train.tokens
        for name, stage in stages.items() if stage.kind == "mid_train"
    }  # fmt: skip
    # 8 a token with the reference, 6 without, 6 + 2 x 2 x 2 for a pool of twice the tokens: of 24
    # steps of 1,024 tokens 24 x 8/6 = 32 and 24 x 8/14 = 13.7.
    assert {arm: n / 1024 for arm, n in tokens.items()} == {
        "ntp": 32, "miniplm": 14, "rho1": 24, "remit": 24,
    }  # fmt: skip


def test_equal_flops_that_are_less_than_a_step_name_the_arm(tiny_model: Path) -> None:
    with pytest.raises(UserError, match=r"arm 'miniplm'.* 585 of .* one step of 1024 tokens"):
        planned(
            tiny_model, "compare.objectives=[miniplm]", "compare.budget=flops",
            "mid_train.tokens=1024", "compare.points=0",
        )  # fmt: skip


def test_more_rl_spends_what_the_reference_costs(tiny_model: Path) -> None:
    own = ("compare.objectives=[ntp,more-rl]", "compare.post_train=true")
    stages = planned(tiny_model, *own, "mid_train.tokens=65536")
    longer = stages["compare/seed-0/more-rl/40-rlvr"]
    # 2 x 65,536 for the reference; a step is 16 completions of 16 tokens, 14 a token.
    assert longer.config.rlvr.steps - 4 == round(2 * 65536 / (14 * 16 * 16))
    # The plain pipeline before it is trained once.
    assert longer.inputs == {"model": "compare/seed-0/ntp/30-dpo"}
    assert [s.kind for s in stages.values()].count("mid_train") == 1
    # Under equal FLOPs arm ntp trains on more tokens, so it has a pipeline of its own.
    stages = planned(tiny_model, *own, "mid_train.tokens=65536", "compare.budget=flops")
    assert stages["compare/seed-0/more-rl/40-rlvr"].inputs == {
        "model": "compare/seed-0/plain/30-dpo"
    }
    assert stages["compare/seed-0/plain/10-mid-train"].config.mid_train.tokens == 65536


def test_a_base_for_every_seed() -> None:
    stages = planned(
        None, "compare.base_per_seed=true", "compare.seeds=2", "compare.objectives=[sft,remit]"
    )
    for seed in (0, 1):
        folder = f"compare/seed-{seed}"
        assert stages[f"{folder}/base"].config.seed == seed
        assert stages[f"{folder}/remit/10-mid-train"].inputs == {
            "base": f"{folder}/base", "ref": f"{folder}/ntp/40-rlvr",
        }  # fmt: skip
        assert stages[f"{folder}/sft/10-mid-train"].inputs["ref"] == f"{folder}/ntp/20-sft"


def test_the_small_model_of_miniplm(tiny_model: Path) -> None:
    stages = planned(tiny_model, "compare.objectives=[miniplm]", f"compare.small={tiny_model}")
    folder = "compare/seed-0/miniplm/10-mid-train"
    assert stages[folder].inputs["small"] == stages[f"{folder}-score-small"].inputs["model"]
    assert "small" not in planned(tiny_model, "compare.objectives=[miniplm]")[folder].inputs


def test_only_what_is_not_known_is_needed(tiny_model: Path) -> None:
    stages = planned(
        tiny_model, "compare.objectives=[ntp,remit]", "compare.post_train=true",
        "mid_train.reference=cached", "compare.points=0",
    )  # fmt: skip
    assert needed(list(stages.values()), set()) == list(stages.values())
    left = needed(
        list(stages.values()), {("ntp", 0, "mid"), ("ntp", 0, "post"), ("remit", 0, "post")}
    )
    folder = "compare/seed-0/remit"
    assert [stage.name for stage in left] == [
        "compare/contamination", f"{folder}/10-mid-train-score", f"{folder}/10-mid-train",
        f"{folder}/15-eval",
    ]  # fmt: skip


@pytest.mark.slow
def test_in_the_run_directory_of_a_flywheel(
    remit: Callable[..., Any], tiny_run: Any, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(tiny_run.root, tmp_path / "run"))
    plan = (run / "flywheel.yaml").read_bytes()
    done = remit("compare", *TINY, "--base", run / "base", "--ref", run / "round-0" / "40-rlvr",
                 "seeds=1", "objectives=[ntp]", "--run-dir", run, check=True)  # fmt: skip
    assert "report:" in done.stdout
    # Its check is its own, and the flywheel's plan is still there to be analysed.
    assert (run / "compare" / "contamination" / "result.json").is_file()
    assert (run / "compare" / "plan.yaml").is_file()
    assert (run / "flywheel.yaml").read_bytes() == plan
    remit("analyze", run, check=True)


GOOD_ROW: dict[str, Any] = {
    "arm": "ntp", "seed": 0, "point": "mid", "against": "ntp", "drawn": {}, "identity": "id",
    "study": {"base": "ab"},
    "average": 0.5, "tasks": {"t": {"accuracy": 0.5, "questions": 2, "bits": "10"}},
    "bits_per_byte": {"web": 1.5}, "tokens": 100, "steps": 4, "passes": 1, "flops": 1e9,
    "seconds": 2.0,
}  # fmt: skip
SPOILT: list[tuple[str, Any]] = [
    ("arm", 3), ("seed", "0"), ("seed", True), ("seed", -1), ("seed", 0.0), ("point", ["mid"]),
    ("point", "half"), ("point", "1/0"), ("identity", None), ("study", None),
    ("study", {"base": 1}), ("average", None), ("average", True), ("average", math.nan),
    ("average", "0.5"),
    ("tasks", 5), ("tasks", {"t": 5}), ("bits_per_byte", [1.5]), ("bits_per_byte", {"web": "1"}),
    ("tokens", 1.5), ("steps", None), ("passes", "1"), ("flops", math.inf), ("seconds", 10**400),
]  # fmt: skip
SPOILT_SCORES: list[tuple[str, Any]] = [
    ("accuracy", None), ("accuracy", math.nan), ("questions", True), ("questions", 2.0),
    ("bits", 10), ("bits", "1"), ("bits", "12"), ("bits", "100"), ("bits", [1, 0]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "row"),
    [
        *((key, GOOD_ROW | {key: value}) for key, value in SPOILT),
        *((f"tasks.t.{key}", GOOD_ROW | {"tasks": {"t": GOOD_ROW["tasks"]["t"] | {key: value}}})
          for key, value in SPOILT_SCORES),
        ("tasks.t", GOOD_ROW | {"tasks": {"t": {"accuracy": 0.5}}}),
    ],
)  # fmt: skip
def test_a_row_with_a_value_that_cannot_be(tmp_path: Path, key: str, row: dict[str, Any]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD_ROW) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError) as error:
        parsed(path, f"compare.rows: {path}")
    assert str(error.value).startswith(f"compare.rows: {path}, line 2: {key}")


def test_a_row_that_is_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    quarter = GOOD_ROW | {"point": "1/4", "average": 0, "tasks": {}}
    path.write_text(json.dumps(GOOD_ROW) + "\n" + json.dumps(quarter) + "\n")
    assert parsed(path, "rows") == [Row(**GOOD_ROW), Row(**quarter)]


@pytest.mark.slow
def test_rows_of_another_run_are_read_back(
    remit: Callable[..., Any], tiny_run: Any, tmp_path: Path
) -> None:
    args = ("compare", *TINY, "--base", tiny_run.root / "base", "--ref",
            tiny_run.root / "round-0" / "40-rlvr", "seeds=1", "--json")  # fmt: skip
    first = remit(*args, "--run-dir", tmp_path / "a", "objectives=[ntp]", check=True).json
    kept = tmp_path / "rows.jsonl"
    kept.write_bytes((tmp_path / "a" / "compare" / "rows.jsonl").read_bytes())

    both = (*args, "--run-dir", tmp_path / "b", "objectives=[ntp,remit]", f"rows=[{kept}]")
    values = remit(*both, check=True).json
    assert values["rows"][0] == first["rows"][0]
    assert values["tables"][0]["arms"] == ["ntp", "remit"]
    ran = {json.loads(line)["stage"] for line in (tmp_path / "b" / "ledger.jsonl").open()}
    assert {name.split("/")[2] for name in ran - {"compare/contamination"}} == {"remit"}

    # Nothing left to run: the rows of both runs alone make the tables.
    all_rows = tmp_path / "b" / "compare" / "rows.jsonl"
    assert len(all_rows.read_text().splitlines()) == 2
    alone = (*args, "--run-dir", tmp_path / "c", "objectives=[ntp,remit]", f"rows=[{all_rows}]")
    assert remit(*alone, check=True).json["rows"] == values["rows"]

    fresh = (*args, "--run-dir", tmp_path / "d", "objectives=[ntp,remit]", f"rows=[{kept}]")
    other = remit(*fresh, "mid_train.learning_rate=1e-3")
    assert other.returncode == 2
    assert f"{kept}, line 1" in other.stderr and "differs in mid_train" in other.stderr
    kept.write_text(kept.read_text() + "{}\n")
    broken = remit(*fresh)
    assert broken.returncode == 2 and "line 2: no row of remit compare" in broken.stderr
    assert not (tmp_path / "d").exists()


@pytest.mark.slow
def test_more_rl_and_a_base_for_every_seed(remit: Callable[..., Any], tmp_path: Path) -> None:
    values = remit(
        "compare", *TINY, "--run-dir", tmp_path / "run", "seeds=1", "base_per_seed=true",
        "objectives=[ntp,remit,more-rl]", "post_train=true", "mid_train.tokens=65536",
        "pretrain.tokens=2048", "--json", check=True,
    ).json  # fmt: skip
    rows = {(row["arm"], row["point"]): row for row in values["rows"]}
    assert sorted(rows) == [
        ("more-rl", "post"), ("ntp", "mid"), ("ntp", "post"), ("remit", "mid"), ("remit", "post"),
    ]  # fmt: skip
    spent = {arm: rows[arm, "post"]["flops"] for arm in ("ntp", "remit", "more-rl")}
    assert (
        spent["more-rl"] == pytest.approx(spent["remit"], rel=0.02)
        and spent["ntp"] < 0.9 * spent["remit"]
    )
    assert rows["remit", "mid"]["study"].keys() == {"base", "ref", "mid_train", "evaluate"}


@pytest.mark.slow
def test_all_arms_from_one_base(remit: Callable[..., Any], tiny_run: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    args = ("compare", *TINY, "--base", tiny_run.root / "base", "--ref",
            tiny_run.root / "round-0" / "40-rlvr", "--run-dir", run, "compare.seeds=2",
            "compare.points=1", "--json")  # fmt: skip
    values = remit(*args, check=True).json
    (table,) = values["tables"]
    assert table["arms"] == ["ntp", "kd", "miniplm", "rho1", "sft", "remit"]
    assert table["seeds"] == [0, 1] and len(table["accuracy"]) == 11
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
