"""Every reference solution of HumanEval and MBPP through the sandbox, and nothing in their place.

    python tests/gold_code.py [folder of the data]

Prints what does not pass, and the programs checked in a second; exit code 1 where a reference
solution fails or an empty program passes.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pipelines.rewards.sandbox import Limits, check_all

DATA = Path(os.environ.get("REMIT_DATA") or Path(__file__).resolve().parents[2] / "shared/data")
HUMANEVAL = "humaneval/HumanEval.jsonl.gz"
MBPP = "mbpp/mbpp.jsonl"
# On a busy machine the slowest solution (MBPP/123, 3 CPU-seconds) takes long by the clock.
LIMITS = Limits(wall_seconds=120)
Problem = tuple[str, str, str]


def humaneval(data: Path = DATA) -> Iterator[Problem]:
    """Name, reference solution and tests of each problem."""
    with gzip.open(data / HUMANEVAL, "rt", encoding="utf-8") as lines:
        for record in map(json.loads, lines):
            program = record["prompt"] + record["canonical_solution"]
            yield record["task_id"], program, f"{record['test']}\ncheck({record['entry_point']})"


def mbpp(data: Path = DATA) -> Iterator[Problem]:
    """Name, reference solution and tests of each problem."""
    with open(data / MBPP, encoding="utf-8") as lines:
        for record in map(json.loads, lines):
            tests = "\n".join([record["test_setup_code"], *record["test_list"]])
            yield f"MBPP/{record['task_id']}", record["code"], tests


def wrong(problems: list[Problem]) -> list[str]:
    """What is judged wrongly: reference solutions that fail, empty programs that pass."""
    outcomes = check_all([(program, tests) for _, program, tests in problems], LIMITS)
    empty = check_all([("", tests) for _, _, tests in problems], LIMITS)
    return [
        *(f"{p[0]}: {o.status}: {o.reason}" for p, o in zip(problems, outcomes, strict=True)
          if not o.passed),
        *(f"{p[0]}: an empty program passed" for p, o in zip(problems, empty, strict=True)
          if o.passed),
    ]  # fmt: skip


def main() -> None:
    data = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA
    problems = [*humaneval(data), *mbpp(data)]
    started = time.perf_counter()
    found = wrong(problems)
    seconds = time.perf_counter() - started
    print(*found, sep="\n")
    print(f"{len(problems)} problems, {2 * len(problems) / seconds:.0f} programs a second")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
