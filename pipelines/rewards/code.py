"""Reward of a program: 1.0 if it passes the tests in the record's answer, run in the sandbox.

The program is the last fenced block of the completion that is marked as Python, else the last
unmarked fenced block, else the whole completion.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipelines.rewards.sandbox import check_all
from pipelines.run_dir import heartbeat

_FENCED = re.compile(r"```([^\n`]*)\n(.*?)(?:```|\Z)", re.DOTALL)
_MARKS = (("python", "py", "python3"), ("",))


def rewards(judged: Sequence[tuple[str, str]]) -> list[float]:
    """Compute the reward of each (completion, tests), in parallel on this rank's share of cores.

    Raises:
        UserError: the sandbox is not available on this machine.
    """
    programs = [(program(completion), tests) for completion, tests in judged]
    outcomes = check_all(programs, on_verdict=heartbeat.tick)
    return [float(outcome.passed) for outcome in outcomes]


def program(completion: str) -> str:
    """Extract the program from a completion."""
    blocks = [(mark.strip().lower(), text) for mark, text in _FENCED.findall(completion)]
    for marks in _MARKS:
        if found := [text for mark, text in blocks if mark in marks]:
            return str(found[-1])
    return completion
