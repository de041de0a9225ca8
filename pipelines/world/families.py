"""The ten problem families, the split of problems between streams, and the check of an answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pipelines.world.rng import Dice, State, digest

from . import lists, machines

MARK = "so"  # the word before the final answer, in every family
BUCKETS = 100
# Which stream owns a problem: the one whose range [low, high) contains the problem's bucket.
OWNERS: dict[str, tuple[int, int]] = {
    "eval": (0, 10),
    "tuning": (10, 35),
    "rlvr": (35, 55),
    "heldout": (55, 60),
    "text": (60, 100),
}

# Accuracy of the best constant answer for each family, derived from how its problems are sampled.
# First digits and days are uniform, so the probability of a remainder depends only on the number of
# bases that allow it; for lists, the shortest answer is the most likely one.
CONSTANT_ANSWER_ACCURACY: dict[str, float] = {
    "lookup": 1 / 10,
    "modular": 0.1226,
    "maximum": 0.0489,
    "counting": 1 / 7,
    "sorting": 0.0012,
    "reversal": 1 / 9 / 15**3,
    "boolean": 0.0449,
    "weekday": 1 / 7,
    "brackets": 1 / 27,
    "tracing": 0.1174,
}
FAMILIES = tuple(CONSTANT_ANSWER_ACCURACY)  # in the order that the streams sample from
# The question, written from the state of a problem.
PROMPTS: dict[str, Callable[[State], str]] = {
    "lookup": lambda state: f"look up {state[0]} in {' '.join(state[1])}",
    "modular": lambda state: f"add {' '.join(map(str, state[1]))} mod {state[0]}",
    "maximum": lambda state: f"most of {' '.join(state)}",
    "counting": lambda state: f"count vowels in {state[0]}",
    "sorting": lambda state: f"sort {state[0]}",
    "reversal": lambda state: f"reverse {state[0]}",
    "boolean": lambda state: f"{state[0]} {' '.join(state[1])}",
    "weekday": lambda state: f"add {machines.DAYS[state[0]]} {' '.join(map(str, state[1]))} days",
    "brackets": lambda state: f"close {state[0]}",
    "tracing": lambda state: f"run {state[0]} on {state[1]}",
}


class Family(NamedTuple):
    """One family: functions that write, sample, solve and misread a problem (see `lists`)."""

    prompt: Callable[[State], str]
    draw: Callable[[Dice], State]
    solve: Callable[[State], tuple[str, str]]
    slip: Callable[[Dice, State], State]


class Problem(NamedTuple):
    """One problem: its family, the state it was written from, its question and answer."""

    family: str
    state: State
    prompt: str
    steps: str
    answer: str

    @property
    def response(self) -> str:
        """The worked solution, which ends in the answer."""
        return f"{self.steps} {MARK} {self.answer}"


_PARTS = vars(lists) | vars(machines)
TABLE = {
    name: Family(write, *(_PARTS[f"{name}_{part}"] for part in ("draw", "solve", "slip")))
    for name, write in PROMPTS.items()
}


def bucket(prompt: str) -> int:
    """The bucket (0 to `BUCKETS` - 1) of the problem in `prompt`."""
    return digest(prompt) % BUCKETS


def problem(dice: Dice, family: str, holder: str) -> Problem:
    """Sample a problem of `family` that belongs to `holder` (a key of `OWNERS`)."""
    kind = TABLE[family]
    low, high = OWNERS[holder]
    while True:
        state = kind.draw(dice)
        prompt = kind.prompt(state)
        # Problems of other owners are rejected, so no two owners share a problem.
        if low <= bucket(prompt) < high:
            return Problem(family, state, prompt, *kind.solve(state))


def near_miss(dice: Dice, item: Problem) -> str:
    """A plausible wrong response to `item`, in which part of the problem is misread.

    In half of the cases the whole solution is that of the misread problem. In the other half the
    steps are right, and only the answer is that of the misread problem.
    """
    kind = TABLE[item.family]
    state, answer = item.state, item.answer
    while answer == item.answer:  # a slip may not change it
        state = kind.slip(dice, state)
        steps, answer = kind.solve(state)
    if dice.random() < 0.5:
        steps = item.steps
    return f"{steps} {MARK} {answer}"


def check(completion: str, answer: str) -> bool:
    """Whether the final answer of `completion` is `answer`.

    Only the first line that is not blank counts. The final answer is the text after its last word
    `so`.
    """
    lines = completion.strip().split("\n", 1)
    _, mark, final = f" {lines[0]}".rpartition(f" {MARK} ")
    return bool(mark) and final.strip() == answer.strip() != ""
