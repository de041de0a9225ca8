"""Reward of a program: 1.0 if it passes the tests that are the record's answer, in the sandbox.

The program of a completion is the last fenced block marked as Python, else the last fenced block
without a mark, else the whole text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from pipelines.machine.process import num_cores
from pipelines.rewards.sandbox import check_all
from pipelines.run_dir import heartbeat

_FENCED = re.compile(r"```([^\n`]*)\n(.*?)(?:```|\Z)", re.DOTALL)
_MARKS = (("python", "py", "python3"), ("",))


def reward(completion: str, answer: str) -> float:
    """1.0 where the completion's program passes the tests, else 0.0."""
    return rewards([(completion, answer)])[0]


def rewards(judged: Sequence[tuple[str, str]]) -> list[float]:
    """The reward of each (completion, tests); several at a time, on this rank's share of the cores.

    Raises:
        UserError: the sandbox is not available here.
    """
    workers = max(1, num_cores() // int(os.environ.get("WORLD_SIZE", "1")))
    programs = [(program(completion), tests) for completion, tests in judged]
    outcomes = check_all(programs, workers=workers, on_verdict=heartbeat.tick)
    return [float(outcome.passed) for outcome in outcomes]


def program(completion: str) -> str:
    """The program that a completion contains."""
    blocks = [(mark.strip().lower(), text) for mark, text in _FENCED.findall(completion)]
    for marks in _MARKS:
        found: list[str] = [text for mark, text in blocks if mark in marks]
        if found:
            return found[-1]
    return completion
