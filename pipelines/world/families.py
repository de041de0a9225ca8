"""The ten families of problems, who owns which problem, and the check of an answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pipelines.world.rng import Dice, State, digest

from . import lists, machines

FAMILIES = (
    "lookup",
    "modular",
    "maximum",
    "counting",
    "sorting",
    "reversal",
    "boolean",
    "weekday",
    "brackets",
    "tracing",
)
MARK = "so"  # the word before the final answer, in every family
BUCKETS = 100
# Which stream owns a problem: the buckets from `low` up to, not including, `high`.
OWNERS: dict[str, tuple[int, int]] = {
    "eval": (0, 10),
    "tuning": (10, 35),
    "rlvr": (35, 55),
    "heldout": (55, 60),
    "text": (60, 100),
}


# The accuracy of the best constant answer to problems of each family, worked out from the way
# they are drawn: the first digits and days are even, so a remainder favours no answer beyond the
# bases that hold it, and a list favours the shortest answer there is.
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


class Family(NamedTuple):
    """One family: how a problem is drawn, written, solved and misread (see `lists`)."""

    name: str
    draw: Callable[[Dice], State]
    prompt: Callable[[State], str]
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


def _family(name: str) -> Family:
    """The four functions of the family `name`, from the module that holds them."""
    home = lists if hasattr(lists, f"{name}_draw") else machines
    return Family(name, *(getattr(home, f"{name}_{part}") for part in Family._fields[1:]))


TABLE: dict[str, Family] = {name: _family(name) for name in FAMILIES}


def bucket(prompt: str) -> int:
    """The bucket (0 to `BUCKETS` - 1) of the problem that `prompt` asks."""
    return digest(prompt) % BUCKETS


def owner(prompt: str) -> str:
    """The one key of `OWNERS` whose buckets hold the problem that `prompt` asks."""
    number = bucket(prompt)
    return next(name for name, (low, high) in OWNERS.items() if low <= number < high)


def problem(dice: Dice, family: str, holder: str) -> Problem:
    """A random problem of `family` that belongs to `holder` (a key of `OWNERS`)."""
    kind = TABLE[family]
    low, high = OWNERS[holder]
    while True:
        state = kind.draw(dice)
        prompt = kind.prompt(state)
        # Problems of other owners are drawn again, so the owners never share one.
        if low <= digest(prompt) % BUCKETS < high:
            return Problem(family, state, prompt, *kind.solve(state))


def near_miss(dice: Dice, item: Problem) -> str:
    """A wrong response to `item` that looks right: something in it was misread.

    Half of the time the whole solution is that of the misread problem, half of the time the
    steps are right and only the answer is that of the misread problem.
    """
    kind = TABLE[item.family]
    state = item.state
    while True:
        # A slip that leaves the answer as it was is followed by another one.
        state = kind.slip(dice, state)
        steps, answer = kind.solve(state)
        if answer != item.answer:
            break
    if dice.random() < 0.5:
        steps = item.steps
    return f"{steps} {MARK} {answer}"


def check(completion: str, answer: str) -> bool:
    """Whether the final answer of `completion` is `answer`.

    Only the first line that is not blank counts; the final answer is what follows the last
    word `so` in it.
    """
    lines = completion.strip().split("\n", 1)
    _, mark, final = f" {lines[0]}".rpartition(f" {MARK} ")
    return bool(mark) and final.strip() == answer.strip() != ""
