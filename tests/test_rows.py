"""Rows of a comparison: which are valid, which belong together, and their report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from compared import TINY, row, variants, write

from pipelines.comparison.arm_stages import place
from pipelines.comparison.arms import plan_compare
from pipelines.comparison.row import Row, parsed
from pipelines.comparison.rows import (
    check_kept,
    collected,
    existing_rows,
    read_rows,
    shown,
    write_rows,
)
from pipelines.comparison.study import Study
from pipelines.errors import UserError
from pipelines.plan.sources import sources_of
from pipelines.recipe import load as recipes
from pipelines.run_dir.paths import RunDir

GOOD_ROW: dict[str, Any] = {
    "arm": "ntp", "seed": 0, "point": "mid", "against": "ntp", "sampled": {}, "identity": "id",
    "study": {"base": "ab"},
    "average": 0.5, "tasks": {"t": {"accuracy": 0.5, "questions": 2, "bits": "10"}},
    "bits_per_byte": {"web": 1.5}, "tokens": 100, "steps": 4, "passes": 1, "flops": 1e9,
    "seconds": 2.0,
}  # fmt: skip

SPOILT: list[tuple[str, Any]] = [
    ("arm", 3), ("seed", "0"), ("seed", True), ("seed", -1), ("seed", 0.0), ("point", ["mid"]),
    ("point", "half"), ("point", "1/0"), ("identity", None), ("study", None),
    ("study", {"base": 1}), ("average", None), ("average", True), ("average", math.nan),
    ("average", "0.5"), ("average", 0.6),
    ("tasks", 5), ("tasks", {}), ("shared", {"base": 1}),
    ("tasks", {"t": 5}), ("bits_per_byte", [1.5]), ("bits_per_byte", {"web": "1"}),
    ("tokens", 1.5), ("steps", None), ("passes", "1"), ("flops", math.inf), ("seconds", 10**400),
    ("training", {"SFT loss, first": "1"}), ("training", None),
]  # fmt: skip

SPOILT_SCORES: list[tuple[str, Any]] = [
    ("accuracy", None), ("accuracy", math.nan), ("accuracy", 0.75),
    ("questions", True), ("questions", 2.0),
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
    nothing = {"t": {"accuracy": 0, "questions": 1, "bits": "0"}}
    quarter = GOOD_ROW | {"point": "1/4", "average": 0, "tasks": nothing}
    path.write_text(json.dumps(GOOD_ROW) + "\n" + json.dumps(quarter) + "\n")
    assert parsed(path, "rows") == [Row(**GOOD_ROW), Row(**quarter)]


def study_of(*overrides: str, **arms: dict[str, Any]) -> Study:
    given = [*variants(**arms), "compare.base_per_seed=true", *overrides]
    config = recipes.load("world-tiny", given)
    stages = plan_compare(config, None, None)
    data = {key: "x" for stage in stages for key in sources_of(stage)}
    return Study(stages, data, config, None, None)


def rows_of(study: Study) -> list[Row]:
    places = {place(s): s for s in study.stages if s.kind == "evaluate"}
    return [
        replace(row(arm, seed, 0.5, point=point), study=study.parts(stage), shared=study.shared)
        for (arm, seed, point), stage in places.items()
    ]


def test_hashes_of_a_study_differ_by_reference() -> None:
    def ref(**variant: Any) -> str:
        study = study_of(v=variant)
        return study.parts(study.by_name["compare/seed-0/v/15-eval"])["ref"]

    kept = "ntp/10-mid-train"
    hashes = [
        ref(ref=kept), ref(ref=f"{kept}@1"), ref(ref=f"{kept}@2"), ref(ref="ntp"),
        ref(ref="ntp", ref_seed=1), ref(ref="ntp", ref_seed=2), ref(ref="kd"), ref(ref="rho1"),
    ]  # fmt: skip
    assert len(set(hashes)) == len(hashes)
    assert ref(ref="ntp", ref_seed=1) == ref(ref="ntp", ref_seed=1)


def test_a_study_goes_on_block_by_block(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write_rows(run, rows_of(study_of("compare.arms=[ntp]")))
    for later in (
        study_of("compare.arms=[remit,kd]"),
        study_of("compare.arms=[ntp,remit]", "compare.post_train=true"),
        study_of("compare.arms=[ntp]", "seed=1"),
        study_of("compare.arms=[ntp]", "compare.points=0"),
        study_of(v={"arm": "ntp", "set": ["mid_train.learning_rate=1e-4"]}),
        study_of("compare.arms=[kd]", "mid_train.reference=inline"),
    ):
        check_kept(run, later)
        assert read_rows([], later) == []


@pytest.mark.parametrize(
    ("later", "differs"),
    [
        (("compare.arms=[remit]", "mid_train.learning_rate=1e-5"), "mid_train"),
        (("compare.arms=[ntp]", "seed=1", "mid_train.learning_rate=1e-5"), "mid_train"),
        (("compare.arms=[ntp]", "seed=1", "eval.tasks.world.limit=3"), "evaluate"),
        (("compare.arms=[remit]", "pretrain.learning_rate=1e-5"), "pretrain"),
        (("compare.arms=[remit]", "sft.max_steps=3"), "sft"),
    ],
)
def test_rows_of_another_study_are_not_added_to(
    tmp_path: Path, later: tuple[str, ...], differs: str
) -> None:
    run = RunDir(tmp_path)
    path = write_rows(run, rows_of(study_of("compare.arms=[ntp]")))
    other = study_of(*later)
    wanted = rf"line 1: ntp, seed 0, .* another study: .* {differs}.*another --run-dir"
    with pytest.raises(UserError, match=wanted) as error:
        check_kept(run, other)
    assert str(path) in str(error.value)
    apart = write(tmp_path / "other.jsonl", *rows_of(other))
    with pytest.raises(UserError, match=rf"other.jsonl, line 1: .* another study .* {differs}"):
        collected([path, apart])


def test_rows_of_another_text_are_not_added_to(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write_rows(run, rows_of(study_of("compare.arms=[ntp]")))
    other = study_of("compare.arms=[kd]", v={"set": ["mid_train.sources.world.weight=0.5"]})
    check_kept(run, other)
    other = replace(other, data_sha256=dict.fromkeys(other.data_sha256, "y"))
    with pytest.raises(UserError, match=r"it differs in data mid_train\.sources\.world"):
        check_kept(run, other)


def test_rows_of_an_earlier_version_are_taken(tmp_path: Path) -> None:
    study = study_of("compare.arms=[ntp]")
    path = tmp_path / "old.jsonl"
    old = [{k: v for k, v in asdict(r).items() if k not in ("shared", "training")}
           for r in rows_of(study)]  # fmt: skip
    path.write_text("".join(json.dumps(each) + "\n" for each in old))
    assert len(read_rows([str(path)], study)) == len(old)
    assert len(collected([path, write(tmp_path / "new.jsonl", *rows_of(study))])) == len(old)


def test_rows_of_several_files(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", row("ntp", 0), row("remit", 0))
    second = write(tmp_path / "b.jsonl", row("ntp", 0), row("ntp", 1))
    found = collected([first, second])
    assert [(r.arm, r.seed) for r in found] == [("ntp", 0), ("remit", 0), ("ntp", 1)]
    assert {r.against for r in shown(found, None, "remit")} == {"remit"}
    assert shown(found, None, None) == found
    assert {r.arm for r in shown(found, ["remit"], None)} == {"remit"}
    assert [(r.arm, r.seed) for r in shown(found, None, None, ["1"])] == [("ntp", 1)]
    with pytest.raises(UserError, match=r"--seeds x: no row has that seed. Choose from 0, 1"):
        shown(found, None, None, ["0", "x"])
    with pytest.raises(UserError, match=r"no row matches both --arms and --seeds"):
        shown(found, ["remit"], None, ["1"])
    with pytest.raises(
        UserError, match=r"--against remit: this arm has no row with a seed of --seeds"
    ):
        shown(found, None, "remit", ["1"])
    with pytest.raises(UserError, match=r"--arms rho1: no row .* ntp, remit"):
        shown(found, ["ntp", "rho1"], None)
    with pytest.raises(UserError, match=r"--against ntp: add this arm to --arms"):
        shown(found, ["remit"], "ntp")
    with pytest.raises(UserError, match=r"--against kd: no row .* ntp, remit"):
        shown(found, None, "kd")
    differing = write(tmp_path / "c.jsonl", replace(row("ntp", 0), identity="other"))
    with pytest.raises(
        UserError,
        match=r"c.jsonl, line 1: this row differs from an earlier row of ntp, seed 0, mid",
    ):
        collected([first, differing])
    edited = write(tmp_path / "g.jsonl", row("ntp", 0, 0.5))
    with pytest.raises(
        UserError,
        match=r"g.jsonl, line 1: this row differs from an earlier row of ntp, seed 0, mid",
    ):
        collected([first, edited])
    strange = write(tmp_path / "d.jsonl", replace(row("ntp", 1), study={"mid_train": "x"}))
    with pytest.raises(UserError, match=r"d.jsonl, line 1: .* another study .* mid_train"):
        collected([first, strange])
    # Two arms may differ in how they were trained, and not in what they were asked.
    other = replace(row("kd", 0), study={"mid_train": "x"})
    assert len(collected([first, write(tmp_path / "e.jsonl", other)])) == 3
    asked = write(tmp_path / "f.jsonl", replace(other, study={"evaluate": "x"}))
    with pytest.raises(UserError, match=r"f.jsonl, line 1: .* of ntp, seed 0, mid.* evaluate"):
        collected([first, asked])
    with pytest.raises(UserError, match=r"rows of remit have different baselines, ntp and kd"):
        shown([row("remit", 0), replace(row("remit", 1), against="kd")], None, None)


def test_rows_of_an_earlier_comparison_stay(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write_rows(run, [row("ntp", 0), row("remit", 0)])
    write_rows(run, [row("kd", 0), replace(row("remit", 0), seconds=9.0)])
    kept = [(r.arm, r.seconds) for r in existing_rows(run)]
    assert kept == [("ntp", 2.0), ("kd", 2.0), ("remit", 9.0)]


def test_a_page_of_rows_alone(remit: Callable[..., Any], tmp_path: Path) -> None:
    tasks = (0.3, 0.5)
    found = [
        row(arm, seed, *(a + shift * (1 + seed) for a in tasks), point=point)
        for arm, shift in (("ntp", 0.0), ("remit", 0.1), ("<own>", -0.1))
        for seed in (0, 1) for point in ("1/2", "mid")
    ]  # fmt: skip
    files = [write(tmp_path / f"{s}.jsonl", *(r for r in found if r.seed == s)) for s in (0, 1)]
    for form in ("md", "svg", "html", "json"):
        remit("report", *files, "--format", form, check=True)
    text = (tmp_path / "0.md").read_text()
    assert "| remit | ntp | +15.0 (± 63.5) | 2 | 2.1 | 0.205 | 0.410 | 0: +10.0, 1: +20.0 |" in text
    assert "| line | 50 | 100 |" in text
    picture = (tmp_path / "0.svg").read_text()
    root = ElementTree.fromstring(picture)
    words = "".join(root.itertext())
    assert "Difference from ntp after mid-training" in words and "<own>" in words
    assert "http" not in picture.replace("http://www.w3.org/2000/svg", "")
    remit("report", *files, "--format", "md", "--against", "remit",
          "--output", tmp_path / "other.md", check=True)  # fmt: skip
    assert "| ntp | remit | -15.0 (± 63.5) |" in (tmp_path / "other.md").read_text()
    chosen = ("--format", "svg", "--chart")
    remit("report", *files, *chosen, "during mid", "--output", tmp_path / "one.svg",
          check=True)  # fmt: skip
    words = "".join(ElementTree.parse(tmp_path / "one.svg").getroot().itertext())
    assert "Accuracy during mid-training" in words and "Difference from ntp" not in words
    for args, words in (
        ((files[0], *chosen, "nothing"), "The charts are: Difference from ntp after mid-training;"),
        ((files[0], "--chart", "x"), "--chart works only with --format svg"),
        ((files[0], tmp_path), "one run directory, or one or more files of rows"),
        ((files[0], "--output", files[0]), "choose another"),
        ((files[0], "--against", "kd"), "no row has that arm"),
        ((files[0], "--arms", "ntp, kd"), "--arms kd: no row has that arm"),
        ((files[0], "--seeds", "0, 7"), "--seeds 7: no row has that seed"),
        ((tmp_path / "nowhere.jsonl",), "nowhere.jsonl does not exist"),
    ):
        wrong = remit("report", *args)
        assert wrong.returncode == 2 and words in " ".join(wrong.stderr.split())


def test_a_run_without_a_comparison_has_no_arms_to_choose(
    remit: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "ledger.jsonl").write_text("")
    for option, name in (("--arms", "ntp"), ("--against", "ntp"), ("--seeds", "0")):
        wrong = remit("report", tmp_path, option, name)
        assert wrong.returncode == 2
        assert f"{option} applies to comparisons, and {tmp_path} has none" in wrong.stderr


def test_rows_of_another_run_are_read_back(
    remit: Callable[..., Any], tiny_run: Any, tmp_path: Path
) -> None:
    args = ("compare", *TINY, "--base", tiny_run.root / "base", "--ref",
            tiny_run.root / "round-0" / "40-rlvr", "seeds=1", "--json")  # fmt: skip
    first = remit(*args, "--run-dir", tmp_path / "a", "arms=[ntp]", check=True).json
    kept = tmp_path / "rows.jsonl"
    kept.write_bytes((tmp_path / "a" / "compare" / "rows.jsonl").read_bytes())

    both = (*args, "--run-dir", tmp_path / "b", "arms=[ntp,remit]", f"rows=[{kept}]")
    values = remit(*both, check=True).json
    assert values["rows"][0] == first["rows"][0]
    assert values["tables"][0]["arms"] == ["ntp", "remit"]
    ran = {json.loads(line)["stage"] for line in (tmp_path / "b" / "ledger.jsonl").open()}
    assert {name.split("/")[2] for name in ran - {"compare/contamination"}} == {"remit"}

    # Nothing left to run: the rows of both runs alone make the tables.
    all_rows = tmp_path / "b" / "compare" / "rows.jsonl"
    assert len(all_rows.read_text().splitlines()) == 2
    alone = (*args, "--run-dir", tmp_path / "c", "arms=[ntp,remit]", f"rows=[{all_rows}]")
    assert remit("plan", "--compare", *alone[1:], check=True).json["stages"] == []
    read_back = remit(*alone, check=True)
    assert read_back.json["rows"] == values["rows"] and "no report" not in read_back.stderr
    page = (tmp_path / "c" / "report" / "index.html").read_text()
    assert "Objectives side by side" in page

    fresh = (*args, "--run-dir", tmp_path / "d", "arms=[ntp,remit]", f"rows=[{kept}]")
    other = remit(*fresh, "mid_train.learning_rate=1e-3")
    assert other.returncode == 2
    assert f"{kept}, line 1" in other.stderr and "differs in mid_train" in other.stderr
    kept.write_text(kept.read_text() + "{}\n")
    broken = remit(*fresh)
    assert broken.returncode == 2 and "line 2: not a row of remit compare" in broken.stderr
    assert not (tmp_path / "d").exists()
