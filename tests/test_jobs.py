"""Jobs of a cluster: batch scripts, parts of a flywheel, a machine without network, the doctor."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import UserError
from pipelines.launch.batch_script import Job, script, write_scripts
from pipelines.plan.selection import check_inputs, select
from pipelines.recipe.schema import SlurmConfig
from pipelines.run_dir.paths import RunDir

TINY = ("--config", "world-tiny", "--iterations", "1")
OWN = ("stages.mid_train.launch={gpus: 4, nodes: 2, time: '01:00:00'}", "launch.gpus=2")


def directives(path: Path) -> list[str]:
    lines = path.read_text().splitlines()
    return [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]


def check_syntax(paths: list[Path]) -> None:
    assert paths
    for path in paths:
        subprocess.run(["bash", "-n", str(path)], check=True)


def test_a_script_for_each_stage(remit: Any, tmp_path: Path) -> None:
    done = remit("launch", "--slurm", "--per-stage", "--json", "flywheel", *TINY, "--run-dir",
                 tmp_path / "my run", *OWN, "launch.slurm.lines=[--constraint=ib]",
                 "launch.slurm.partition=big", check=True, cwd=tmp_path)  # fmt: skip
    paths = [Path(path) for path in done.json["scripts"]]
    check_syntax(paths)
    assert {path.parent for path in paths} == {tmp_path / "my run" / "slurm"}
    assert not (tmp_path / "my run" / "ledger.jsonl").exists(), "nothing was started"
    *jobs, submit = paths
    plan = remit("plan", *TINY, "--json", check=True).json["stages"]
    assert len(jobs) == len(plan)
    for path, stage in zip(jobs, plan, strict=True):
        assert f"--only {stage['stage']}" in path.read_text()
        wide = stage["kind"] == "mid_train"
        assert f"--nodes={2 if wide else 1}" in directives(path)
        ranks = 4 if wide else 1 if stage["kind"] == "analyze" else 2
        assert f"--gpus-per-node={ranks}" in directives(path)
        assert f"--time={'01:00:00' if wide else '24:00:00'}" in directives(path)
        assert {"--requeue", "--constraint=ib", "--partition=big", "--ntasks-per-node=1",
                "--signal=B:USR1@300"} <= set(directives(path))  # fmt: skip
    submitted = tmp_path / "submitted.txt"
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/bin/sh\necho "$@" >> {submitted}\nwc -l < {submitted}\n')
    sbatch.chmod(0o755)
    env = os.environ | {"PATH": f"{sbatch.parent}:{os.environ['PATH']}"}
    subprocess.run(["bash", str(submit)], env=env, check=True, capture_output=True)
    lines = submitted.read_text().splitlines()
    assert [line.endswith(path.name) for line, path in zip(lines, jobs, strict=True)]
    assert ["afterok" in line for line in lines] == [False] + [True] * (len(jobs) - 1)
    assert "--dependency=afterok:1 " in lines[1] and "--dependency=afterok:2 " in lines[2]


def test_one_script_for_a_command(remit: Any, tmp_path: Path) -> None:
    args = ("launch", "--slurm", "--output", tmp_path / "out", "mid-train", "--base", "a b",
            "--config", "world-tiny", *OWN, "launch.slurm.gpu_type=h100")  # fmt: skip
    remit(*args, cwd=tmp_path, check=True)
    (path,) = (tmp_path / "out").iterdir()
    check_syntax([path])
    # As large as the largest of its stages.
    assert {"--nodes=2", "--gpus-per-node=h100:4"} <= set(directives(path))
    assert "remit_cli mid-train --base 'a b' --config world-tiny" in path.read_text()
    remit(*args, cwd=tmp_path, check=True)
    path.write_text("edited")
    refused = remit(*args, cwd=tmp_path)
    assert refused.returncode == 2 and "may have been edited" in refused.stderr
    assert path.read_text() == "edited"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("mid-train", "--config", "world-tiny"), "--base"),
        (("--per-stage", "mid-train", "--base", "b"), "--per-stage works only with flywheel"),
        (("nothing",), "'nothing' cannot run as a job"),
        (("flywheel", "--hostfile", "h"), "leave the hostfile out"),
        (("flywheel", "--config", "wrold"), "Did you mean 'world'"),
    ],
)
def test_what_is_no_job(remit: Any, tmp_path: Path, args: tuple[str, ...], said: str) -> None:
    done = remit("launch", "--slurm", *args, cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_odd_names_in_directives() -> None:
    """A space would end the name, `%` in a folder would be a pattern of SLURM's."""
    job = Job("remit-it's 100% mine #2/base", ["true"], 1, 1, SlurmConfig())
    assert job.file_name == "remit-it-s-100--mine--2-base.sbatch"
    lines = script(job, Path("/runs/50%j of it"), Path("/w")).splitlines()
    assert "#SBATCH --job-name=remit-it-s-100--mine--2-base" in lines
    assert "#SBATCH --output='/runs/50%%j of it/%x-%j.out'" in lines
    assert "# Read it, edit it, then: sbatch '/runs/50%j of it/" + job.file_name + "'" in lines


def test_a_line_break_in_a_directive() -> None:
    job = Job("x", ["true"], 1, 1, SlurmConfig(partition="a\nrm"))
    with pytest.raises(UserError, match="line break"):
        script(job, Path("f"), Path("w"))


@pytest.mark.parametrize(
    ("signum", "ends", "requeued"),
    [(signal.SIGUSR1, 143, True), (signal.SIGTERM, 143, False), (None, 0, False)],
)
def test_the_script_hands_signals_on_and_queues_again(
    tmp_path: Path, signum: int | None, ends: int, requeued: bool
) -> None:
    command = (
        "import pathlib, signal, sys, time\n"
        "for s in (signal.SIGUSR1, signal.SIGTERM):\n"
        "    signal.signal(s, lambda *_: (time.sleep(0.3), sys.exit(143)))\n"
        "pathlib.Path('ready').touch()\n"
        f"time.sleep({0.1 if signum is None else 60})\n"
    )
    job = Job("x", [sys.executable, "-c", command], 1, 1, SlurmConfig(setup=["export A=1"]))
    (path,) = write_scripts([job], tmp_path / "scripts", tmp_path, chain=False)
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/requeued\n')
    scontrol.chmod(0o755)
    env = os.environ | {"PATH": f"{scontrol.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    process = subprocess.Popen(["bash", str(path)], env=env)
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        if signum is not None:
            process.send_signal(signum)
        assert process.wait(timeout=30) == ends
    finally:
        process.kill()
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 7\n"


def test_a_flywheel_in_parts_is_the_flywheel(remit: Any, tiny_run: Any, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run.root, tmp_path / "tiny"))
    plan = (run / "flywheel.yaml").read_text()
    for stage in ("round-1", "analysis", "report", "base-eval"):
        shutil.rmtree(run / stage)
    args = (*tiny_run.args, "--until")
    missing = remit(*tiny_run.args, "--only", "round-1/15-eval", cwd=tmp_path)
    assert missing.returncode == 2
    assert "it needs round-1/10-mid-train, which has not finished" in missing.stderr
    wrong = remit(*args, "round-1/10-midtrain", cwd=tmp_path)
    assert wrong.returncode == 2 and "Did you mean 'round-1/10-mid-train'?" in wrong.stderr
    assert "round-0/40-rlvr" in wrong.stderr, "the right ones are listed"

    remit(*tiny_run.args, "--only", "base-eval", cwd=tmp_path, check=True)
    # One of its own size, with a variable that the others do not have.
    own = "stages.sft.launch={env: {FOO: bar}, gpus: 1}"
    done = remit(*args, "round-1/20-sft", own, cwd=tmp_path, check=True)
    assert list(done.json["stages"])[-1] == "round-1/20-sft"
    assert not (run / "round-1" / "30-dpo").exists() and not (run / "report").exists()
    assert "stages:\n" in plan
    names = [line for line in (run / "flywheel.yaml").read_text().splitlines() if "- name:" in line]
    assert names == [line for line in plan.splitlines() if "- name:" in line], "the whole plan"
    for stage in ("round-1/10-mid-train", "round-1/20-sft"):
        parts, whole = (
            (root / stage / "model" / "model.safetensors").read_bytes()
            for root in (run, tiny_run.root)
        )
        assert parts == whole
    log = [json.loads(line) for line in (run / "ledger.jsonl").open()]
    assert log[-1]["event"] == "finish" and log[-1]["stage"] == "round-1/20-sft"


def test_selection(tmp_path: Path) -> None:
    from test_plan import wheel

    stages = list(wheel(iterations=1).values())
    assert [s.name for s in select(stages, None, "round-1")] == [
        s.name for s in stages if s.name.startswith("round-1/")
    ]
    assert select(stages, "round-0", None)[-1].name == "round-0/50-eval"
    assert select(stages, "analysis", None) == select(stages, None, None) == stages
    with pytest.raises(UserError, match="one of the two"):
        select(stages, "base", "base")
    with pytest.raises(UserError, match="--only round-0/10-mid-train first"):
        check_inputs([s for s in stages if s.name == "round-0/15-eval"], RunDir(tmp_path))


def cut_off() -> list[str]:
    """A command prefix that leaves only the loopback interface, or a skip."""
    prefix = ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if not (shutil.which("unshare") and shutil.which("ip")):
        pytest.skip("needs unshare and ip")
    tried = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no network namespace here: {tried.stderr.strip()}")
    return prefix


def test_without_a_route_out(cli_env: dict[str, str], tiny_model: Path, tmp_path: Path) -> None:
    prefix = cut_off()
    reach = "import socket; socket.create_connection(('192.0.2.1', 80), 2)"
    refused = subprocess.run([*prefix, sys.executable, "-c", reach], capture_output=True)
    assert b"Network is unreachable" in refused.stderr
    small = ["--config", "world-tiny", "--run-dir", "run", "sequence_length=64"]
    chain = [
        ["flywheel", *small, "--base", str(tiny_model), "--until", "round-0/50-eval",
         "mid_train.tokens=1024", "sft.max_steps=1", "dpo.max_steps=1", "dpo.heldout_pairs=1",
         "rlvr.max_steps=1", "rlvr.global_batch_size=4", "eval.tasks.world.limit=10",
         "eval.bits_per_byte_tokens=200"],
        ["plan", "--config", "world-tiny", "--run-dir", "planned", "--base", str(tiny_model)],
        ["status", "run", "--once"],
        ["report", "run"], ["doctor"],
    ]  # fmt: skip
    for args in chain:
        done = subprocess.run(
            [*prefix, sys.executable, "-m", "remit_cli", *args], cwd=tmp_path, env=cli_env,
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{args}: {done.stdout}\n{done.stderr}"
    assert (tmp_path / "run" / "round-0" / "50-eval" / "result.json").is_file()


def test_doctor(remit: Any, tmp_path: Path) -> None:
    done = remit("doctor", "--json", env={"REMIT_DATA": str(tmp_path)}, cwd=tmp_path, check=True)
    found = {check["name"]: check for check in done.json["checks"]}
    assert done.json["status"] == "ok"
    assert {"Python", "torch", "GPUs", "DeepSpeed", "C++ compiler", "disk", "ports", "hub",
            "REMIT_DATA", "sandbox", "lm_eval", "vllm", "SLURM"} <= set(found)  # fmt: skip
    for check in found.values():
        assert check["state"] == "ok" or check["advice"], check
    assert found["hub"]["found"] == "not checked: HF_HUB_OFFLINE is set"
    assert list(tmp_path.iterdir()) == []


def test_doctor_says_what_is_missing(remit: Any, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no torch today')\n")
    env = {"PYTHONPATH": str(tmp_path), "CXX": "/nowhere/c++", "HF_HUB_OFFLINE": "0",
           "HF_ENDPOINT": "http://127.0.0.1:9", "PATH": "/nowhere"}  # fmt: skip
    done = remit("doctor", "--json", env=env)
    found = {check["name"]: check for check in done.json["checks"]}
    assert done.returncode == 1 and done.json["status"] == "missing"
    for name, words in (("torch", "no torch today"), ("C++ compiler", "none")):
        assert found[name]["state"] == "missing" and words in found[name]["found"]
    assert found["hub"]["state"] == "warning" and "HF_HUB_OFFLINE=1" in found["hub"]["advice"]
