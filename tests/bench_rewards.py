"""Speed of judging: programs in the sandbox, and what a killable child costs a plain verdict.

Interleaved with the start of a bare interpreter, so that a busy machine slows both.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

from pipelines.rewards import judge_all, sandbox
from pipelines.rewards.equality import equal
from pipelines.rewards.verifier import Verifier

PROGRAM = ("def f(x):\n    return sorted(x)", "assert f([2, 1]) == [1, 2]")
# One argument is too few: the worker answers at once, and what is left is the way there and back.
NOTHING = ("x",)
EXPRESSIONS = [(f"$2x+{i}$", f"$2x+{i}$", f"{i}+2x") for i in range(40)]


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def interpreter() -> None:
    subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True)


def main() -> None:
    print(f"load {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores")
    if reason := sandbox.unavailable():
        print(f"no sandbox: {reason}")
    else:
        with sandbox.Sandbox() as cell:
            cell.check(*PROGRAM)
            both = [
                (seconds(lambda: cell.check(*PROGRAM)), seconds(interpreter)) for _ in range(50)
            ]
        ratio = statistics.median(ours / bare for ours, bare in both)
        print(f"a program in the sandbox / start of a bare interpreter: {ratio:.2f}")
        rate = 400 / seconds(lambda: sandbox.check_all([PROGRAM] * 400))
        print(f"programs a second, all cores, with the servers' start: {rate:.0f}")
    verifier = Verifier(workers=1)
    verifier.judge("math", [NOTHING])
    rounds = [seconds(lambda: verifier.judge("math", [NOTHING] * 200)) / 200 for _ in range(10)]
    print(f"way to a verifier and back: {statistics.median(rounds) * 1e6:.0f} us")
    verifier.judge("math", EXPRESSIONS[:2])
    here = [seconds(partial(equal, *e)) for e in EXPRESSIONS]
    there = [seconds(partial(verifier.judge, "math", [e])) for e in EXPRESSIONS]
    print(
        f"one expression: {statistics.median(there) * 1e3:.2f} ms in a child, "
        f"{statistics.median(here) * 1e3:.2f} ms in process"
    )
    verifier.close()
    numbers = [(f"#### {i}", str(i)) for i in range(10_000)]
    each = seconds(lambda: judge_all("math", numbers)) / len(numbers)
    print(f"equal as text or number, in process: {each * 1e6:.1f} us")


if __name__ == "__main__":
    main()
