"""The report of a run: what it says, in each format, and what it never says."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inputs import HOSTILE, sequence, with_inputs
from rich.console import Console

from pipelines.comparison.row import Row
from pipelines.comparison.rows import write_rows
from pipelines.errors import UserError
from pipelines.plan.plan_file import write_plan
from pipelines.plan.stage import Stage
from pipelines.recipe import load as recipes
from pipelines.report import Wanted, charts, compose, write_report
from pipelines.report.blocks import (
    PERCENT,
    DotPlot,
    LineChart,
    Missing,
    Section,
    Series,
    Table,
    Text,
    Wheel,
)
from pipelines.report.record import read_record
from pipelines.report.rendering import shade
from pipelines.report.training import MOST_POINTS, Point, thinned
from pipelines.run_dir import ledger
from pipelines.run_dir.paths import RunDir, write_json, write_yaml
from remit_cli.session import draw_report, show_status
from remit_cli.status import status_of
from remit_cli.tables import arm_table

FORMATS = ("html", "md", "json")


def evaluated(root: Path, bits: dict[str, str]) -> RunDir:
    """A run directory of evaluations alone, of one task."""
    run = RunDir(root)
    root.mkdir()
    for name, answers in bits.items():
        average = answers.count("1") / len(answers)
        task = {"accuracy": average, "interval": [0.0, 1.0], "questions": len(answers)}
        result = {
            "stage": name, "kind": "evaluate", "seconds": 1.0, "average": average,
            "average_half_interval": 0.1, "bits_per_byte": {},
            "tasks": {"sums": task | {"bits": answers}},
        }  # fmt: skip
        ledger.append(run.ledger, "start", name, kind="evaluate")
        write_json(run.stage(name).result, result)
    return run


def sections(run: RunDir) -> dict[str, Section]:
    return {section.key: section for section in compose(read_record(run)).sections}


def said(folder: Path, form: str, output: Path | None = None, **wanted: Any) -> str:
    return write_report(RunDir(folder), Wanted(form, **wanted), output).read_text("utf-8")


def test_the_verdict_pairs_the_questions(tmp_path: Path) -> None:
    run = evaluated(
        tmp_path / "run",
        {"round-0/15-eval": "0011", "round-0/50-eval": "0" * 50 + "1" * 50,
         "round-1/15-eval": "0111", "round-1/50-eval": "0" * 40 + "1" * 60},
    )  # fmt: skip
    report = compose(read_record(run))
    # Post: one in ten answers turned right. A bootstrap draws Binomial(100, 0.1) / 100, whose
    # 2.5% and 97.5% points are 0.05 and 0.16; with an unseen pair sqrt(5.5^2 + 1.96^2).
    assert (
        report.headline
        == "ReMiT round 1 is 10.0 ± 5.8 points above plain training after post-training"
    )
    # Mid: one of four, so it may be chance: sqrt(37.5^2 + 49^2), since 196 / 4 is 49.
    assert report.verdict[0] == (
        "Round 1 is not significantly different from round 0 after mid-training: 75.0% vs 50.0%, "
        "+25.0 ± 61.7 points on 4 paired questions."
    )
    plot = report.sections[0].blocks[0]
    assert isinstance(plot, DotPlot) and [dot.value for dot in plot.dots] == pytest.approx([25, 10])


def test_a_worse_round_is_called_worse(tmp_path: Path) -> None:
    bits = {"round-0/50-eval": "1" * 60 + "0" * 40, "round-2/50-eval": "1" * 40 + "0" * 60}
    headline = compose(read_record(evaluated(tmp_path / "run", bits))).headline
    assert headline.startswith("ReMiT round 2 is 20.0 ") and "points below plain" in headline


def test_every_pair_of_models_has_its_difference(tmp_path: Path) -> None:
    run = evaluated(tmp_path / "run", {"eval": "0011", "eval-b": "0111", "eval-c": "00111"})
    (table,) = (
        block for block in sections(run)["scores"].blocks
        if isinstance(block, Table) and block.title.startswith("Differences")
    )  # fmt: skip
    assert table.columns == ["", "eval", "eval-b"]
    (row,) = table.rows
    assert [cell.text for cell in row] == ["eval-b", "+25.0", "\N{EN DASH}"]
    # One of four questions turned right: a draw is Binomial(4, 1 / 4) / 4, its ends 0 and 3 / 4;
    # with an unseen pair sqrt(37.5^2 + 49^2).
    assert row[1].interval == "\N{PLUS-MINUS SIGN} 61.7"
    notes = [block.text for block in sections(run)["scores"].blocks if isinstance(block, Text)]
    assert "over different questions" in notes[0] and "eval-c: 5 questions of 1 task" in notes[0]


def test_the_page_says_why_there_is_no_accuracy_along_the_annealing(
    analyzed_run: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(analyzed_run, tmp_path / "run")
    path = copy / "analysis" / "result.json"
    values = json.loads(path.read_text())
    why = "No accuracy along the annealing: eval.tasks enables no task."
    path.write_text(
        json.dumps(values | {"accuracy": [], "accuracy_missing": why, "missing": [why]})
    )
    assert said(copy, "md").count(why) == 1
    assert sections(RunDir(copy))["training"].blocks[0] == Text(why)
    for key in ("accuracy", "accuracy_missing"):
        del values[key]
    path.write_text(json.dumps(values))
    missing = sections(RunDir(copy))["training"].blocks[0]
    assert isinstance(missing, Missing) and missing.command == f"remit analyze {copy}"


def test_axes_of_percent_do_not_leave_it() -> None:
    def axis(values: list[float], limits: tuple[float, float] | None) -> list[str]:
        points = [Point(float(i), value, 5.0) for i, value in enumerate(values)]
        chart = LineChart("", "step", "percent", [Series("", points, 0)], limits=limits)
        drawn = charts.lines(chart)
        ends = [(dot.low, dot.high) for line in drawn.lines for dot in line.dots]
        bottom, top = charts.HEIGHT - charts.BOTTOM, charts.TOP
        assert all(top <= high <= low <= bottom for low, high in ends)
        return [tick.text for tick in drawn.y_ticks]

    assert float(axis([100, 100, 100], PERCENT)[-1]) == 100
    assert float(axis([100, 100, 100], None)[-1]) > 100
    assert axis([0, 50, 99], PERCENT)[0] == "0" and float(axis([0, 50, 99], PERCENT)[-1]) <= 100


def test_other_questions_are_not_compared(tmp_path: Path) -> None:
    bits = {"round-0/50-eval": "10", "round-1/50-eval": "101"}
    report = compose(read_record(evaluated(tmp_path / "run", bits)))
    assert report.verdict == [] and report.headline.startswith("No result yet")


def test_a_run_of_single_stages(tmp_path: Path) -> None:
    run = evaluated(tmp_path / "my run", {"eval-ntp": "0011", "eval-remit": "0111"})
    ledger.append(
        run.ledger, "start", "eval-ntp", kind="evaluate", command="remit eval --config 'my r.yaml'"
    )
    report = compose(read_record(run))
    assert report.headline == "Evaluated: eval-ntp 50.0%, eval-remit 75.0%"
    for form in FORMATS:
        told = said(run.root, form)
        assert "remit analyze" not in told and "remit flywheel" not in told
        assert "RUN" not in told and "RECIPE" not in told
    command = f"remit contamination --config 'my r.yaml' --run-dir '{run.root}'"
    assert command in said(run.root, "md").replace("`", "")


def test_a_comparison_alone(tmp_path: Path) -> None:
    run = evaluated(tmp_path / "run", {"compare/seed-0/ntp/15-eval": "01"})
    averages = {
        ("ntp", 0, "1/2"): 0.1, ("ntp", 0, "mid"): 0.2, ("remit", 0, "1/2"): 0.2,
        ("remit", 0, "mid"): 0.3, ("ntp", 1, "mid"): 0.5, ("remit", 1, "mid"): 0.7,
    }  # fmt: skip
    rows = [
        Row(arm, seed, point, "ntp", "id", {}, average,
            {"sums": {"accuracy": average, "questions": 10,
                      "bits": "".join(str(int(i < 10 * average)) for i in range(10))}},
            {}, {}, 100, 40, 1, 1.0, 2.0)
        for (arm, seed, point), average in averages.items()
    ]  # fmt: skip
    write_rows(run, rows)
    report = compose(read_record(run))
    # Gains 0.1 and 0.2 of the two seeds: mean 0.15, half = 12.706 * 0.0707 / sqrt(2) = 0.635.
    assert report.headline == (
        "ReMiT vs plain mid-training after mid-training: +15.0 ± 63.5 points, 2 seeds"
    )
    blocks = {s.key: s for s in report.sections}["objectives"].blocks
    gains, differences, levels, by_task, cost, curve = blocks
    assert isinstance(gains, DotPlot) and [dot.label for dot in gains.dots] == ["remit"]
    assert isinstance(differences, Table) and differences.rows[0][2].text == "+15.0"
    assert differences.rows[0][-1].text == "0: +10.0, 1: +20.0"
    assert isinstance(levels, Table) and [row[0].text for row in levels.rows] == ["sums", "average"]
    assert [cell.text for cell in levels.rows[1][1:]] == ["35.0", "50.0"]
    assert isinstance(by_task, Table) and by_task.rows[0][2].text == "+15.0"
    assert isinstance(cost, Table) and [cell.text for cell in cost.rows[0]] == [
        "ntp", "100", "1", "1.00", "2"
    ]  # fmt: skip
    assert isinstance(curve, LineChart)
    # Seed 1 has no point before the last. NTP ends at 0.2 with seed 0, where ReMiT is half-way.
    assert [p.y for p in curve.series[1].points] == pytest.approx([20, 30])
    assert "remit at step 20" in curve.note


def test_a_comparison_that_was_stopped(tmp_path: Path) -> None:
    done = "compare/seed-0/ntp/15-eval"
    run = evaluated(tmp_path / "run", {done: "01"})
    config = recipes.load("world-tiny", [])
    stages = [Stage("evaluate", name, config) for name in (done, "compare/seed-1/ntp/15-eval")]
    write_plan(run.compared_plan, config, stages)
    told = said(run.root, "md")
    assert "1 of 2 stages of the comparison are complete. No model has been evaluated yet." in told
    bits = {"sums": {"accuracy": 0.5, "questions": 2, "bits": "01"}}
    write_rows(
        run, [Row("ntp", 0, "mid", "ntp", "id", {}, 0.5, bits, {}, {}, 100, 40, 1, 1.0, 2.0)]
    )
    told = said(run.root, "md")
    assert "1 of 2 stages of the comparison are complete. Run the same command again" in told
    assert "50.0" in told
    # What a flywheel alone can have is not missed.
    assert "remit flywheel" not in told and "remit analyze" not in told


def test_a_whole_flywheel(analyzed_run: Path) -> None:
    found = sections(RunDir(analyzed_run))
    (wheel,) = [b for b in found["verdict"].blocks if isinstance(b, Wheel)]
    assert [len(r.stages) for r in wheel.rounds] == [4, 4]
    assert wheel.rounds[1].reference == "round-0/40-rlvr"
    table, differences, drawn = (b for b in found["scores"].blocks if isinstance(b, Table))
    models = ["base", "mid-0", "post-0", "mid-1", "post-1"]
    assert table.columns == ["task", *models] and drawn.columns == ["", *models]
    assert differences.columns == ["", *models[:-1]] and len(differences.rows) == 4
    assert [row[0].text for row in drawn.rows][-2:] == ["pass@8, percent", "entropy, nats"]
    along = found["training"].blocks[0]
    assert isinstance(along, LineChart) and along.title == "Accuracy during mid-training"
    assert [(series.name, series.colour) for series in along.series] == [
        ("round 0", 0), ("round 1", 1)
    ]  # fmt: skip
    assert [point.x for point in along.series[1].points] == [0, 25, 50, 75, 100]
    assert [point.y for point in along.series[1].points] == pytest.approx([6, 12, 22, 32, 42])
    assert {point.half for point in along.series[1].points} == {4.0}
    assert "0 percent is the base" in along.note and "500 in all" in along.note
    gaps = next(b for b in found["dynamics"].blocks if isinstance(b, LineChart))
    assert [gaps.x_labels[i] for i in gaps.marks] == ["base", "mid-trained"]
    drawn_gaps = charts.lines(gaps)
    assert {"base", "mid-trained"} <= {tick.text for tick in drawn_gaps.x_ticks}
    assert len(drawn_gaps.marks) == 2
    clipped = next(b for b in found["dynamics"].blocks if isinstance(b, Table))
    assert clipped.columns == ["group", "targets", "low", "high", "low at end", "high at end"]
    assert [cell.text for cell in clipped.rows[0]] == ["problem", "4,000", *["10.0", "12.0"] * 2]
    weights = next(b for b in found["dynamics"].blocks if isinstance(b, DotPlot))
    assert weights.dots[0].after == pytest.approx(float(weights.dots[0].text.split()[-1]), abs=5e-4)
    titles = [getattr(block, "title", "") for block in found["training"].blocks]
    assert {"Mid-training: loss", "Token weights: spread", "RLVR: reward"} <= set(titles)
    missing = {key for key, s in found.items() for b in s.blocks if isinstance(b, Missing)}
    assert missing == {"objectives"}
    cost = found["cost"].blocks[0]
    assert isinstance(cost, Table) and cost.rows[-1][0].text == "all stages"
    # 6 FLOPs for each of 22,304 parameters and 20,000 tokens.
    assert cost.rows[0][3].value == 6 * 22_304 * 20_480


@pytest.mark.parametrize("form", FORMATS)
def test_what_must_not_be_shown(analyzed_run: Path, tmp_path: Path, form: str) -> None:
    text = said(analyzed_run, form, output=tmp_path / "all")
    assert "secret" not in text and "closed-exam" in text
    shown = "most of" if form == "html" else "what is 1?"
    assert shown in re.sub(r"<[^>]*>", "", text)
    without = said(analyzed_run, form, with_text=False, output=tmp_path / "none")
    assert "what is" not in without and 'class="t ' not in without and "modular-1" in without


def test_json_and_markdown_say_the_same(analyzed_run: Path, tmp_path: Path) -> None:
    values = json.loads(said(analyzed_run, "json", output=tmp_path / "r.json"))
    page = said(analyzed_run, "md", output=tmp_path / "r.md")
    assert page.startswith(f"# {values['headline']}\n")
    for section in values["sections"]:
        assert f"\n## {section['title']}\n" in page
    kinds = {block["kind"] for section in values["sections"] for block in section["blocks"]}
    assert {"Wheel", "Table", "LineChart", "DotPlot", "HeatMap", "Fold", "Missing"} <= kinds


@pytest.mark.parametrize("form", ["html", "md"])
def test_strings_of_data_are_escaped(hostile_run: Path, tmp_path: Path, form: str) -> None:
    text = said(hostile_run, form, output=tmp_path / "page")
    assert HOSTILE not in text and "<img" not in text and "&lt;img" in text
    assert text.count("<script") == (1 if form == "html" else 0)


def test_the_page_asks_for_nothing_and_is_small(analyzed_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(analyzed_run, tmp_path / "run")
    path = copy / "analysis" / "result.json"
    values = json.loads(path.read_text())
    keys = ("tokens", "weights", "d", "logprobs", "ref_logprobs")
    one = sequence(0)
    many = one | {key: one[key] * 10 for key in keys}
    values["rounds"][0]["sequences"] = [many] * 30
    path.write_text(json.dumps(values))
    page = said(copy, "html")
    assert page.count('class="t ') == 20 * 512
    assert len(page.encode()) < 5_000_000
    assert re.findall(r'(?:src|href)="(?!#)|url\((?!#)|@import|<link|https?://', page) == []


def test_a_run_that_began(tmp_path: Path, tiny_run: Any) -> None:
    copy = with_inputs(tiny_run.root, tmp_path / "run")
    for name in ("analysis", "contamination", "round-1", "round-0/50-eval", "round-0/40-rlvr"):
        shutil.rmtree(copy / name)
    lines = (copy / "ledger.jsonl").read_text().splitlines(keepends=True)
    kept = lines[: next(i for i, line in enumerate(lines) if "round-0/40-rlvr" in line)]
    (copy / "ledger.jsonl").write_text("".join(kept))
    ledger.append(copy / "ledger.jsonl", "start", "round-0/40-rlvr", kind="rlvr")
    ledger.append(copy / "ledger.jsonl", "fail", "round-0/40-rlvr", kind="rlvr")
    found = sections(RunDir(copy))
    (wheel,) = [b for b in found["verdict"].blocks if isinstance(b, Wheel)]
    assert [stage.state for stage in wheel.rounds[0].stages] == ["done", "done", "done", "failed"]
    assert {stage.state for stage in wheel.rounds[1].stages} == {"to do"}
    missing = {key: b for key, s in found.items() for b in s.blocks if isinstance(b, Missing)}
    assert missing.keys() == {
        "verdict", "objectives", "training", "tokens", "dynamics", "contamination",
    }  # fmt: skip
    assert missing["tokens"].command == f"remit analyze {copy}"
    for form in FORMATS:
        assert f"remit analyze {copy}" in said(copy, form)
    assert missing["contamination"].command == (
        f"remit contamination --config world-tiny --run-dir {copy}"
    )
    assert missing["objectives"].command == "", "the model that it names is not finished"


def test_a_run_where_nothing_is_done(tmp_path: Path) -> None:
    ledger.append(tmp_path / "ledger.jsonl", "start", "base", kind="pretrain")
    page = said(tmp_path, "html")
    assert "No result yet" in page and "crashed" in page
    with pytest.raises(UserError, match="nowhere does not exist"):
        write_report(RunDir(tmp_path / "nowhere"))


def test_the_command(remit: Callable[..., Any], analyzed_run: Path, tmp_path: Path) -> None:
    done = remit(
        "report", analyzed_run, "--format", "md", "--output", tmp_path / "r.md", check=True
    )
    assert done.stdout == f"report: {tmp_path / 'r.md'}\n"
    assert (tmp_path / "r.md").read_text().startswith("# ")
    for args, words in (
        ((tmp_path / "nowhere",), "nowhere does not exist"),
        ((analyzed_run, "--format", "pdf"), "choose from html, svg, md, json"),
        ((analyzed_run, "--output", tmp_path), "cannot be written"),
    ):
        wrong = remit("report", *args)
        assert wrong.returncode == 2 and words in wrong.stderr.replace("\n", " ")
    assert [path.name for path in tmp_path.iterdir()] == ["r.md"]
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    remit("report", analyzed_run, "--open", env={"BROWSER": str(browser)}, check=True)
    assert (tmp_path / "opened").read_text().strip().endswith("/report/index.html")


def test_damaged_files_are_named(remit: Callable[..., Any], tiny_run: Any, tmp_path: Path) -> None:
    for number, (name, commands) in enumerate({
        "round-0/15-eval/result.json": ("report", "status"),
        "round-0/15-eval/config.yaml": ("report",),
        "flywheel.yaml": ("report", "analyze"),
    }.items()):  # fmt: skip
        run = shutil.copytree(tiny_run.root, tmp_path / str(number))
        text = (run / name).read_text()
        (run / name).write_text(text[: len(text) // 2])
        for command in commands:
            wrong = remit(command, run)
            assert wrong.returncode == 2 and f"{run / name} is damaged" in wrong.stderr
            assert "Traceback" not in wrong.stderr
    (run / "flywheel.yaml").write_text(text)
    (run / "compare").mkdir()
    (run / "compare" / "rows.jsonl").write_text('{"arm": "ntp"}\n')
    wrong = remit("report", run)
    assert wrong.returncode == 2 and "rows.jsonl, line 1: not a row" in wrong.stderr


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("5", None), ('{"loss": 3}', None), ('{"step": "a", "loss": 1}', None), ("[]", None),
        ('{"step": true, "loss": 1}', None), ('{"step": 3, "loss": "x", "num_tokens": "y"}', 3),
        ('{"step": 3, "loss": NaN, "weight_at_low": "x"}', 3),
    ],
)  # fmt: skip
def test_log_lines_that_are_none_are_left_out(tmp_path: Path, line: str, kept: int | None) -> None:
    run = evaluated(tmp_path / "run", {"eval": "01"})
    ledger.append(run.ledger, "start", "base", kind="pretrain")
    log = run.stage("base").metrics
    log.parent.mkdir()
    log.write_text('{"step": 1, "loss": 3.5}\n' + line + '\n{"step": 9, "loss": 2.5}\n')
    found = read_record(run).stages["base"].metrics
    assert [entry["step"] for entry in found] == ([1, 9] if kept is None else [1, kept, 9])
    assert "| line | 1 | 9 |" in said(run.root, "md")
    (chart,) = (b for b in sections(run)["training"].blocks if isinstance(b, LineChart))
    assert [point.y for point in chart.series[0].points] == [3.5, 2.5]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tasks": {"sums": {"accuracy": 1.0, "interval": [0, 1], "questions": 3, "bits": "01"}}},
         "tasks.sums has 3 questions and 2 bits"),
        ({"tasks": {"sums": 5}}, "tasks.sums is not an object"),
        ({"tasks": None}, "its tasks is a"),
        ({"tasks": {"sums": {"accuracy": 1.0, "interval": [0, 1], "questions": 2}}},
         "tasks.sums: it has no bits"),
        ({"average": None}, "its average is a NoneType"),
        ({"bits_per_byte": {"prose": {}}}, "bits_per_byte.prose: it has no bits_per_byte"),
        ({"kind": "contamination"}, "it has no evals"),
        ({"kind": "contamination", "ngram": 13, "evals": {"sums": {}}}, "evals.sums: it has no q"),
        ({"kind": "analyze"}, "it has no rounds"), ({"kind": "dpo"}, "it has no heldout_pair"),
    ],
)  # fmt: skip
def test_results_that_lack_something_are_named(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    run = evaluated(tmp_path / "run", {"eval": "01"})
    path = run.stage("eval").result
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for read in (lambda: write_report(run), lambda: status_of(run)):
        with pytest.raises(UserError) as named:
            read()
        assert str(named.value).startswith(f"{path} is damaged: ") and words in str(named.value)


def test_a_ledger_without_a_line_is_warned_of(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = evaluated(tmp_path / "run", {"eval": "01"})
    draw_report([run.root], Wanted("md"))
    assert "warning" not in capfd.readouterr().err
    run.ledger.write_text("5\n{\n")
    for command in (
        lambda: draw_report([run.root], Wanted("md")),
        lambda: show_status(run.root, False, True),
    ):
        command()
        found = " ".join(capfd.readouterr().err.split())
        assert found.count("warning:") == 1 and "none of its lines can be read" in found


def test_status_and_report_have_the_same_time(tmp_path: Path) -> None:
    run = evaluated(tmp_path / "run", {"eval": "01"})
    ledger.append(run.ledger, "finish", "eval", kind="evaluate", wall_seconds=7.5)
    ledger.append(run.ledger, "start", "base", kind="pretrain")
    ledger.append(run.ledger, "fail", "base", exit_code=1, seconds=4.0)
    ledger.append(run.ledger, "start", "old", kind="pretrain")
    ledger.append(run.ledger, "interrupt", "old", state="interrupted")
    shown, values = status_of(run)
    seconds = {name: stage["seconds"] for name, stage in values["stages"].items()}
    assert seconds == {"eval": 7.5, "base": 4.0, "old": None}
    assert read_record(run).stages["eval"].seconds == 7.5
    text = Console(width=200)
    with text.capture() as captured:
        text.print(shown)
    row = next(line for line in captured.get().splitlines() if " old " in line)
    assert "0s" not in row


def test_status_of_a_comparison(tmp_path: Path) -> None:
    arms = ["ntp", "kd", "miniplm", "rho1", "sft", "remit"]
    steps = ["12-eval-1-of-2", "15-eval", "50-eval"]
    names = [f"compare/seed-{seed}/{arm}/{s}" for seed in (0, 10) for arm in arms for s in steps]
    run = evaluated(tmp_path / "run", dict.fromkeys(names[1:], "0111") | {"base-eval": "01"})
    run.compared_plan.parent.mkdir(exist_ok=True)
    plan = {"config": {}, "stages": [{"name": name} for name in names], "layout": 2}
    write_yaml(plan, run.compared_plan)
    shown, values = status_of(run)
    assert values["plans"] == {"compare": {"done": 35, "stages": 36}}
    text = Console(width=80)
    with text.capture() as captured:
        text.print(shown)
    lines = [" ".join(line.split()) for line in captured.get().splitlines()]
    assert "compare: 35 of 36 stages" in lines and "task base" in lines
    table = lines[lines.index("arm seed 1/2 mid post") :]
    assert table[2] == "ntp 0 - 75.0 75.0" and "remit 10 75.0 75.0 75.0" in table
    assert "\N{HORIZONTAL ELLIPSIS}" not in captured.get()


def test_of_many_points_the_last_are_shown() -> None:
    averages = {("ntp", 0, f"{n}/12"): n / 100 for n in range(1, 12)} | {("ntp", 0, "mid"): 0.5}
    headings = [str(column.header) for column in arm_table(averages).columns]
    assert headings == ["arm", "seed", *(f"{n}/12" for n in range(5, 12)), "mid"]


def test_a_finished_run_has_a_report_and_stays_finished_without(
    remit: Callable[..., Any], tiny_run: Any, tmp_path: Path
) -> None:
    assert "report:" in tiny_run.finished.stderr
    assert (tiny_run.root / "report" / "index.html").is_file()
    copy = shutil.copytree(tiny_run.root, tmp_path / "tiny")
    shutil.rmtree(copy / "report")
    (copy / "report").write_text("in the way")
    again = remit(*tiny_run.args, cwd=tmp_path)
    assert again.returncode == 0 and again.json["status"] == "done"
    assert "no report:" in again.stderr and "cannot be written" in again.stderr


def test_thin_lines_keep_their_mean() -> None:
    points = [Point(float(i), float(i % 2)) for i in range(1000)]
    thin = thinned(points)
    assert len(thin) <= MOST_POINTS and {round(p.y, 1) for p in thin} <= {0.4, 0.5, 0.6}
    assert thinned(points[:MOST_POINTS]) == points[:MOST_POINTS]


def test_ticks_names_and_shades() -> None:
    assert charts.ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert charts.numbers([-2.5, 0, 2.5]) == ["\N{MINUS SIGN}2.5", "0", "2.5"]
    assert charts.numbers([40_000, 60_000]) == ["40k", "60k"]
    # Three names at one height come to lie a line apart, in their order, inside the chart.
    assert charts.spread([200, 200, 50], 30, 210) == [197, 210, 50]
    assert [shade(w, 0.2) for w in (0.8, 0.9, 1.0, 1.2, None)] == ["l4", "l2", "", "h4", "none"]
