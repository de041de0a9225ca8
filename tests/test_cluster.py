"""Several machines: srun (a stand-in), DeepSpeed's runner on two nodes, what reaches the ranks."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from held_files import holders

from pipelines.data.local_cache import copied, is_whole
from pipelines.errors import WRONG_INPUT_CODE, UserError
from pipelines.machine import slurm
from pipelines.machine.process import free_port
from pipelines.plan.identity import identity_fields
from pipelines.plan.per_stage import stage_launch
from pipelines.plan.placement import (
    check_variables,
    command_line,
    num_ranks,
    rank_environments,
    through_srun,
    visible_devices,
    write_launch_spec,
)
from pipelines.plan.preflight import check_launch
from pipelines.recipe import load as recipes
from pipelines.recipe.schema import Config, LaunchConfig, StageLaunchConfig, StageSettings
from pipelines.run_dir.paths import StageDir
from pipelines.worker.rank import read_launch_spec, with_prologue

ROOT = Path(__file__).resolve().parent
TWO_CORES = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs 2 cores")
# As sbatch sets them on the first of two machines, one task each.
JOB = {
    "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "localhost,localhost",
    "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
}  # fmt: skip


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """The environment of a batch script with two machines, and an srun."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "srun"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "fake_srun.py"} "$@"\n')
    program.chmod(0o755)
    return JOB | {"PATH": f"{folder}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def mid_train(base: Path, run: Path, *args: str) -> tuple[str | Path, ...]:
    return ("mid-train", "--config", "world-tiny", "--base", base, "--run-dir", run,
            "mid_train.tokens=4096", "mid_train.logging_steps=1", *args)  # fmt: skip


def result(run: Path, stage: str = "mid-train") -> dict[str, Any]:
    loaded = json.loads((run / stage / "result.json").read_text())
    assert isinstance(loaded, dict)
    return loaded


def weights(run: Path) -> bytes:
    return (run / "mid-train" / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def one_node(remit: Any, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mid-training of two ranks on one machine."""
    run = tmp_path_factory.mktemp("one-node") / "run"
    args = mid_train(tiny_model, run, "--gpus", "2")
    remit(*args, env={"OMP_NUM_THREADS": "1"}, check=True)
    return run


@TWO_CORES
def test_two_machines_through_srun_make_what_one_makes(
    remit: Any, job: dict[str, str], tiny_model: Path, one_node: Path, tmp_path: Path
) -> None:
    cache, said = tmp_path / "scratch", tmp_path / "said.txt"
    run = tmp_path / "run"
    remit(
        *mid_train(tiny_model, run, "launch.prologue=['export SAID=\"by the prologue\"',"
                   f"'echo \"$SAID $GIVEN $RANK\" >> {said}']",
                   "launch.env.GIVEN=from launch.env", f"launch.local_cache={cache}"),
        env=job, check=True,
    )  # fmt: skip
    assert result(run)["world_size"] == 2
    assert weights(run) == weights(one_node)
    assert sorted(said.read_text().splitlines()) == [
        f"by the prologue from launch.env {rank}" for rank in range(2)
    ]
    (copied,) = cache.iterdir()
    packed = run / "data" / copied.name
    assert (copied / "tokens.bin").read_bytes() == (packed / "tokens.bin").read_bytes()


@TWO_CORES
def test_two_launcher_nodes_make_what_one_makes(
    remit: Any, cli_env: dict[str, str], tiny_model: Path, one_node: Path, tmp_path: Path
) -> None:
    """Two of DeepSpeed's launchers over loopback, as on two machines without ssh."""
    hostfile, run, port = tmp_path / "hosts.txt", tmp_path / "run", free_port()
    hostfile.write_text("localhost slots=1\n127.0.0.1 slots=1\n")

    def args(node: int) -> list[str]:
        runner = f"--no_ssh,--node_rank={node},--master_addr=127.0.0.1,--master_port={port}"
        words = mid_train(
            tiny_model, run, "--hostfile", str(hostfile), f"launch.runner_args=[{runner}]"
        )
        return [str(word) for word in words]

    env = cli_env | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    second = subprocess.Popen(
        [sys.executable, "-m", "remit_cli", *args(1)], env=env, cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        remit(*args(0), env={"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}, check=True)
        said, _ = second.communicate(timeout=60)
    finally:
        second.kill()
    assert second.returncode == 0, said
    assert weights(run) == weights(one_node)
    events = [json.loads(line)["event"] for line in (run / "ledger.jsonl").open()]
    assert events == ["start", "finish"]


def test_ranks_below_a_launcher_that_outlives_the_command_end_with_it(
    cli_env: dict[str, str], tiny_model: Path, tmp_path: Path
) -> None:
    hostfile, run = tmp_path / "hosts.txt", tmp_path / "run"
    hostfile.write_text("localhost slots=1\n")
    runner = f"--no_ssh,--node_rank=0,--master_addr=127.0.0.1,--master_port={free_port()}"
    words = mid_train(tiny_model, run, "--hostfile", hostfile, f"launch.runner_args=[{runner}]",
                      "mid_train.tokens=4_000_000")  # fmt: skip
    command = subprocess.Popen(
        [sys.executable, "-m", "remit_cli", *map(str, words)],
        env=cli_env | {"GLOO_SOCKET_IFNAME": "lo"}, cwd=tmp_path, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    metrics, deadline = run / "mid-train" / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.is_file() and '"loss"' in metrics.read_text()):
        assert command.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    # The runner, the launcher, the rank.
    assert len(holders(run)) >= 3
    command.kill()
    command.wait()
    deadline = time.monotonic() + 30
    while left := holders(run):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_a_machine_that_does_not_see_the_run_directory(tmp_path: Path) -> None:
    launch = LaunchConfig(hostfile="", prologue=["true"])
    stage = StageDir(tmp_path / "seen")
    stage.root.mkdir()
    token = write_launch_spec(launch, stage, 1, {})
    assert read_launch_spec(stage, token, 0)["prologue"] == ["true"]
    assert stage.launch_spec.stat().st_mode & 0o777 == 0o600
    for elsewhere, given in ((StageDir(tmp_path / "not"), token), (stage, "another")):
        with pytest.raises(UserError, match=r"host \S+ does not see the run directory.*share"):
            read_launch_spec(elsewhere, given, 0)


def test_a_prologue_that_fails_is_named(remit: Any, tiny_model: Path, tmp_path: Path) -> None:
    done = remit(*mid_train(tiny_model, tmp_path / "run", "launch.prologue=['module load x']"))
    assert done.returncode == 2, done.stderr
    assert "launch.prologue: 'module load x' failed on host" in done.stderr


@pytest.mark.parametrize("line", ["exit 3", "exit 0", "false", "no-such-x"])
def test_a_prologue_that_ends_the_shell_is_named(line: str) -> None:
    command = with_prologue(["echo", "the worker"], ["true", line, "true"])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == WRONG_INPUT_CODE
    assert f"error: launch.prologue: {shlex.quote(line)} failed on host" in done.stdout
    assert "the worker" not in done.stdout


def test_a_prologue_runs_in_the_shell_that_becomes_the_rank() -> None:
    command = with_prologue(["sh", "-c", 'echo "$A $1"', "x", "two words"], ["export A='a b'"])
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "a b two words\n"


def test_ranks_of_srun() -> None:
    env = {
        "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "16",
        "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu[07-08]",
    }  # fmt: skip
    assert slurm.rank_environment(env) == {
        "RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "LOCAL_SIZE": "8",
        "MASTER_ADDR": "gpu07",
    }  # fmt: skip
    for listed, first in (("n[1,3-5],m2", "n1"), ("m2,n[1-2]", "m2"), ("r[0-1]n[10-12]", "r0n10")):
        assert slurm.first_host(listed) == first
    with pytest.raises(UserError, match="SLURM_PROCID"):
        slurm.rank_environment({})


def test_srun_by_mistake(remit: Any, tmp_path: Path) -> None:
    args = ("flywheel", "--config", "world-tiny", "--run-dir", tmp_path / "run")
    first, second = (
        remit(*args, env=JOB | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": rank}) for rank in "01"
    )
    assert (first.returncode, second.returncode) == (2, 2)
    assert "srun started this command 2 times" in first.stderr and "--gpus" in first.stderr
    assert second.stderr == second.stdout == ""
    assert not (tmp_path / "run").exists()


def test_a_batch_script_is_one_command_whatever_its_tasks() -> None:
    assert not slurm.is_extra_task(JOB | {"SLURM_NTASKS": "16"})
    slurm.check_single_task(JOB | {"SLURM_NTASKS": "16"})


def test_the_job_says_how_many_machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for key, value in JOB.items():
        monkeypatch.setenv(key, value)
    assert num_ranks(LaunchConfig(gpus=4)) == 8 and through_srun(LaunchConfig())
    assert num_ranks(LaunchConfig(gpus=4, nodes=1)) == 4
    words = command_line(LaunchConfig(gpus=2, srun_args=["--mpi=none"]), StageDir(tmp_path), 1, "t")
    assert words[0] == "srun" and {"--nodes=2", "--ntasks=4", "--ntasks-per-node=2"} <= set(words)
    assert (
        words[-4:] == ["-m", "pipelines.worker.rank", str(tmp_path), "t"] and "--mpi=none" in words
    )


def test_a_kind_of_stage_has_a_launch_of_its_own() -> None:
    own = StageLaunchConfig(gpus=1, nodes=2, env={"B": "2"}, prologue=["b"])
    config = Config(
        launch=LaunchConfig(gpus=8, hostfile="h", env={"A": "1", "B": "1"}, prologue=["a"]),
        stages={"eval": StageSettings(own)},
    )
    found = stage_launch(config, "evaluate")
    assert (found.gpus, found.nodes, found.hostfile) == (1, 2, "")
    assert found.env == {"A": "1", "B": "2"} and found.prologue == ["a", "b"]
    assert stage_launch(config, "sft") == config.launch
    for kind, given, hostfile, nodes in (
        ("sft", StageLaunchConfig(hostfile="other"), "other", 0),
        ("dpo", StageLaunchConfig(hostfile="none"), "", 1),
        ("rlvr", StageLaunchConfig(gpus=4), "", 0),
    ):
        config.stages[kind] = StageSettings(given)
        found = stage_launch(config, kind)
        assert (found.hostfile, found.nodes) == (hostfile, nodes)
    del config.stages["rlvr"]
    assert stage_launch(config, "rlvr").hostfile == "h"


def test_a_launch_of_its_own_is_checked_and_is_no_part_of_the_identity(
    remit: Any, tiny_model: Path, tmp_path: Path
) -> None:
    args = mid_train(tiny_model, tmp_path / "run")
    for own, said in (
        ("stages.mid_train.launch.gpus=999", "mid-train (stages.mid_train.launch): --gpus 999"),
        ("stages.mid_train.launch.nodes=2", "launch.nodes = 2 needs a SLURM job"),
        ("stages.midtrain.launch.gpus=1", "Did you mean 'mid_train'?"),
        ("launch.env.RANK=1", "launch.env.RANK"),
    ):
        done = remit(*args, own)
        assert done.returncode == 2 and said in done.stderr
    assert not (tmp_path / "run").exists()
    fields = [identity_fields("mid_train", recipes.load("world-tiny", given), {})
              for given in ([], ["stages.mid_train.launch={gpus: 2, env: {A: b}}"])]  # fmt: skip
    assert fields[0] == fields[1]


def test_machines_that_the_job_does_not_have(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for key, value in (JOB | {"PATH": "/nowhere"}).items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UserError, match="this SLURM job has 2 nodes"):
        check_launch(LaunchConfig(nodes=3))
    with pytest.raises(UserError, match="srun, which starts their ranks, is not on the PATH"):
        check_launch(LaunchConfig())
    hostfile = tmp_path / "hosts.txt"
    hostfile.write_text("first slots=2\n")
    with pytest.raises(UserError, match="one of the two"):
        check_launch(LaunchConfig(nodes=2, hostfile=str(hostfile)))


def test_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, cache = tmp_path / "data" / "abc", tmp_path / "scratch"
    packed.mkdir(parents=True)
    (packed / "tokens.bin").write_bytes(b"tokens")
    sha256 = hashlib.sha256(b"tokens").hexdigest()
    facts = {"files": {"tokens.bin": {"bytes": 6, "sha256": sha256}}}
    (packed / "complete.json").write_text(json.dumps(facts))
    monkeypatch.setenv("SCRATCH_HERE", str(cache))
    copy = copied(packed, "$SCRATCH_HERE")
    assert copy == cache / "abc" and is_whole(packed, copy)
    (copy / "tokens.bin").write_bytes(b"tokEns")
    assert not is_whole(packed, copy)
    assert (copied(packed, str(cache)) / "tokens.bin").read_bytes() == b"tokens"
    assert [path.name for path in cache.iterdir()] == ["abc"]
    with pytest.raises(UserError, match="not an absolute path"):
        copied(packed, "$NOT_SET_ANYWHERE/x")
    (packed / "tokens.bin").write_bytes(b"tokEns")
    (copy / "tokens.bin").unlink()
    with pytest.raises(UserError, match="does not match the checksums of the original"):
        copied(packed, str(cache))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be copied"):
        copied(packed, str(tmp_path / "file"))


def test_the_rendezvous_of_launch_env_is_taken() -> None:
    launch = LaunchConfig(gpus=2, env={"MASTER_ADDR": "127.0.0.2", "MASTER_PORT": "4321"})
    words = command_line(launch, StageDir(Path("s")), 4321)
    assert {"--master_addr=127.0.0.2", "--master_port=4321"} <= set(words)
    assert {r["MASTER_ADDR"] for r in rank_environments(launch, 4321)} == {"127.0.0.2"}
    for env, wrong in (({"RANK": "0"}, "RANK"), ({"MASTER_PORT": "x"}, "MASTER_PORT")):
        with pytest.raises(UserError, match=wrong):
            check_variables(LaunchConfig(env=env))


def test_ranks_take_the_gpus_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,GPU-x")
    assert visible_devices(LaunchConfig(gpus=2)) == [4, 5]
    assert visible_devices(LaunchConfig(gpus=3)) == [4, 5, "GPU-x"]
    assert visible_devices(LaunchConfig(gpus=1, env={"CUDA_VISIBLE_DEVICES": "7"})) == [7]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_devices(LaunchConfig(gpus=2)) == [0, 1]
