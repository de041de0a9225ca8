"""A flywheel of one round through the real CLI and DeepSpeed: files, ledger, table, run again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROUND = ("10-mid-train", "15-eval", "20-sft", "30-dpo", "40-rlvr", "50-eval")
STAGES = [
    "base",
    "contamination",
    "base-eval",
    *(f"round-{k}/{step}" for k in (0, 1) for step in ROUND),
    "analysis",
]
GRADIENT = [name for name in STAGES if not name.endswith(("eval", "contamination", "analysis"))]
TITLES = ["base", "mid-0", "post-0", "mid-1", "post-1"]


@pytest.fixture
def copied(tiny_run: Any, tmp_path: Path) -> Path:
    """A folder with a copy of the run, to run its command in again."""
    shutil.copytree(tiny_run.root, tmp_path / "tiny")
    return tmp_path


def read_ledger(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "ledger.jsonl").open()]


def result_times(run: Path) -> dict[str, int]:
    return {name: (run / name / "result.json").stat().st_mtime_ns for name in STAGES}


def entries(tiny_run: Any, event: str) -> dict[str, dict[str, Any]]:
    return {e["stage"]: e for e in tiny_run.ledger if e["event"] == event}


@pytest.mark.parametrize("name", STAGES)
def test_stage_files(tiny_run: Any, name: str) -> None:
    folder = tiny_run.root / name
    spec = yaml.safe_load((folder / "config.yaml").read_text())
    assert (spec["stage"], spec["run_dir"]) == (name, str(tiny_run.root))
    result = json.loads((folder / "result.json").read_text())
    assert result["identity"] == spec["identity"] and result["seconds"] > 0
    assert entries(tiny_run, "finish")[name]["wall_seconds"] >= result["seconds"]
    assert (folder / "log.txt").is_file()
    assert (folder / "model").is_dir() == (name in GRADIENT)
    leftovers = [p.name for p in folder.iterdir() if p.name.endswith(".tmp") or p.name[0] == "."]
    assert leftovers == []


@pytest.mark.parametrize("name", GRADIENT)
def test_metrics_and_model_files(tiny_run: Any, name: str) -> None:
    folder = tiny_run.root / name
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps) and steps[-1] == lines[-1]["max_steps"] > 0
    assert sum("loss" in line for line in lines) >= 2
    files = {path.name for path in (folder / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
            "chat_template.jinja"} <= files  # fmt: skip
    assert not [f for f in files if f.endswith((".bin", ".pt", ".pth"))], "no pickle is exported"


def test_models_reload_with_their_chat_template(tiny_run: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    vocabularies = []
    for name in GRADIENT:
        folder = tiny_run.root / name / "model"
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": "2 + 2"}], add_generation_prompt=True, return_dict=False
        )
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits
        assert logits.shape[2] >= len(tokenizer) and bool(torch.isfinite(logits).all())
        vocabularies.append(tokenizer.get_vocab())
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)


def test_ledger_starts_and_finishes_in_order(tiny_run: Any) -> None:
    found = [(e["event"], e["stage"]) for e in tiny_run.ledger]
    assert found == [(event, name) for name in STAGES for event in ("start", "finish")]
    times = [entry["time"] for entry in tiny_run.ledger]
    assert times == sorted(times)
    starts, finishes = entries(tiny_run, "start"), entries(tiny_run, "finish")
    assert all(starts[name]["identity"] == finishes[name]["identity"] for name in STAGES)
    assert {entry["command"] for entry in starts.values()} == {" ".join(("remit", *tiny_run.args))}


def test_ledger_inputs_chain(tiny_run: Any) -> None:
    starts, finishes = entries(tiny_run, "start"), entries(tiny_run, "finish")
    maker = {
        "base-eval": {"model": "base"},
        **{f"round-{k}/{step}": {"model": f"round-{k}/{before}"} for k in (0, 1) for before, step
           in [("10-mid-train", "15-eval"), ("10-mid-train", "20-sft"), ("20-sft", "30-dpo"),
               ("30-dpo", "40-rlvr"), ("40-rlvr", "50-eval")]},
        "base": {},
        "contamination": {},
        "round-0/10-mid-train": {"base": "base"},
        "round-1/10-mid-train": {"base": "base", "ref": "round-0/40-rlvr"},
        "analysis": {name: name for name in GRADIENT},
    }  # fmt: skip
    for name in STAGES:
        assert starts[name]["inputs"] == {
            role: {
                "path": str(tiny_run.root / made / "model"),
                "sha256": finishes[made]["model_sha256"],
            }
            for role, made in maker[name].items()
        }, name
    digests = [finishes[name]["model_sha256"] for name in GRADIENT]
    assert all(len(digest) == 64 for digest in digests)
    assert finishes["round-0/10-mid-train"]["model_sha256"] != finishes["base"]["model_sha256"]


@pytest.mark.parametrize("name", GRADIENT)
def test_every_gradient_stage_trained_in_deepspeed(tiny_run: Any, name: str) -> None:
    finish = entries(tiny_run, "finish")[name]
    assert finish["engine"] == "DeepSpeedEngine"
    assert finish["zero_stage"] > 0 and finish["world_size"] == 1
    assert finish["environment"]["versions"]["deepspeed"]
    assert finish["reload_logits_difference"] < 1e-3


def test_mid_training_objectives(tiny_run: Any) -> None:
    finishes = entries(tiny_run, "finish")
    plain, weighted = (finishes[f"round-{k}/10-mid-train"] for k in (0, 1))
    assert (plain["objective"], weighted["objective"]) == ("ntp", "remit")
    assert weighted["weight_std"] > 0 and "weight_std" not in plain
    # 20 000 tokens, rounded up to whole steps of 8 x 128.
    assert plain["tokens"] == weighted["tokens"] == 20_480


def test_json_is_one_object_and_the_rest_is_plain(tiny_run: Any) -> None:
    out, err = tiny_run.finished.stdout, tiny_run.finished.stderr
    assert out.count("\n") == 1 and out.endswith("}\n")
    values = tiny_run.finished.json
    assert (values["status"], values["command"]) == ("done", "flywheel")
    assert values["run_dir"] == str(tiny_run.root)
    assert list(values["scores"]) == TITLES and list(values["stages"]) == STAGES
    for column in values["scores"].values():
        assert len(column["tasks"]) == 10 and 0 <= column["average"] <= 1
        assert all(0 <= t["interval"][0] <= t["accuracy"] <= t["interval"][1] <= 1
                   for t in column["tasks"].values())  # fmt: skip
        assert column["bits_per_byte"].keys() == {"pretrain", "mid_train"}
    assert "\x1b" not in err and "\r" not in err
    for name in STAGES:
        assert f"{name} starts" in err and f"{name} done in" in err
    header = next(line for line in err.splitlines() if "mid-0" in line and "post-1" in line)
    assert [header.index(title) for title in TITLES] == sorted(map(header.index, TITLES))


def test_run_again_starts_nothing(tiny_run: Any, copied: Path, remit: Callable[..., Any]) -> None:
    before, times = read_ledger(copied / "tiny"), result_times(copied / "tiny")
    again = remit(*tiny_run.args, cwd=copied, check=True)
    after = read_ledger(copied / "tiny")
    assert after[: len(before)] == before
    assert [(e["event"], e["stage"]) for e in after[len(before) :]] == [
        ("skip", name) for name in STAGES
    ]
    assert result_times(copied / "tiny") == times
    assert again.json["scores"] == tiny_run.finished.json["scores"]
    assert again.stderr.count("is complete, skipped") == len(STAGES)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("mid_train.remit.eps=0.1", "mid_train.remit.eps: 0.2 -> 0.1"),
        ("seed=1", "seed: 0 -> 1"),
        ("rlvr.temperature=0.5", "rlvr.temperature: 1.0 -> 0.5"),
    ],
)
def test_another_config_is_refused(
    tiny_run: Any, copied: Path, remit: Callable[..., Any], override: str, named: str
) -> None:
    before = read_ledger(copied / "tiny")
    refused = remit(*tiny_run.args, override, cwd=copied)
    assert refused.returncode == 2 and refused.json["status"] == "wrong input"
    assert named in refused.stderr and "--run-dir" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert read_ledger(copied / "tiny") == before


def test_what_cannot_change_a_result_is_not_refused(
    tiny_run: Any, copied: Path, remit: Callable[..., Any]
) -> None:
    overrides = ("mid_train.save_total_limit=3", "sft.micro_batch_size=4", "rlvr.zero_stage=1")
    remit(*tiny_run.args, *overrides, cwd=copied, check=True)
    assert {e["event"] for e in read_ledger(copied / "tiny")[2 * len(STAGES) :]} == {"skip"}


def test_plan_of_more_rounds_knows_what_is_done(
    tiny_run: Any, copied: Path, remit: Callable[..., Any]
) -> None:
    before = read_ledger(copied / "tiny")
    done = remit("plan", "--config", "world-tiny", "--iterations", "2", "--json",
                 "--run-dir", "tiny", cwd=copied, check=True)  # fmt: skip
    states = [(s["stage"], s["state"]) for s in done.json["stages"]]
    # The analysis of fewer models is repeated once there are more.
    assert states == [
        *((name, "done") for name in STAGES[:-1]),
        *((f"round-2/{step}", "to do") for step in ROUND),
        ("analysis", "to do"),
    ]
    assert done.json["rate"]["source"] == "measured in base"
    left = sum(s["seconds"] for s in done.json["stages"] if s["state"] == "to do")
    assert done.json["seconds_left"] == pytest.approx(left)
    base = json.loads((copied / "tiny" / "base" / "result.json").read_text())
    assert done.json["parameters"] == base["parameters"]
    assert read_ledger(copied / "tiny") == before


def test_plan_does_not_call_done_what_would_be_refused(
    copied: Path, remit: Callable[..., Any]
) -> None:
    done = remit("plan", "--config", "world-tiny", "--iterations", "1", "--json", "--run-dir",
                 "tiny", "seed=1", cwd=copied)  # fmt: skip
    assert done.returncode == 2 or "done" not in {s["state"] for s in done.json["stages"]}


def test_status(tiny_run: Any, remit: Callable[..., Any]) -> None:
    text = remit("status", tiny_run.root, check=True)
    assert text.stderr == "" and "\x1b" not in text.stdout
    assert "Nothing is running" in text.stdout
    assert [name for name in STAGES if name not in text.stdout] == []
    values = remit("status", tiny_run.root, "--json", check=True).json
    assert (values["status"], values["run_dir"]) == ("idle", str(tiny_run.root))
    assert list(values["stages"]) == STAGES
    assert {stage["state"] for stage in values["stages"].values()} == {"done"}


def test_status_of_a_folder_that_is_no_run(remit: Callable[..., Any], tmp_path: Path) -> None:
    refused = remit("status", tmp_path)
    assert refused.returncode == 2 and "is not a run directory" in refused.stderr
    assert list(tmp_path.iterdir()) == []
