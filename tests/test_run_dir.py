"""The run directory: files appear whole, and one process writes."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.errors import DamagedFile, UserError
from pipelines.run_dir.paths import RunDir, RunLock, read_json, write_json

HOLD = """
import sys, time
from pathlib import Path
from pipelines.run_dir.paths import RunDir, RunLock
lock = RunLock(RunDir(Path(sys.argv[1])), "remit held --by this")
print("held", flush=True)
time.sleep(60)
"""
INHERIT = """
import subprocess, sys
from pathlib import Path
from pipelines.run_dir.paths import RunDir, RunLock
lock = RunLock(RunDir(Path(sys.argv[1])), "remit parent")
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"],
                         pass_fds=(lock.descriptor,), stdout=subprocess.DEVNULL,
                         stderr=subprocess.DEVNULL)
print(child.pid, flush=True)
import os; os._exit(0)
"""


RANK = """
import sys, time
from pathlib import Path
from pipelines.run_dir.paths import RunDir, hold_as_rank
hold_as_rank(RunDir(Path(sys.argv[1])))
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


def is_free(run: RunDir) -> bool:
    descriptor = os.open(run.lock, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def test_paths(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    stage = run.stage("round-1/10-mid-train")
    assert stage.root == tmp_path / "round-1" / "10-mid-train"
    assert (run.ledger.name, run.lock.name, run.data.name) == ("ledger.jsonl", "lock", "data")
    paths = (stage.config, stage.metrics, stage.log, stage.checkpoints, stage.model, stage.result)
    names = [path.relative_to(stage.root).as_posix() for path in paths]
    assert names == [
        "config.yaml", "metrics.jsonl", "log.txt", "checkpoints", "model", "result.json"
    ]  # fmt: skip
    assert not stage.root.exists(), "paths make nothing"


def test_complete_is_having_a_result(tmp_path: Path) -> None:
    stage = RunDir(tmp_path).stage("base")
    assert not stage.is_complete()
    result = {"kind": "sft", "seconds": 1.5}
    write_json(stage.result, result)
    assert stage.is_complete() and stage.read_result() == result


def test_write_leaves_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert read_json(path) == {"a": 2}
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]


@pytest.mark.parametrize("bad", [float("nan"), object()])
def test_a_failed_write_keeps_the_old_file(tmp_path: Path, bad: object) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises((ValueError, TypeError)):
        write_json(path, {"a": bad})
    assert read_json(path) == {"a": 1}


def test_a_write_that_cannot_be_renamed_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_json(tmp_path / "folder", {"a": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("text", ['{"kind": "dp', "[1]", '{"kind": "dpo"}', "\0", ""])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    stage = RunDir(tmp_path).stage("sft")
    stage.root.mkdir()
    for path, read in ((stage.result, stage.read_result), (stage.config, stage.read_config)):
        path.write_text(text)
        with pytest.raises(DamagedFile, match=f"{path} is damaged: .+ Remove it and repeat"):
            read()


def test_readers_never_see_a_part(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"values": [0] * 5000})
    writer = subprocess.Popen([
        sys.executable, "-c",
        "import sys\nfrom pathlib import Path\nfrom pipelines.run_dir.paths import write_json\n"
        "for i in range(50): write_json(Path(sys.argv[1]), {'values': [i] * 5000})",
        str(path),
    ])  # fmt: skip
    while writer.poll() is None:
        values = read_json(path)["values"]
        assert len(values) == 5000 and len(set(values)) == 1
    assert writer.returncode == 0
    assert read_json(path)["values"][0] == 49


def test_second_lock_names_the_holder(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.root)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        with pytest.raises(UserError) as error:
            RunLock(run, "remit second")
        said = str(error.value)
        assert str(run.root) in said and "host " in said
        assert f"pid {holder.pid}," in said and "remit held --by this" in said
        assert "--run-dir" in said
    finally:
        holder.kill()
        holder.wait()
    # The kernel frees it, whatever the holder died of.
    with RunLock(run, "remit third"):
        assert f"pid {os.getpid()}" in run.lock.read_text()
    assert run.lock.read_text() == "" and is_free(run)


def test_a_child_that_inherits_the_lock_holds_it(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    done = subprocess.run([sys.executable, "-c", INHERIT, str(tmp_path)], capture_output=True,
                          text=True, check=True)  # fmt: skip
    child = int(done.stdout)
    try:
        with pytest.raises(UserError, match="remit parent"):
            RunLock(run, "remit second")
    finally:
        os.kill(child, 9)
    deadline = time.monotonic() + 10
    while not is_free(run) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert is_free(run)


def test_children_do_not_inherit_the_lock_unasked(tmp_path: Path) -> None:
    with RunLock(RunDir(tmp_path), "remit parent") as lock:
        assert not os.get_inheritable(lock.descriptor)


def rank(folder: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RANK, str(folder), str(seconds)]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None and started.stdout.readline() == "held\n"
    return started


def test_ranks_that_outlive_their_command_keep_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path)
    lock = RunLock(run, "remit killed")
    left = rank(tmp_path, 60)
    # A kill closes the descriptor and writes nothing.
    os.close(lock.descriptor)
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.run_dir.paths._RANK_TRIES", 2)
        with pytest.raises(UserError, match=f"ranks of an earlier command .*pid {left.pid}"):
            RunLock(run, "remit second")
    assert is_free(run)
    left.kill()
    left.wait()
    # The next command waits for those that are about to end.
    ending = rank(tmp_path, 1)
    with RunLock(run, "remit third"):
        pass
    assert ending.wait(10) == 0


def test_a_rank_on_another_machine_holds_nothing(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.lock.write_text("host elsewhere, pid 1, command: remit\n")
    rank(tmp_path, 0).wait()
    assert not run.ranks_lock.exists()
