"""Verifiers in killable children: what does not end costs its own sample, and nothing else."""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.rewards import judge_all, verifier
from pipelines.rewards.verifier import Verifier

ROOT = Path(__file__).resolve().parents[2]
RIGHT = ("so 2x+3", "$3+2x$", "2x+3")
PATHOLOGICAL = {
    "tower of powers": "$9^{9^{9^{9}}}$",
    "tower in a box": r"\boxed{7^{7^{7^{7^{7}}}}}",
    "factorial": "$((99999!)!)!$",
    "deep fractions": "$" + r"\frac{1}{" * 300 + "x" + "}" * 300 + "$",
    "deep brackets": "$" + "(" * 900 + "x" + ")" * 900 + "$",
    "long sum": "$" + "+".join(f"x_{{{i}}}^{{{i}}}" for i in range(300)) + "$",
}


@pytest.fixture(scope="module")
def cell() -> Iterator[Verifier]:
    """One server for all tests: it has to survive everything."""
    with_workers = Verifier(workers=2)
    yield with_workers
    assert with_workers.judge("math", [("x", "x", "x")])[0].value is not None
    with_workers.close()


def math(text: str, answer: str = "2x+3") -> tuple[str, str, str]:
    return text, text, answer


@pytest.mark.parametrize("name", PATHOLOGICAL)
def test_pathological_mathematics_costs_its_own_sample(cell: Verifier, name: str) -> None:
    server, started = cell.pid, time.monotonic()
    before, bad, after = cell.judge(
        "math", [math("$3+2x$"), math(PATHOLOGICAL[name]), math("$2x+3$")]
    )
    assert (before.value, bool(bad.value), after.value) == (True, False, True)
    assert time.monotonic() - started < cell.wall_seconds + 5
    assert cell.pid == server


def test_a_pathological_gold_answer_is_wrong_too(cell: Verifier) -> None:
    (verdict,) = cell.judge("math", [math("$x+1$", "9^{9^{9^{9}}}")])
    assert not verdict.value


def test_the_wall_clock_ends_what_uses_no_time(cell: Verifier) -> None:
    """A worker that is stopped uses no CPU time and answers nothing."""
    short = Verifier(workers=1)
    try:
        assert short.judge("math", [math("$3+2x$")])[0].value is True
        short.wall_seconds = 1
        signal.pidfd_send_signal(short._idle[0].process, signal.SIGSTOP)
        started = time.monotonic()
        (stopped,) = short.judge("math", [math("$3+2x$")])
        assert stopped.error == "no verdict in 1 s" and time.monotonic() - started < 5
        short.wall_seconds = verifier.WALL_SECONDS
        assert short.judge("math", [math("$3+2x$")])[0].value is True
    finally:
        short.close()


@pytest.fixture
def own() -> Iterator[Verifier]:
    """Two workers that have judged, and are idle."""
    made = Verifier(workers=2)
    assert all(v.value for v in made.judge("math", [math("$3+2x$")] * 4))
    while len(made._idle) < 2:
        made._idle.append(made._worker("math", new=True))
    yield made
    made.close()


def ended(worker: Any) -> None:
    """Kill a worker, and wait until it is gone."""
    signal.pidfd_send_signal(worker.process, signal.SIGKILL)
    select.select([worker.process], [], [], 10)


ASKED = [math("$3+2x$"), math("$3+x$"), math("$2x+3$")]


@pytest.mark.parametrize("dies", ["one idle worker", "both idle workers", "server"])
def test_a_death_between_requests_costs_nothing(own: Verifier, dies: str) -> None:
    before = own.pid
    if dies == "server":
        os.kill(before, signal.SIGKILL)
        own.process.wait()
    for worker in own._idle[: 1 + (dies == "both idle workers")] if dies != "server" else []:
        ended(worker)
    for _ in range(2):
        assert [v.value for v in own.judge("math", ASKED)] == [True, False, True]
    assert (own.pid != before) == (dies == "server")


def test_a_server_that_dies_with_requests_in_work(own: Verifier) -> None:
    before = own.pid
    for worker in own._idle:
        signal.pidfd_send_signal(worker.process, signal.SIGSTOP)
    killer = threading.Timer(0.5, os.kill, (before, signal.SIGKILL))
    killer.start()
    assert [v.value for v in own.judge("math", ASKED)] == [True, False, True]
    killer.join()
    assert own.pid != before


def test_a_verifier_that_is_always_gone_costs_the_samples(
    own: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork = own._fork

    def fork_dead(kind: str) -> Any:
        ended(worker := fork(kind))
        return worker

    monkeypatch.setattr(own, "_fork", fork_dead)
    for worker in own._idle:
        ended(worker)
    assert [v.error for v in own.judge("math", ASKED)] == ["the verifier was gone twice"] * 3
    monkeypatch.undo()
    assert [v.value for v in own.judge("math", ASKED)] == [True, False, True]


def test_a_server_that_never_starts_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    dead = Verifier()
    try:
        with pytest.raises(RuntimeError, match="cannot be started: its server ended"):
            dead.judge("math", ASKED)
    finally:
        dead.close()


def test_the_calling_process_is_not_blocked(cell: Verifier) -> None:
    used = time.process_time()
    cell.judge("math", [math("$9^{9^{9^{9}}}$")])
    assert time.process_time() - used < 0.5


def test_failures_are_counted_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(verifier, "_num_failures", Counter())
    with caplog.at_level(logging.WARNING):
        assert judge_all("math", [("$9^{9^{9^{9}}}$", "3"), ("$x+y$", "y+x")]) == [0.0, 1.0]
        for _ in range(4):
            verifier.count_failure("math", "again")
    said = [record.getMessage() for record in caplog.records]
    assert [message.split()[4] for message in said] == ["1", "2", "4"]


def test_an_unknown_kind_is_an_error_not_a_zero(cell: Verifier) -> None:
    fresh = Verifier()
    try:
        with pytest.raises(RuntimeError, match="KeyError"):
            fresh.judge("nothing", [("x",)])
        assert fresh.judge("math", [math("$3+2x$")])[0].value is True
    finally:
        fresh.close()


def test_workers_have_no_tokens_and_write_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "do-not-tell")
    fresh = Verifier()
    try:
        fresh.judge("math", [math("$3+2x$")])
        children = Path(f"/proc/{fresh.pid}/task/{fresh.pid}/children").read_text().split()
        for pid in [str(fresh.pid), *children]:
            assert b"do-not-tell" not in Path(f"/proc/{pid}/environ").read_bytes()
        limits = Path(f"/proc/{children[0]}/limits").read_text()
        assert "Max file size             0 " in limits
    finally:
        fresh.close()


def test_all_ends_with_the_parent() -> None:
    code = """
import os, signal
from pathlib import Path
from pipelines.rewards.verifier import Verifier
v = Verifier()
v.judge("math", [("$x$", "$x$", "x")])
print(v.pid, *Path(f"/proc/{v.pid}/task/{v.pid}/children").read_text().split(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    pids = done.stdout.split()
    assert len(pids) == 2, done.stderr
    deadline = time.monotonic() + 5
    while left := [pid for pid in pids if os.path.exists(f"/proc/{pid}")]:
        assert time.monotonic() < deadline, f"{left} outlived the parent"
        time.sleep(0.02)


def test_instructions_are_judged_by_the_harness_rules(cell: Verifier) -> None:
    pytest.importorskip("langdetect")
    doc: dict[str, Any] = {
        "key": 1, "prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    }  # fmt: skip
    found = [v.value for v in cell.judge("ifeval", [(doc, ["a b"]), (doc, ["a, b"])])]
    assert [f["prompt_level_strict_acc"] for f in found] == [True, False]


def test_a_catastrophic_pattern_in_an_instruction(cell: Verifier) -> None:
    pytest.importorskip("langdetect")
    doc: dict[str, Any] = {
        "key": 1, "prompt": "", "instruction_id_list": ["keywords:existence"],
        "kwargs": [{"keywords": ["(a+)+$"]}],
    }  # fmt: skip
    started = time.monotonic()
    (verdict,) = cell.judge("ifeval", [(doc, ["a" * 60 + "!"])])
    assert verdict.error and time.monotonic() - started < cell.wall_seconds + 5
