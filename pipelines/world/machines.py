"""The families that keep a state: modular, boolean, weekday, tracing.

The form is that of `lists`: `draw`, `prompt`, `solve` and `slip` over a tuple.
"""

from __future__ import annotations

from pipelines.world.rng import Dice, State

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
GATES = {
    "and": lambda left, right: left & right,
    "or": lambda left, right: left | right,
    "xor": lambda left, right: left ^ right,
}
LABELS = "abcdefgh"
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


# modular: digits added one after the other, always keeping the remainder.


def modular_draw(dice: Dice) -> State:
    """(base, digits): the first below the base, the others from 1 to `MODULAR_REACH`."""
    base = dice.pick(MODULAR_BASES)
    moves = (dice.between(1, MODULAR_REACH) for _ in range(dice.between(*MODULAR_MOVES)))
    return base, (dice.below(base), *moves)


def modular_prompt(state: State) -> str:
    """For example `add 7 5 2 mod 10`."""
    return f"add {' '.join(map(str, state[1]))} mod {state[0]}"


def modular_solve(state: State) -> tuple[str, str]:
    """The sum with the remainder after each digit, and the last remainder."""
    base, digits = state
    total = digits[0]
    steps = str(total)
    for digit in digits[1:]:
        total = (total + digit) % base
        steps += f"+{digit}={total}"
    return steps, str(total)


def modular_slip(dice: Dice, state: State) -> State:
    """One digit that is added is misread as the next one."""
    base, digits = state
    place = dice.between(1, len(digits) - 1)
    new = digits[place] % MODULAR_REACH + 1
    return base, (*digits[:place], new, *digits[place + 1 :])


# boolean: a gate between two bits under each of some letters; which letters come out true.


def boolean_draw(dice: Dice) -> State:
    """(gate, letters with two bits each), at least one of them true."""
    gate = dice.pick(("and", "or", "xor"))
    size = dice.between(*BOOLEAN_ITEMS)
    while True:
        items = tuple(f"{label}{dice.below(2)}{dice.below(2)}" for label in dice.deal(LABELS, size))
        if boolean_solve((gate, items))[1]:
            return gate, items


def boolean_prompt(state: State) -> str:
    """For example `and a10 d11 b01`."""
    return f"{state[0]} {' '.join(state[1])}"


def boolean_solve(state: State) -> tuple[str, str]:
    """Each letter with its result, and the letters whose result is 1."""
    gate = GATES[state[0]]
    out = [(item[0], gate(int(item[1]), int(item[2]))) for item in state[1]]
    return "".join(f"{label}{bit}" for label, bit in out), "".join(k for k, bit in out if bit)


def boolean_slip(dice: Dice, state: State) -> State:
    """One letter has one of its bits misread."""
    gate, items = state
    place, side = dice.below(len(items)), dice.between(1, 2)
    item = items[place]
    item = item[:side] + ("1" if item[side] == "0" else "0") + item[side + 1 :]
    slipped = gate, (*items[:place], item, *items[place + 1 :])
    # An answer with no letter at all would not look right.
    return slipped if boolean_solve(slipped)[1] else state


# weekday: steps forward through the week.


def weekday_draw(dice: Dice) -> State:
    """(first day 0-6, moves forward in days)."""
    moves = (dice.between(1, WEEKDAY_REACH) for _ in range(dice.between(*WEEKDAY_MOVES)))
    return dice.below(7), tuple(moves)


def weekday_prompt(state: State) -> str:
    """For example `add tue 3 2 days`."""
    return f"add {DAYS[state[0]]} {' '.join(map(str, state[1]))} days"


def weekday_solve(state: State) -> tuple[str, str]:
    """The sum with the day after each move, and the last day."""
    day, moves = state
    steps = DAYS[day]
    for move in moves:
        day = (day + move) % 7
        steps += f"+{move}={DAYS[day]}"
    return steps, DAYS[day]


def weekday_slip(dice: Dice, state: State) -> State:
    """One move is misread as one day more."""
    start, moves = state
    place = dice.below(len(moves))
    return start, (*moves[:place], moves[place] % WEEKDAY_REACH + 1, *moves[place + 1 :])


# tracing: a program of one-letter commands, run on one digit.


def tracing_draw(dice: Dice) -> State:
    """(commands, starting digit)."""
    size = dice.between(*TRACING_MOVES)
    return "".join(dice.pick(NAMES) for _ in range(size)), dice.below(10)


def tracing_prompt(state: State) -> str:
    """For example `run itdi on 4`."""
    return f"run {state[0]} on {state[1]}"


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
