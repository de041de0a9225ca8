"""`remit compare`: what it plans, what its tables say, and a small run of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from compared import TINY, row, variants

from pipelines.comparison.arm_rules import arms_without_baseline
from pipelines.comparison.arm_stages import needed, place
from pipelines.comparison.arms import plan_compare
from pipelines.comparison.row import Row
from pipelines.comparison.tables import curves, tables
from pipelines.errors import UserError
from pipelines.evals.intervals import holm, mean_interval, t_test
from pipelines.models.checkpoint import find_checkpoint
from pipelines.plan.flywheel import plan_flywheel
from pipelines.plan.identity import identity_fields
from pipelines.plan.preflight import check_plan
from pipelines.plan.sources import sources_of
from pipelines.plan.stage import Stage
from pipelines.recipe import load as recipes
from pipelines.report import charts
from pipelines.report.blocks import Dot, DotPlot, LineChart, Table
from pipelines.report.objectives import section
from pipelines.report.record import record_of_rows
from pipelines.run_dir.paths import RunDir


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
    assert own is None and gain is not None and gain.baseline == "ntp"
    assert gain.mean == pytest.approx(0.1) and gain.by_seed == pytest.approx({0: 0.1, 1: 0.1})
    # The seeds differ by 0.4, the pairs do not.
    assert gain.half == pytest.approx(0, abs=1e-9)
    assert table.average.cells[1].half > 1
    assert tables([row("remit", 0, 0.2)])[0].average.gains == [None]


def test_what_is_said_of_a_gain() -> None:
    found = [row("ntp", seed, 0.1) for seed in range(5)]
    deltas = (0.01, 0.02, 0.03, 0.04, 0.05)
    found += [row("remit", seed, 0.1 + delta) for seed, delta in enumerate(deltas)]
    found += [row("kd", seed, 0.1 - 2 * delta) for seed, delta in enumerate(deltas[:3])]
    (table,) = tables(found)
    gains = dict(zip(table.arms, table.average.gains, strict=True))
    # Mean 0.03, s = sqrt(0.00025): t = 0.03 / (s / sqrt 5) = sqrt(18) = 4.243, p(4) = 0.0132.
    assert gains["remit"].effect == pytest.approx(0.03 / 0.00025**0.5)
    assert gains["remit"].p_value == pytest.approx(0.0132, abs=1e-4)
    # kd: mean -0.04, s = 0.02, t = -3.464, p(2) = 0.0742; of two arms the smaller p counts twice.
    assert gains["kd"].p_value == pytest.approx(0.0742, abs=1e-4)
    assert gains["remit"].holm == pytest.approx(2 * gains["remit"].p_value)
    assert gains["kd"].holm == pytest.approx(gains["kd"].p_value)
    assert list(gains["kd"].by_seed) == [0, 1, 2]


def test_differences_that_are_equal_have_no_p() -> None:
    found = [row("ntp", 0, 0.5), row("ntp", 1, 0.3), row("remit", 0, 0.55), row("remit", 1, 0.35)]
    gain = tables(found)[0].average.gains[1]
    assert gain.mean == pytest.approx(0.05) and gain.half == pytest.approx(0, abs=1e-9)
    assert (gain.effect, gain.p_value, gain.holm) == (None, None, None)


def test_bits_and_draws_have_gains_of_their_own() -> None:
    # A task and a domain may have one name.
    found = [row("ntp", 0, 0.1), replace(row("remit", 0, 0.3), sampled={"pass@8": 0.5})]
    found = [replace(r, bits_per_byte={"t0": 2 - r.average}) for r in found]
    (table,) = tables(found)
    assert table.accuracy["t0"].gains[1].mean == pytest.approx(0.2)
    assert table.bits_per_byte["t0"].gains[1].mean == pytest.approx(-0.2)
    assert [cell and cell.mean for cell in table.sampled["pass@8"].cells] == [None, 0.5]
    assert table.sampled["pass@8"].gains == [None, None]


def test_t_test_and_holm() -> None:
    # Quantiles of Student's t: 97.5% is 12.706 for 1, 4.303 for 2, 2.776 for 4, 2.262 for 9.
    for n, t in ((2, 12.706), (3, 4.303), (5, 2.776), (10, 2.262)):
        spread = [(-1) ** i for i in range(n)] if n % 2 == 0 else [*([-1, 1] * (n // 2)), 0]
        scale = (sum(x * x for x in spread) / (n - 1) / n) ** 0.5
        assert t_test([x + t * scale for x in spread]) == pytest.approx(0.05, abs=1e-4)
    assert t_test([0.1]) is None and t_test([0.1, 0.1]) is None
    assert holm([0.01, 0.04, None, 0.03]) == pytest.approx([0.03, 0.06, None, 0.06])


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
    # There is nothing to reach where NTP did not rise to its end.
    for level in (0.0, 0.1):
        flat = [row(arm, 0, level, point=p) for arm in ("ntp", "remit") for p in ("1/2", "mid")]
        assert [curve.steps_to_ntp for curve in curves(flat)] == [None, None]
    assert curves([row("ntp", 0, 0.4)]) == []
    # An arm with some of the seeds is to reach what NTP reached with those.
    more = [row("ntp", 1, 0.1, point="1/2"), row("ntp", 1, 0.9)]
    again = {curve.arm: curve for curve in curves([*found, *more])}
    assert again["remit"] == drawn["remit"] and again["ntp"].averages[1].mean == 0.65


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("compare.arms=[ntp,remt]",), ["'remt'", "rho1"]),
        (("compare.arms=[]",), ["compare.arms is empty"]),
        (("eval.tasks.world.enabled=false",), ["no task or benchmark"]),
        (("compare.seeds=0",), ["compare.seeds = 0"]),
        (("arms=[sft]",), ["no SFT stage", "compare.sft_ref"]),
        (("arms=[more-rl]",), ["more-rl", "compare.post_train=true"]),
        (("base_per_seed=true",), ["leave --base and --ref out"]),
        (("seed=4294967295", "seeds=2"), ["compare.seeds = 2", "4294967295"]),
        (("rows=here.jsonl",), ["compare.rows", "is a list", "rows=[...]"]),
        (("points=999999",), ["compare.points = 999999", "2 steps"]),
        (("mid_train.tokens=100", "points=3"), ["mid_train.tokens = 100 is less than one step"]),
        (("mid_train.objective=kd", "arms=[ntp]"), ["objective=kd", "compare.arms"]),
        (("post_points=true",), ["compare.post_points=true", "compare.post_train=true"]),
        (("small=nowhere",), ["compare.small", "nowhere"]),
        (("rows=[nowhere.jsonl]", "arms=[ntp]"), ["compare.rows", "nowhere.jsonl"]),
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
        tiny_model, "compare.arms=[ntp,miniplm,rho1,remit]", "compare.budget=flops",
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
            tiny_model, "compare.arms=[miniplm]", "compare.budget=flops",
            "mid_train.tokens=1024", "compare.points=0",
        )  # fmt: skip


def test_points_before_the_last_step(tiny_model: Path) -> None:
    # 20,000 tokens are 20 steps of 1,024, the last of them not full.
    stages = planned(tiny_model, "compare.arms=[ntp]", "compare.points=19")
    assert sum(stage.kind == "evaluate" for stage in stages.values()) == 20
    with pytest.raises(UserError, match=r"arm 'ntp': compare.points = 20: .* 20 steps"):
        planned(tiny_model, "compare.arms=[ntp]", "compare.points=20")
    # Under equal FLOPs MiniPLM has 14 steps where ReMiT has 24.
    with pytest.raises(UserError, match=r"arm 'miniplm': compare.points = 14: .* 14 steps"):
        planned(
            tiny_model, "compare.arms=[remit,miniplm]", "compare.budget=flops",
            "mid_train.tokens=24576", "compare.points=14",
        )  # fmt: skip


def test_more_rl_spends_what_the_reference_costs(tiny_model: Path) -> None:
    own = ("compare.arms=[ntp,more-rl]", "compare.post_train=true")
    stages = planned(tiny_model, *own, "mid_train.tokens=65536")
    longer = stages["compare/seed-0/more-rl/40-rlvr"]
    # 2 x 65,536 for the reference; a step is 16 completions of 16 tokens, 14 a token.
    assert longer.config.rlvr.max_steps - 4 == round(2 * 65536 / (14 * 16 * 16))
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
        None, "compare.base_per_seed=true", "compare.seeds=2", "compare.arms=[sft,remit]"
    )
    for seed in (0, 1):
        folder = f"compare/seed-{seed}"
        assert stages[f"{folder}/base"].config.seed == seed
        assert stages[f"{folder}/remit/10-mid-train"].inputs == {
            "base": f"{folder}/base", "ref": f"{folder}/ntp/40-rlvr",
        }  # fmt: skip
        assert stages[f"{folder}/sft/10-mid-train"].inputs["ref"] == f"{folder}/ntp/20-sft"


def test_the_small_model_of_miniplm(tiny_model: Path) -> None:
    stages = planned(tiny_model, "compare.arms=[miniplm]", f"compare.small={tiny_model}")
    folder = "compare/seed-0/miniplm/10-mid-train"
    assert stages[folder].inputs["small"] == stages[f"{folder}-score-small"].inputs["model"]
    assert "small" not in planned(tiny_model, "compare.arms=[miniplm]")[folder].inputs


def test_only_what_is_not_known_is_needed(tiny_model: Path) -> None:
    stages = planned(
        tiny_model, "compare.arms=[ntp,remit]", "compare.post_train=true",
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


def own(*overrides: str, **arms: dict[str, Any]) -> dict[str, Stage]:
    return planned(None, *variants(**arms), "compare.base_per_seed=true", *overrides)


def test_a_variant_changes_what_it_says_alone() -> None:
    stages = own(
        wide={"set": ["mid_train.remit.eps=0.5", "mid_train.remit.center=document"]}, same={}
    )
    wide, same = (stages[f"compare/seed-0/{arm}/10-mid-train"] for arm in ("wide", "same"))
    assert (wide.config.mid_train.remit.eps, wide.config.mid_train.remit.center) == (
        0.5,
        "document",
    )
    assert (
        replace(wide.config.mid_train, remit=same.config.mid_train.remit) == same.config.mid_train
    )
    assert wide.config.mid_train.snapshots == 0
    assert wide.inputs == same.inputs
    # It is evaluated at its end, and not along its annealing.
    assert [n for n in stages if n.startswith("compare/seed-0/wide/") and "eval" in n] == [
        "compare/seed-0/wide/15-eval"
    ]


def test_rounds_are_variants() -> None:
    arms = {"round-2": {"ref": "remit"}, "onwards": {"base": "remit", "ref": "remit"}}
    stages = own("compare.post_train=true", **arms)
    folder = "compare/seed-0"
    second = {"base": f"{folder}/base", "ref": f"{folder}/remit/40-rlvr"}
    assert stages[f"{folder}/round-2/10-mid-train"].inputs == second
    assert stages[f"{folder}/onwards/10-mid-train"].inputs == second | {
        "base": f"{folder}/remit/10-mid-train"
    }
    # The first round is trained for them and not evaluated, since it was not asked for.
    assert f"{folder}/remit/40-rlvr" in stages and f"{folder}/remit/15-eval" not in stages
    # They are the rounds of a flywheel: a stage depends on the same settings in both.
    config = recipes.load("world-tiny", ["flywheel.iterations=2"])
    rounds = {stage.name: stage for stage in plan_flywheel(config, None, None)}
    for round_, arm in ((1, "remit"), (2, "round-2")):
        for step in ("10-mid-train", "20-sft", "30-dpo", "40-rlvr"):
            in_round, in_arm = rounds[f"round-{round_}/{step}"], stages[f"{folder}/{arm}/{step}"]
            fields = [identity_fields(s.kind, s.config, {}) for s in (in_round, in_arm)]
            # `compare` keeps models along the annealing.
            assert fields[0] | {"mid_train.snapshots": 3} == fields[1] | {"mid_train.snapshots": 3}


def test_references_of_variants() -> None:
    stages = own(
        control={"ref": "base"}, on_sft={"ref": "ntp/20-sft"}, early={"ref": "ntp/10-mid-train@2"},
        other={"ref": "ntp", "ref_seed": 7}, short={"arm": "ntp", "set": ["mid_train.tokens=1024"]},
        weak={"ref": "short"},
    )  # fmt: skip
    refs = {
        name.split("/")[2]: stage.inputs["ref"]
        for name, stage in stages.items() if stage.kind == "mid_train" and "ref" in stage.inputs
    }  # fmt: skip
    assert refs == {
        "control": "compare/seed-0/base", "on_sft": "compare/seed-0/ntp/20-sft",
        "early": "compare/seed-0/ntp/10-mid-train@2", "other": "compare/seed-7/ntp/40-rlvr",
        "weak": "compare/seed-0/short/40-rlvr",
    }  # fmt: skip
    assert stages["compare/seed-7/base"].config.seed == 7
    assert stages["compare/seed-0/short/10-mid-train"].config.mid_train.tokens == 1024
    position = {name: i for i, name in enumerate(stages)}
    for name, stage in stages.items():
        needs = [g.partition("@")[0] for g in stage.inputs.values() if isinstance(g, str)]
        assert all(position[need] < position[name] for need in needs)


def test_one_variant_has_another_budget() -> None:
    stages = own(
        "mid_train.tokens=24576", longer={"arm": "ntp", "budget": "flops"}, same={"arm": "ntp"}
    )  # fmt: skip
    tokens = {
        name.split("/")[2]: stage.config.mid_train.tokens
        for name, stage in stages.items() if stage.kind == "mid_train"
    }  # fmt: skip
    assert tokens["longer"] == 32 * 1024 and tokens["same"] == 24576


def test_a_source_of_a_variant_is_looked_through_for_questions(tmp_path: Path) -> None:
    noise = "mid_train.sources.noise={kind: world, stream: pretrain}"
    stages = own(a={"set": [noise]}, b={"set": [noise, "mid_train.sources.world.weight=0"]})
    check = stages["compare/contamination"]
    assert {"mid_train.sources.world", "mid_train.sources.noise"} <= set(check.reads)
    facts = check_plan(list(stages.values()), RunDir(tmp_path))
    assert set(sources_of(check)) <= set(facts)
    assert facts["mid_train.sources.world"].sha256 != "weight 0"


def test_a_given_reference_is_used_by_all(tiny_model: Path) -> None:
    arms = variants(v={"ref": "sft"}, w={"arm": "sft", "ref": "ntp/20-sft"})
    stages = planned(tiny_model, *arms, f"compare.sft_ref={tiny_model}")
    sft = stages["compare/seed-0/sft/10-mid-train"].inputs["ref"]
    assert not isinstance(sft, str) and sft.folder == tiny_model
    assert stages["compare/seed-0/w/10-mid-train"].inputs["ref"] == "compare/seed-0/ntp/20-sft"
    base = find_checkpoint(str(tiny_model), "--base")
    config = recipes.load("world-tiny", variants(onwards={"base": "remit", "ref": "remit"}))
    with pytest.raises(UserError, match=r"arm 'remit' needs --ref .* onwards"):
        plan_compare(config, base, None)


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        ({"a": {"ref": "b"}, "b": {"ref": "a"}}, ["a -> b -> a"]),
        ({"a": {"ref": "a", "ref_seed": 1}}, ["a -> a"]),
        ({"a": {"ref": "b/10-mid-train@1"}, "b": {}}, ["@1", "arm 'b' saves 0 snapshots"]),
        ({"a": {"base": "remit/10-mid-train"}}, ["compare.variants.a.base", "mid-trained"]),
        ({"a": {"ref": "remt/20-sft"}}, ["compare.variants.a.ref", "'remt'", "'remit'"]),
        (
            {"a": {"set": ["mid_train.sources.world.limit=9"]}},
            ["compare.variants.a.set", "source 'world'", "Rename it"],
        ),
        ({"a": {"set": ["sft.max_steps=3"]}}, ["compare.variants.a.set", "'sft.max_steps'"]),
        ({"a": {"set": ["mid_train.objective=kd"]}}, ["'mid_train.objective'"]),
        ({"a": {"set": ["mid_train.remit.epz=1"]}}, ["compare.variants.a.set", "epz", "eps"]),
        ({"a": {"set": ["mid_train.remit.eps=7"]}}, ["compare.variants.a.set", "at most 1"]),
        ({"a": {"set": ["mid_train.tokens=100"]}}, ["arm 'a'", "100 is less than one step"]),
        ({"a": {"arm": "more-rl"}}, ["compare.variants.a.arm", "more-rl"]),
        ({"a": {"ref": "more-rl"}}, ["more-rl"]),
        ({"a": {"arm": "ntp", "ref": "ntp"}}, ["has no reference"]),
        ({"a": {"ref": "ntp/25-x"}}, ["no stage '25-x'", "20-sft"]),
        ({"a": {"ref": "ntp/10-mid-train@9"}}, ["@9", "saves 3 snapshots"]),
        ({"a": {"ref": "remt"}}, ["compare.variants.a.ref", "remt", "remit"]),
        ({"a": {"ref": "base", "ref_seed": 1}}, ["ref_seed"]),
        ({"a": {"against": "a"}}, ["compare.variants.a.against = a", "name another"]),
        ({"a": {"against": "b"}}, ["compare.variants.a.against", "'b'"]),
        ({"remit": {}}, ["'remit' is taken"]),
        ({"x/y": {}}, ["becomes a folder"]),
    ],
)
def test_variants_it_refuses(arms: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        own(**arms)
    assert [word for word in words if word not in str(error.value)] == []


def test_an_arm_without_its_baseline_is_warned_of() -> None:
    def lone(objectives: list[str], *there: tuple[str, int]) -> list[str]:
        given = [*variants(a={"against": "remit"}), f"compare.arms={objectives}"]
        found = arms_without_baseline(
            recipes.load("world-tiny", ["compare.seeds=2", "seed=5", *given]), {*there}
        )
        return [sentence.split("'")[1] for sentence in found]

    assert lone(["ntp", "remit", "a"]) == []
    assert lone(["a", "kd"]) == ["a", "kd"]
    # A block of before ran it, with one of the seeds.
    assert lone(["a", "kd"], ("remit", 6), ("ntp", 7)) == ["kd"]


def test_points_after_each_step_of_post_training() -> None:
    stages = own("compare.post_train=true", "compare.post_points=true", a={})
    asked = {
        place(stage)[2]: stage.inputs["model"].rpartition("/")[2]
        for stage in stages.values() if stage.kind == "evaluate"
    }  # fmt: skip
    assert asked == {"mid": "10-mid-train", "sft": "20-sft", "dpo": "30-dpo", "post": "40-rlvr"}
    assert all(s.chat for s in stages.values() if s.kind == "evaluate" and place(s)[2] != "mid")
    stages = own(
        "compare.post_train=true", "compare.post_points=true", "rlvr.enabled=false", a={}
    )  # fmt: skip
    asked = {place(s)[2]: s.inputs["model"] for s in stages.values() if s.kind == "evaluate"}
    assert sorted(asked) == ["mid", "post", "sft"] and asked["post"].endswith("30-dpo")


def test_answers_are_sampled_only_at_the_end() -> None:
    stages = own("eval.tasks.world.samples=4", "compare.arms=[ntp]", a={})
    drawn = {
        place(s)[2]: s.config.eval.tasks["world"].samples
        for s in stages.values() if s.kind == "evaluate"
    }  # fmt: skip
    assert drawn == {"1/4": 0, "2/4": 0, "3/4": 0, "mid": 4}


def test_in_the_run_directory_of_a_flywheel(
    remit: Callable[..., Any], tiny_run: Any, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(tiny_run.root, tmp_path / "run"))
    plan = (run / "flywheel.yaml").read_bytes()
    done = remit("compare", *TINY, "--base", run / "base", "--ref", run / "round-0" / "40-rlvr",
                 "seeds=1", "arms=[ntp]", "--run-dir", run, check=True)  # fmt: skip
    assert "report:" in done.stdout
    # Its check is its own, and the flywheel's plan is still there to be analysed.
    assert (run / "compare" / "contamination" / "result.json").is_file()
    assert (run / "compare" / "plan.yaml").is_file()
    assert (run / "flywheel.yaml").read_bytes() == plan
    remit("analyze", run, check=True)


def test_levels_of_different_seeds_say_so(tmp_path: Path) -> None:
    def drawn(found: list[Row]) -> dict[str, Any]:
        blocks = section(record_of_rows([tmp_path / "rows.jsonl"], found)).blocks
        return {block.title: block for block in blocks if isinstance(block, Table | LineChart)}

    same = [
        row(arm, seed, 0.5, point=point)
        for arm in ("ntp", "kd") for seed in range(10) for point in ("1/2", "mid")
    ]  # fmt: skip
    levels, along = "Accuracy in percent after mid-training", "Accuracy during mid-training"
    assert drawn(same)[levels].columns == ["task", "ntp", "kd"]
    assert "not comparable" not in drawn(same)[levels].note + drawn(same)[along].note
    fewer = drawn([r for r in same if r.arm == "ntp" or r.seed < 5])
    assert fewer[levels].columns == ["task", "ntp (10)", "kd (5)"]
    assert "Means over different seeds are not comparable" in fewer[levels].note
    assert (
        fewer[along].note
        == "Number of seeds: ntp 10, kd 5. Lines of different seeds are not comparable."
    )


def test_the_names_of_both_arms_of_a_difference_are_drawn() -> None:
    label = "continued-2 - ntp-continued-2"
    plot = DotPlot("", "", [Dot(label, 1.0, 0.5, "+1.0"), Dot("kd - ntp", 0.0, 0.5, "+0.0")], 0.0)
    drawn = charts.dots(plot)
    assert drawn.left > charts.CHARACTER * len(label) and drawn.right - drawn.left > 100
    assert len(label) < charts.MOST_LABEL


def test_a_variant_has_the_colour_of_no_arm_of_the_table(tmp_path: Path) -> None:
    found = [row("ntp", 0, 0.1), row("rho1", 0, 0.2), row("mine", 0, 0.3)]
    blocks = section(record_of_rows([tmp_path / "rows.jsonl"], found)).blocks
    (plot,) = (block for block in blocks if isinstance(block, DotPlot))
    assert {dot.label: dot.colour for dot in plot.dots} == {"rho1": 2, "mine": 7}


def test_what_the_training_of_arms_left_is_compared() -> None:
    found = [
        replace(row("ntp", 0), training={"SFT loss, first": 1.75}),
        replace(row("remit", 0), training={"SFT loss, first": 1.5, "chosen code": 0.25}),
    ]
    (table,) = tables(found)
    assert [c and c.mean for c in table.training["SFT loss, first"].cells] == [1.75, 1.5]
    assert table.training["SFT loss, first"].gains[1].mean == -0.25
    assert [c and c.mean for c in table.training["chosen code"].cells] == [None, 0.25]


def test_the_plan_of_a_comparison(remit: Callable[..., Any], tmp_path: Path) -> None:
    values = remit("plan", "--compare", *TINY, "base_per_seed=true", "seeds=2",
                   "arms=[ntp,remit]", "--json", cwd=tmp_path, check=True).json  # fmt: skip
    names = [stage["stage"] for stage in values["stages"]]
    assert "compare/seed-1/remit/10-mid-train" in names and len(names) == 17
    drawn = remit("plan", "--compare", *TINY, "base_per_seed=true", "seeds=1", "seed=20",
                  "mid_train.reference=cached", "arms=[miniplm]", cwd=tmp_path,
                  env={"COLUMNS": "80"}, check=True).stdout  # fmt: skip
    lines = [line.split()[:1] for line in drawn.splitlines()]
    assert ["seed-20/ntp/10-mid-train"] in lines and ["10-mid-train-score-small"] in lines
    assert list(tmp_path.iterdir()) == []


def test_more_rl_and_a_base_for_every_seed(remit: Callable[..., Any], tmp_path: Path) -> None:
    values = remit(
        "compare", *TINY, "--run-dir", tmp_path / "run", "seeds=1", "base_per_seed=true",
        "arms=[ntp,remit,more-rl]", "post_train=true", "mid_train.tokens=65536",
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
    # What training left is that of the arm's own stages up to the row.
    sft = json.loads((tmp_path / "run/compare/seed-0/remit/20-sft/result.json").read_text())
    left = rows["remit", "post"]["training"]
    assert (left["SFT loss, first"], left["SFT loss, last"]) == (
        sft["loss_first"], sft["loss_last"]
    )  # fmt: skip
    assert rows["remit", "mid"]["training"] == {}


def test_all_arms_from_one_base(remit: Callable[..., Any], tiny_run: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    args = ("compare", *TINY, "--base", tiny_run.root / "base", "--ref",
            tiny_run.root / "round-0" / "40-rlvr", "--run-dir", run,
            "compare.points=1", "--json")  # fmt: skip
    values = remit(*args, "compare.seeds=1", check=True).json
    (table,) = values["tables"]
    assert table["arms"] == ["ntp", "kd", "miniplm", "rho1", "sft", "remit"]
    assert table["seeds"] == [0] and len(table["accuracy"]) == 11
    rows = [json.loads(line) for line in (run / "compare" / "rows.jsonl").open()]
    assert rows == values["rows"] and len(rows) == 12
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
    chosen = {row["arm"]: row["training"] for row in rows if row["point"] == "mid"}
    assert {arm for arm, shares in chosen.items() if shares} == {"miniplm"}
    assert sum(chosen["miniplm"].values()) == pytest.approx(1, abs=1e-3)
    objectives = {
        row["arm"]: json.loads(
            (run / "compare" / "seed-0" / row["arm"] / "10-mid-train" / "result.json").read_text()
        )
        for row in rows
    }  # fmt: skip
    assert objectives["sft"]["reference"].endswith("20-sft/model")
    assert objectives["sft"]["objective"] == "remit"

    again = remit(*args, "compare.seeds=1", check=True).json
    assert again["rows"] == values["rows"]
    events = [json.loads(line)["event"] for line in (run / "ledger.jsonl").open()]
    assert events.count("finish") == events.count("start") == events.count("skip")

    # A second seed of two arms: the rows of the first are kept, and those of the other arms.
    more = remit(*args, "compare.seeds=2", "arms=[ntp,remit]", check=True).json
    assert {(row["arm"], row["seed"]) for row in more["rows"]} == {
        *((arm, 0) for arm in table["arms"]), ("ntp", 1), ("remit", 1),
    }  # fmt: skip
    kept = [json.loads(line) for line in (run / "compare" / "rows.jsonl").open()]
    first = [row for row in kept if row["seed"] == 0]
    assert len(kept) == 12 + 4 and sorted(map(str, first)) == sorted(map(str, rows))
