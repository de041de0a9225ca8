"""The run directory: the paths of all files, atomic writes, and the lock of the one writer.

Stages exchange everything through it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.errors import DamagedFile, UserError
from pipelines.recipe.nesting import values_of
from pipelines.run_dir.fail_points import fail_point
from pipelines.run_dir.result_schema import problem_in

SNAPSHOT_FACTS = "snapshot.json"
# Suffix of a file that is being written, or was when its process was killed.
_PART = ".part"
# Attempts, 0.1 s apart, to wait for ranks that are about to end.
_RANK_TRIES = 50
_THIS_HOST = f"host {socket.gethostname()}, "


class _Below:
    """A path below the root of a run or a stage, such as `run.ledger`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folder: RunDir | StageDir, kind: type) -> Path:
        return folder.root / self.name


@dataclass(frozen=True)
class RunDir:
    """Paths of a run."""

    root: Path
    ledger = _Below("ledger.jsonl")
    lock = _Below("lock")
    # Held by the ranks on the node of the command, which they may outlive.
    ranks_lock = _Below("ranks.lock")
    data = _Below("data")
    scores = _Below("scores")
    flywheel_plan = _Below("flywheel.yaml")
    compared_plan = _Below("compare/plan.yaml")

    @staticmethod
    def read_plan(path: Path) -> dict[str, Any]:
        """The content of one of the two plan files: `config` and `stages`."""
        return read_yaml(path, needs=("config", "stages", "layout"))

    def stage(self, name: str) -> StageDir:
        """The folder of a stage, by its name in the ledger, such as `round-1/10-mid-train`."""
        return StageDir(self.root / name)


@dataclass(frozen=True)
class StageDir:
    """Paths of a stage."""

    root: Path
    config = _Below("config.yaml")
    # Ranks on other nodes or with a prologue read it first.
    launch_spec = _Below("launch.json")
    metrics = _Below("metrics.jsonl")
    log = _Below("log.txt")
    checkpoints = _Below("checkpoints")
    model = _Below("model")
    # The launcher writes `stop` to ask the ranks to save and stop. When they have stopped, they
    # write `stopped` with the signal and the saved step.
    stop = _Below("stop")
    stopped = _Below("stopped.json")
    # Folder with the heartbeat file of each rank.
    heartbeats = _Below("heartbeats")
    # The rendezvous port of the running ranks; removed when they have ended.
    port = _Below("port.json")
    # Describes the batch whose loss or gradient was not finite.
    not_finite = _Below("not-finite.json")
    # Written last: a stage is complete if and only if this file exists.
    result = _Below("result.json")

    def snapshot(self, number: int) -> Path:
        """A model kept during training, numbered from 1."""
        return self.root / "snapshots" / str(number)

    def snapshots(self) -> list[Path]:
        """The models kept during training, in order; `SNAPSHOT_FACTS` in each has its step."""
        kept = (path.parent for path in self.root.glob(f"snapshots/*/{SNAPSHOT_FACTS}"))
        return sorted((p for p in kept if p.name.isdigit()), key=lambda path: int(path.name))

    def clear_traces(self) -> None:
        """Remove the heartbeats and stop files of the last start, and its partly written files."""
        shutil.rmtree(self.heartbeats, ignore_errors=True)
        remove_parts(self.root)
        for path in (self.stop, self.stopped, self.not_finite):
            path.unlink(missing_ok=True)

    def requested_stop(self) -> int:
        """The signal in the file `stop`; 0 if the file does not exist."""
        return int(read_json(self.stop, needs=("signal",))["signal"]) if self.stop.is_file() else 0

    def is_complete(self) -> bool:
        return self.result.is_file()

    def read_config(self) -> dict[str, Any]:
        """The job of the stage, as it was started."""
        return read_yaml(self.config, needs=("config", "inputs", "identity_fields", "layout"))

    def read_result(self) -> dict[str, Any]:
        found = read_json(self.result, needs=("kind", "seconds"))
        if why := problem_in(found):
            raise _damaged(self.result, why)
        return found


def read_json(path: Path, needs: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        DamagedFile: the content is not a JSON object, or lacks a key of `needs`.
    """
    return _read_object(path, json.loads, needs)


def read_yaml(path: Path, needs: Sequence[str] = ()) -> dict[str, Any]:
    """The values in a file of `write_yaml`; raises as `read_json`."""
    return _read_object(path, values_of, needs)


def _read_object(path: Path, parse: Callable[[str], Any], needs: Sequence[str]) -> dict[str, Any]:
    try:
        loaded = parse(path.read_text("utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(loaded, dict):
        raise _damaged(path, f"it contains a {type(loaded).__name__} instead of keys and values")
    for key in needs:
        if key not in loaded:
            raise _damaged(path, f"it has no {key}")
    return loaded


def _damaged(path: Path, why: str) -> DamagedFile:
    return DamagedFile(
        f"{path} is damaged: {' '.join(why.split())}. Remove it and repeat the command that made "
        "it; everything else that was saved stays."
    )


def json_objects(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects among lines; others are left out, such as one torn by a crash."""
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(found := json.loads(line), dict):
                yield found


def write_yaml(values: dict[str, Any], path: Path) -> None:
    """Write plain values as YAML, atomically."""
    write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def write_json(path: Path, values: dict[str, Any], mode: int = 0o644) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(values, indent=1, allow_nan=False) + "\n", mode)


def write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file atomically: temporary file, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PART)
    try:
        os.fchmod(handle, mode)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        fail_point("before a file is renamed")
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    fsync_dir(path.parent)


def remove_parts(folder: Path) -> None:
    """Remove the partly written files of killed processes. Only the writer of a run may call it."""
    for part in folder.glob(f".*{_PART}"):
        part.unlink()


def fsync_dir(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flock(descriptor: int, kind: int, tries: int) -> bool:
    """Take a lock; retry `tries` times, since `lock_holder` may hold it for an instant."""
    for attempt in range(tries):
        if attempt:
            time.sleep(0.1)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
    return False


def lock_holder(run: RunDir) -> str:
    """The process that writes this run now; empty if there is none."""
    if not run.lock.is_file():
        return ""
    with open(run.lock, "rb") as stream:
        free = _flock(stream.fileno(), fcntl.LOCK_SH, tries=1)
        return "" if free else _words(stream.fileno()) or "another process"


def _words(lock: int) -> str:
    """What the holder of a lock has written into its file."""
    return os.pread(lock, 4096, 0).decode(errors="replace").strip()


def hold_as_rank(run: RunDir) -> None:
    """Keep other commands out of the run while this rank lives, even if its command has ended.

    Does nothing on other nodes than the command's: if such a node crashed, a network file system
    might hold its lock for a long time.
    """
    try:
        holder = run.lock.read_text("utf-8", errors="replace")
    except FileNotFoundError:
        return
    if holder.startswith(_THIS_HOST):
        # Never closed. A starting command holds the lock for an instant, hence the retries.
        descriptor = os.open(run.ranks_lock, os.O_RDWR | os.O_CREAT, 0o644)
        _flock(descriptor, fcntl.LOCK_SH, _RANK_TRIES)


def _living_ranks(run: RunDir) -> str:
    """Pids of ranks of an earlier command that still run on this node; empty if there are none."""
    if not run.ranks_lock.is_file():
        return ""
    with open(run.ranks_lock, "rb") as stream:
        if _flock(stream.fileno(), fcntl.LOCK_EX, _RANK_TRIES):
            return ""
        end = f":{os.fstat(stream.fileno()).st_ino}"
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    # `1: FLOCK ADVISORY READ 4711 00:2a:1234 0 EOF`
    pids = sorted({line[4] for line in locks if line[1] == "FLOCK" and line[5].endswith(end)})
    return f"pid {', '.join(pids)}" if pids else "unknown process"


class RunLock:
    """The lock of the one writer of a run: an flock held by this process and those that inherit it.

    Raises:
        UserError: another process holds it (the message names host, pid and command), or ranks of
            an earlier command still run.
    """

    def __init__(self, run: RunDir, command: str) -> None:
        try:
            run.root.mkdir(parents=True, exist_ok=True)
            self.descriptor = os.open(run.lock, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"--run-dir {run.root}: cannot create it or write to it ({error.strerror})."
            ) from error
        used = ""
        if not _flock(self.descriptor, fcntl.LOCK_EX, tries=5):
            holder = _words(self.descriptor) or "by another process"
            used = f"{holder}. Wait for it to end, or choose another folder with --run-dir."
        elif ranks := _living_ranks(run):
            used = (
                f"ranks of an earlier command still run on this machine ({ranks}). Wait for them "
                "to end, or kill them."
            )
        if used:
            os.close(self.descriptor)
            raise UserError(f"{run.root} is in use: {used}")
        holder = f"{_THIS_HOST}pid {os.getpid()}, command: {command}\n"
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, holder.encode(), 0)
        for folder in (run.root, run.data):
            remove_parts(folder)

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *exc: object) -> None:
        os.ftruncate(self.descriptor, 0)
        os.close(self.descriptor)
