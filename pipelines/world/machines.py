"""The families that keep a state: modular, boolean, weekday, tracing.

The form is that of `lists`: `draw`, `solve` and `slip` over a tuple.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

from pipelines.world.rng import Dice, State

from .lists import DIGITS, LETTERS

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
GATES = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}
# The effect of each command of a traced program on the digit that the program holds.
COMMANDS = {
    "i": lambda value: (value + 1) % 10,
    "d": lambda value: (value - 1) % 10,
    "p": lambda value: (value + 3) % 10,
    "m": lambda value: (value - 3) % 10,
    "h": lambda value: (value + 5) % 10,
    "n": lambda value: 9 - value,
    "r": lambda value: -value % 10,
    "t": lambda value: value * 2 % 10,
    "k": lambda value: value * 3 % 10,
    "s": lambda value: value * value % 10,
}
NAMES = "".join(COMMANDS)

# Sizes are (least, most), all equally likely. They are the difficulty of the world.
MODULAR_MOVES = (2, 4)
MODULAR_REACH = 6
MODULAR_BASES = (7, 8, 10)
BOOLEAN_ITEMS = (2, 6)
WEEKDAY_MOVES = (2, 5)
WEEKDAY_REACH = 9
TRACING_MOVES = (2, 7)


def moves(dice: Dice, size: int, reach: int) -> tuple[int, ...]:
    """`size` numbers from 1 to `reach`."""
    return tuple(dice.between(1, reach) for _ in range(size))


def sums(at: int, steps: Sequence[int], base: int, names: Sequence[str]) -> tuple[str, str]:
    """Start at `at` and add each step, modulo `base`: all sums as written, and the last sum."""
    text = names[at]
    for step in steps:
        at = (at + step) % base
        text += f"+{step}={names[at]}"
    return text, names[at]


# modular: digits added one by one, always keeping the remainder: `add 7 5 2 mod 10`.


def modular_draw(dice: Dice) -> State:
    """(base, digits): the first below the base, the others from 1 to `MODULAR_REACH`."""
    base, size = dice.pick(MODULAR_BASES), dice.between(*MODULAR_MOVES)
    return base, (dice.below(base), *moves(dice, size, MODULAR_REACH))


def modular_solve(state: State) -> tuple[str, str]:
    """The sum with the remainder after each digit, and the last remainder."""
    base, (first, *added) = state
    return sums(first, added, base, DIGITS)


def modular_slip(dice: Dice, state: State) -> State:
    """One digit that is added is misread as the next one."""
    base, digits = state
    place = dice.between(1, len(digits) - 1)
    new = digits[place] % MODULAR_REACH + 1
    return base, (*digits[:place], new, *digits[place + 1 :])


# boolean: which letters come out true, with two bits of each through a gate: `and a10 d11 b01`.


def boolean_draw(dice: Dice) -> State:
    """(gate, letters with two bits each), at least one of them true."""
    gate = dice.pick(tuple(GATES))
    size = dice.between(*BOOLEAN_ITEMS)
    while True:
        items = tuple(
            f"{label}{dice.below(2)}{dice.below(2)}" for label in dice.deal(LETTERS, size)
        )
        if boolean_solve((gate, items))[1]:
            return gate, items


def boolean_solve(state: State) -> tuple[str, str]:
    """Each letter with its result, and the letters whose result is 1."""
    gate = GATES[state[0]]
    out = [(label, gate(int(left), int(right))) for label, left, right in state[1]]
    return "".join(f"{k}{bit}" for k, bit in out), "".join(k for k, bit in out if bit)


def boolean_slip(dice: Dice, state: State) -> State:
    """One letter has one of its bits misread."""
    gate, items = state
    place, side = dice.below(len(items)), dice.between(1, 2)
    item = items[place]
    item = item[:side] + ("1" if item[side] == "0" else "0") + item[side + 1 :]
    slipped = gate, (*items[:place], item, *items[place + 1 :])
    # An answer with no letter at all would not look right.
    return slipped if boolean_solve(slipped)[1] else state


# weekday: steps forward through the week: `add tue 3 2 days`.


def weekday_draw(dice: Dice) -> State:
    """(first day 0-6, moves forward in days)."""
    size = dice.between(*WEEKDAY_MOVES)
    return dice.below(7), moves(dice, size, WEEKDAY_REACH)


def weekday_solve(state: State) -> tuple[str, str]:
    """The sum with the day after each move, and the last day."""
    day, steps = state
    return sums(day, steps, 7, DAYS)


def weekday_slip(dice: Dice, state: State) -> State:
    """One move is misread as one day more."""
    start, steps = state
    place = dice.below(len(steps))
    return start, (*steps[:place], steps[place] % WEEKDAY_REACH + 1, *steps[place + 1 :])


# tracing: a program of one-letter commands, run on one digit: `run itdi on 4`.


def tracing_draw(dice: Dice) -> State:
    """(commands, starting digit)."""
    size = dice.between(*TRACING_MOVES)
    return "".join(dice.pick(NAMES) for _ in range(size)), dice.below(10)


def tracing_solve(state: State) -> tuple[str, str]:
    """The start, each command with the digit after it, and the last digit."""
    value = state[1]
    steps = str(value)
    for command in state[0]:
        value = COMMANDS[command](value)
        steps += f"{command}{value}"
    return steps, str(value)


def tracing_slip(dice: Dice, state: State) -> State:
    """One command is misread, or the start is off by one."""
    program, value = state
    if dice.random() < 0.3:
        return program, (value + 1) % 10
    place = dice.below(len(program))
    return program[:place] + dice.pick(NAMES) + program[place + 1 :], value
