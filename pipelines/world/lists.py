"""The families that read a list: lookup, maximum, counting, sorting, reversal, brackets.

Each family is three functions over a `state` (a tuple that says what the problem is):
`draw(dice) -> state`, `solve(state) -> (steps, answer)` and `slip(dice, state) -> state`, a problem
of the same form in which one detail is misread. `families.PROMPTS` writes its question.
"""

from __future__ import annotations

from itertools import accumulate

from pipelines.world.rng import Dice, State

LETTERS = "abcdefgh"
VOWELS = "aeiou"
OTHERS = "bcdfghklmn"
COUNTED = ("aei", "bcdf")  # few letters, so that many of them repeat
DIGITS = "0123456789"
OPENERS = "([<"
CLOSERS = {"(": ")", "[": "]", "<": ">"}

# Sizes are (least, most), all equally likely. They are the difficulty of the world.
LOOKUP_PAIRS = (3, 7)
LOOKUP_HOPS = (1, 3)
MAXIMUM_ITEMS = (2, 7)
COUNTING_ITEMS = (7, 12)
COUNTING_HITS = (0, 6)
SORTING_ITEMS = (3, 7)
REVERSAL_ITEMS = (3, 11)
BRACKETS_LEFT = (2, 4)
BRACKETS_PAIRS = (1, 2)


def swapped(text: str, place: int, new: str) -> str:
    """`text` with the character at `place` replaced by `new`."""
    return text[:place] + new + text[place + 1 :]


def other(dice: Dice, items: str, taken: str) -> str:
    """One character of `items` that is not `taken`."""
    return dice.pick([item for item in items if item != taken])


def misread(dice: Dice, text: str, items: str) -> str:
    """`text` with one character replaced by another one of `items`."""
    place = dice.below(len(text))
    return swapped(text, place, other(dice, items, text[place]))


# lookup: follow letter-to-letter pairs until a digit ends the chain: `look up c in ac cb b7`.


def lookup_draw(dice: Dice) -> State:
    """(first letter, pairs as written): a chain that ends in a digit, among other pairs."""
    hops = dice.between(*LOOKUP_HOPS)
    count = max(dice.between(*LOOKUP_PAIRS), hops)
    keys = dice.deal(LETTERS, count)
    pairs = [keys[i] + keys[i + 1] for i in range(hops - 1)]
    pairs.append(keys[hops - 1] + dice.pick(DIGITS))
    # The pairs off the chain end in a digit or point anywhere, so they give no clue.
    for key in keys[hops:]:
        pairs.append(key + (dice.pick(DIGITS) if dice.random() < 0.5 else dice.pick(keys)))
    return keys[0], tuple(dice.deal(pairs, count))


def lookup_solve(state: State) -> tuple[str, str]:
    """The letters of the chain in order with the digit at its end, and that digit."""
    table = {pair[0]: pair[1] for pair in state[1]}
    chain = state[0]
    while chain[-1] not in DIGITS:
        chain += table[chain[-1]]
    return chain, chain[-1]


def lookup_slip(dice: Dice, state: State) -> State:
    """One digit of the pairs is misread."""
    start, pairs = state
    place = dice.pick([i for i, pair in enumerate(pairs) if pair[1] in DIGITS])
    new = pairs[place][0] + other(dice, DIGITS, pairs[place][1])
    return start, (*pairs[:place], new, *pairs[place + 1 :])


# maximum: the largest of some two-digit numbers, by a running best: `most of 41 72 29`.


def maximum_draw(dice: Dice) -> State:
    """The two-digit numbers, as written."""
    return tuple(str(dice.between(10, 99)) for _ in range(dice.between(*MAXIMUM_ITEMS)))


def maximum_solve(state: State) -> tuple[str, str]:
    """The best so far after each number, and the best of all."""
    bests = list(accumulate(state, max))
    return " ".join(bests), bests[-1]


def maximum_slip(dice: Dice, state: State) -> State:
    """One number is misread."""
    place = dice.below(len(state))
    return (*state[:place], str(dice.between(10, 99)), *state[place + 1 :])


# counting: how many letters are vowels, by picking them out: `count vowels in kaeb`.


def counting_draw(dice: Dice) -> State:
    """(the letters as written); the number of vowels is sampled first, so all are as likely."""
    hits = dice.between(*COUNTING_HITS)
    size = dice.between(*COUNTING_ITEMS)
    items = [dice.pick(COUNTED[0 if i < hits else 1]) for i in range(size)]
    return ("".join(dice.deal(items, size)),)


def counting_solve(state: State) -> tuple[str, str]:
    """The vowels in their order (`none` if there are none), and how many there are."""
    found = "".join(item for item in state[0] if item in VOWELS)
    return found or "none", str(len(found))


def counting_slip(dice: Dice, state: State) -> State:
    """One letter is misread."""
    return (misread(dice, state[0], "".join(COUNTED)),)


# sorting: digits in rising order; one may occur more than once: `sort 5281`.


def sorting_draw(dice: Dice) -> State:
    """(the digits as written)."""
    return ("".join(dice.pick(DIGITS) for _ in range(dice.between(*SORTING_ITEMS))),)


def sorting_solve(state: State) -> tuple[str, str]:
    """The digits one by one from the least, and all of them in order."""
    order = sorted(state[0])
    return " ".join(order), "".join(order)


def sorting_slip(dice: Dice, state: State) -> State:
    """One digit is misread."""
    return (misread(dice, state[0], DIGITS),)


# reversal: letters from the last to the first: `reverse dfab`.


def reversal_draw(dice: Dice) -> State:
    """(the letters as written)."""
    return ("".join(dice.pick(VOWELS + OTHERS) for _ in range(dice.between(*REVERSAL_ITEMS))),)


def reversal_solve(state: State) -> tuple[str, str]:
    """The letters one by one from the last, and all of them in that order."""
    order = state[0][::-1]
    return " ".join(order), order


def reversal_slip(dice: Dice, state: State) -> State:
    """One letter is misread, or two neighbours are exchanged."""
    text = state[0]
    place = dice.below(len(text) - 1)
    if dice.random() < 0.5:
        return (text[:place] + text[place + 1] + text[place] + text[place + 2 :],)
    return (swapped(text, place, other(dice, VOWELS + OTHERS, text[place])),)


# brackets: the closers that a string of brackets still needs: `close ([]<`.


def brackets_draw(dice: Dice) -> State:
    """(the brackets as written): some closed, `BRACKETS_LEFT` of them still open at the end."""
    opens, closes = dice.between(*BRACKETS_LEFT), dice.between(*BRACKETS_PAIRS)
    opens += closes
    text, stack = "", ""
    while opens or closes:
        if closes and stack and (not opens or dice.random() < 0.5):
            closes -= 1
            text, stack = text + CLOSERS[stack[-1]], stack[:-1]
        else:
            opens -= 1
            stack += dice.pick(OPENERS)
            text += stack[-1]
    return (text,)


def brackets_solve(state: State) -> tuple[str, str]:
    """What is left after each removal of the first closed pair, and the closers at the end."""
    text, steps = state[0], []
    while (place := next((i for i, item in enumerate(text) if item not in CLOSERS), 0)) > 0:
        text = text[: place - 1] + text[place + 1 :]
        steps.append(text)
    return " ".join(steps), "".join(CLOSERS[item] for item in reversed(text))


def brackets_slip(dice: Dice, state: State) -> State:
    """One bracket that stays open is misread as one of another shape."""
    text, stack = state[0], []
    for place, item in enumerate(text):
        if item in CLOSERS:
            stack.append(place)
        else:
            stack.pop()
    place = dice.pick(stack)
    return (swapped(text, place, other(dice, OPENERS, text[place])),)
