"""Kill a small flywheel at random instants until it has been killed often enough: `make soak`.

Every kill is one of: a rank, the launcher, the command, everything at once. After each, no process
may be left, what was complete must be as it was, the ledger must be readable, and the next start
must go on from the newest complete checkpoint. What comes out must equal an undisturbed run's:
weights bit for bit, and every accuracy.

    python tests/soak.py --kills 100 --seed 1 [--ranks 2] [--iterations 1] [--folder DIR]

No test collects it. The seed is printed; it decides targets and instants, not the machine's pace.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from held_files import holders

CHECKOUT = Path(__file__).resolve().parent.parent
TARGETS = ("rank", "launcher", "command", "everything")
# Of a result: times, and where the last start was.
VOLATILE = {
    "seconds", "train_seconds", "tokens_per_second", "megabytes_per_second", "environment",
    "started", "engine", "scores", "reference",
}  # fmt: skip
SAVES = [
    *(f"{stage}.save_steps=3" for stage in ("pretrain", "mid_train", "sft")),
    "dpo.save_steps=2", "rlvr.save_steps=1",
    *(f"{stage}.save_total_limit=2" for stage in ("pretrain", "mid_train", "sft", "dpo", "rlvr")),
]  # fmt: skip
GONE_SECONDS = 30.0
# A command that is killed, or whose rank is, has ended by then; else it starts stages directly.
WITHOUT_LAUNCHER_SECONDS = 8.0
TOO_LONG = 900.0


class Lost(AssertionError):
    """Something that must not happen has happened."""


def command(run: Path, options: argparse.Namespace) -> list[str]:
    return [
        sys.executable, "-m", "remit_cli", "flywheel", "--config", "world-tiny", "--json",
        "--iterations", str(options.iterations), "--gpus", str(options.ranks),
        "--run-dir", str(run), *SAVES,
    ]  # fmt: skip


def start(run: Path, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    env = {key: value for key, value in os.environ.items() if key != "REMIT_FAIL_AT"}
    env |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(CHECKOUT)}
    with run.with_suffix(".err").open("ab") as err:
        return subprocess.Popen(
            command(run, options), cwd=run.parent, env=env, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=err, start_new_session=True,
        )  # fmt: skip


def ranks_of(run: Path, pids: dict[int, str]) -> list[int]:
    """Those whose output is a stage's log and which are no launcher."""
    found = []
    for pid in pids:
        try:
            output = os.readlink(f"/proc/{pid}/fd/1")
        except OSError:
            continue
        if output.startswith(f"{run}/") and output.endswith("/log.txt"):
            found.append(pid)
    return found


def kill(target: str, run: Path, process: subprocess.Popen[bytes], chance: random.Random) -> str:
    """Kill what is asked for, or what comes nearest to it now; what it was."""
    pids = holders(run)
    ranks = ranks_of(run, pids)
    launchers = [pid for pid in pids if pid not in ranks and pid != process.pid]
    if target == "rank" and ranks:
        chosen = [chance.choice(sorted(ranks))]
    elif target in ("rank", "launcher") and launchers:
        target, chosen = "launcher", launchers
    elif target == "everything":
        chosen = [process.pid, *launchers, *ranks]
    else:
        target, chosen = "command", [process.pid]
    for pid in chosen:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return target


def stages_of(run: Path) -> list[Path]:
    return sorted(path.parent for path in run.rglob("config.yaml"))


def completed(run: Path) -> dict[str, tuple[int, int]]:
    """Complete stages: when their result was written, and its inode."""
    return {
        str(path.parent.relative_to(run)): (path.stat().st_mtime_ns, path.stat().st_ino)
        for path in run.rglob("result.json")
    }


def newest_steps(run: Path) -> dict[str, int]:
    """The newest complete checkpoint of each stage that has not ended."""
    found: dict[str, int] = {}
    for stage in stages_of(run):
        if not (stage / "result.json").is_file():
            steps = [
                int(marker.parent.name.split("-")[1])
                for marker in stage.glob("checkpoints/checkpoint-*/complete.json")
            ]
            if steps:
                found[str(stage.relative_to(run))] = max(steps)
    return found


def starts_of(stage: Path) -> list[str]:
    log = stage / "log.txt"
    if not log.is_file():
        return []
    lines = log.read_text(errors="replace").splitlines()
    return [line for line in lines if line.startswith(("resuming from", "starting from step 0"))]


def changes(run: Path) -> int:
    """A number that grows with what is written: a cheap look, many times a second."""
    count = 0
    for pattern in ("ledger.jsonl", "*/result.json", "*/*/result.json"):
        count += sum(path.stat().st_size for path in run.glob(pattern))
    for pattern in ("*/checkpoints/*/*", "*/*/checkpoints/*/*", "*/*/model*", "data/*", "data/.*"):
        count += len(list(run.glob(pattern)))
    return count


def sleep_until_a_random_instant(
    run: Path, process: subprocess.Popen[bytes], chance: random.Random, longest: float
) -> str:
    """Some seconds, or some writes after a few seconds; says which."""
    seconds = chance.uniform(0.5, longest)
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        time.sleep(0.01)
    if chance.random() < 0.5:
        return f"after {seconds:.1f} s"
    writes = chance.randint(1, 5)
    for _ in range(writes):
        before, end = changes(run), time.monotonic() + 3
        while time.monotonic() < end and process.poll() is None:
            try:
                if changes(run) != before:
                    break
            except FileNotFoundError:
                break
            time.sleep(0.001)
    time.sleep(chance.uniform(0, 0.02))
    return f"after {seconds:.1f} s and {writes} writes"


@dataclass
class Soak:
    options: argparse.Namespace
    chance: random.Random
    kills: Counter[str] = field(default_factory=Counter)
    stages_killed: Counter[str] = field(default_factory=Counter)
    resumed: int = 0
    flywheels: int = 0
    torn: int = 0

    def check(
        self, run: Path, before: dict[str, tuple[int, int]], steps: dict[str, int],
        starts: dict[str, int],
    ) -> None:  # fmt: skip
        """What must hold after every end of the command, killed or not."""
        end = time.monotonic() + GONE_SECONDS
        while left := holders(run):
            if time.monotonic() > end:
                raise Lost(f"processes are left: {left}")
            time.sleep(0.05)
        after = completed(run)
        redone = [name for name, facts in before.items() if after.get(name) != facts]
        if redone:
            raise Lost(f"complete stages were made again: {redone}")
        for name, step in steps.items():
            new = starts_of(run / name)[starts.get(name, 0) :]
            if new and not new[0].endswith(f"/checkpoint-{step}"):
                raise Lost(f"{name}: checkpoint-{step} was complete, and it said: {new[0]}")
            self.resumed += bool(new)
        self.check_ledger(run)

    def check_ledger(self, run: Path) -> None:
        finished: Counter[str] = Counter()
        torn = 0
        path = run / "ledger.jsonl"
        for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                torn += 1
                continue
            finished[entry["stage"]] += entry["event"] == "finish"
        twice = [name for name, count in finished.items() if count > 1]
        if twice:
            raise Lost(f"finished twice in the ledger: {twice}")
        self.torn = max(self.torn, torn)

    def attempt(self, run: Path, *, undisturbed: bool) -> int:
        """One start of the command, killed or left alone; its exit code."""
        before, steps = completed(run), newest_steps(run)
        starts = {name: len(starts_of(run / name)) for name in steps}
        process = start(run, self.options)
        try:
            while not undisturbed and process.poll() is None:
                self.disturb(run, process)
            code = process.wait(timeout=TOO_LONG)
        finally:
            process.kill()
            process.wait()
        self.check(run, before, steps, starts)
        return code

    def disturb(self, run: Path, process: subprocess.Popen[bytes]) -> None:
        """Kill something at a random instant. The command may go on without its launcher."""
        when = sleep_until_a_random_instant(run, process, self.chance, self.options.longest)
        if process.poll() is not None:
            return
        in_work = [
            str(stage.relative_to(run))
            for stage in stages_of(run)
            if not (stage / "result.json").is_file()
        ]
        target = kill(self.chance.choice(TARGETS), run, process, self.chance)
        self.kills[target] += 1
        self.stages_killed[in_work[-1] if in_work else "between stages"] += 1
        print(
            f"kill {self.kills.total()}: {target} {when}, in {in_work[-1:]}, "
            f"{len(completed(run))} stages complete",
            flush=True,
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=WITHOUT_LAUNCHER_SECONDS)

    def flywheel(self, run: Path) -> None:
        """Kill until it ends by itself, or the kills are enough; then let it end."""
        while True:
            enough = self.kills.total() >= self.options.kills
            if self.attempt(run, undisturbed=enough) == 0:
                break
            if enough:
                raise Lost(f"an undisturbed start failed: {run.with_suffix('.err')}")
        self.flywheels += 1


def outcome(run: Path) -> dict[str, Any]:
    """Weights of every model and every result, without times and paths."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("result.json")):
        result = json.loads(path.read_text())
        stage = path.parent.relative_to(run)
        for key, value in result.items():
            if key not in VOLATILE:
                found[f"{stage}: {key}"] = json.loads(json.dumps(value).replace(str(run), "RUN"))
    for path in sorted(run.rglob("model/*.safetensors")):
        found[f"{path.relative_to(run)}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def differences(expected: dict[str, Any], got: dict[str, Any]) -> list[str]:
    return [
        f"{key}: {str(expected.get(key))[:200]} undisturbed, {str(got.get(key))[:200]} killed"
        for key in sorted(expected.keys() | got.keys())
        if expected.get(key) != got.get(key)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=1)
    parser.add_argument("--longest", type=float, default=16.0, help="seconds to a kill, at most")
    parser.add_argument("--folder", type=Path, help="kept afterwards; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        soak = Soak(options, random.Random(options.seed))
        began = time.monotonic()
        print(f"seed {options.seed}, {options.kills} kills, in {folder}", flush=True)
        whole = folder / "undisturbed"
        if soak.attempt(whole, undisturbed=True) != 0:
            raise Lost(f"the undisturbed run failed: {whole.with_suffix('.err')}")
        expected = outcome(whole)
        print(f"undisturbed: {time.monotonic() - began:.0f} s", flush=True)
        wrong: list[str] = []
        while soak.kills.total() < options.kills:
            run = folder / f"killed-{soak.flywheels}"
            soak.flywheel(run)
            found = differences(expected, outcome(run))
            wrong += found
            print(f"flywheel {soak.flywheels} done, {len(found)} differences", *found, sep="\n  ")
        print(
            f"\n{soak.kills.total()} kills {dict(soak.kills)} over {soak.flywheels} flywheels in "
            f"{time.monotonic() - began:.0f} s (seed {options.seed}): {soak.resumed} resumes from "
            f"a checkpoint, at most {soak.torn} torn ledger lines in one run, "
            f"{len(expected)} values and weights compared a flywheel, {len(wrong)} differ."
        )
        print("killed in:", dict(soak.stages_killed))
        sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
