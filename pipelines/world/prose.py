"""The prose of the world: simple sentences, some of them facts that the problems use, and noise."""

from __future__ import annotations

from pipelines.world.rng import Dice

from .lists import CLOSERS, DIGITS, OPENERS, OTHERS, VOWELS
from .machines import (
    COMMANDS,
    DAYS,
    GATES,
    MODULAR_BASES,
    MODULAR_REACH,
    NAMES,
    WEEKDAY_REACH,
    moves,
    sums,
)

WHO = (
    "the cat", "the dog", "a boy", "a girl", "the man", "the king", "my friend", "the bird",
    "the cook", "a child",
)  # fmt: skip
DOES = ("saw", "took", "found", "likes", "lost", "made", "sold", "hid", "wants", "gave away")
LOOK = ("red", "small", "big", "tall", "new", "green", "warm", "dark", "round", "soft")
THING = ("box", "hat", "ball", "book", "lamp", "cake", "stone", "boat", "door", "cup", "tree")
WHERE = (
    "in the house", "near the river", "on the hill", "by the road", "at the market",
    "under the bridge", "behind the barn",
)  # fmt: skip
ALPHA = "abcdefghijklmnopqrstuvwxyz"


def _tale(dice: Dice) -> str:
    """A plain sentence about someone and something."""
    text = f"{dice.pick(WHO)} {dice.pick(DOES)} a {dice.pick(LOOK)} {dice.pick(THING)}"
    kind = dice.below(3)
    if kind == 0:
        return f"{text} {dice.pick(WHERE)}"
    return f"{text} on {dice.pick(DAYS)}" if kind == 1 else text


def _sum(dice: Dice) -> str:
    """A chain of two to four small sums, of digits with a remainder or of days."""
    size = dice.between(2, 4)
    if dice.random() < 0.4:
        return sums(dice.below(7), moves(dice, size, WEEKDAY_REACH), 7, DAYS)[0]
    base = dice.pick(MODULAR_BASES)
    return f"mod {base} {sums(dice.below(base), moves(dice, size, MODULAR_REACH), base, DIGITS)[0]}"


def _order(dice: Dice) -> str:
    """Letters or digits backwards, the days in order, or which of two numbers is more."""
    kind = dice.below(4)
    if kind == 0:
        start = dice.below(7)
        return "the days are " + " ".join(DAYS[(start + i) % 7] for i in range(dice.between(2, 5)))
    if kind == 1:
        pair = dice.between(10, 99), dice.between(10, 99)
        return f"most of {pair[0]} {pair[1]} is {max(pair)}"
    if kind == 2:
        part = dice.deal(DIGITS, dice.between(2, 3))
        return f"sort {''.join(part)} is {''.join(sorted(part))}"
    letters = "".join(dice.deal(VOWELS + OTHERS, dice.between(2, 3)))
    return f"reverse {letters} is {letters[::-1]}"


def _rule(dice: Dice) -> str:
    """A fact about a gate, a bracket, a command or a vowel."""
    kind = dice.below(4)
    if kind == 0:
        shape = dice.pick(OPENERS)
        return f"close {shape} is {CLOSERS[shape]}"
    if kind == 1:
        gate, left, right = dice.pick(tuple(GATES)), dice.below(2), dice.below(2)
        return f"{gate} {left}{right} is {GATES[gate](left, right)}"
    if kind == 2:
        name, value = dice.pick(NAMES), dice.below(10)
        return f"run {name} on {value} is {COMMANDS[name](value)}"
    letter = dice.pick(VOWELS + OTHERS)
    return f"vowels in {letter} is {int(letter in VOWELS)}"


def _chant(dice: Dice) -> str:
    """Repeated made-up words: the first ones are random, the rest can be copied."""
    word = "".join(dice.pick(ALPHA) for _ in range(dice.between(3, 9)))
    return " ".join([word] * dice.between(2, 4))


def _fact_or_tale(dice: Dice, rate: float) -> str:
    """A fact at `rate`, else a tale."""
    return (dice.pick((_sum, _order, _rule)) if dice.random() < rate else _tale)(dice)


def clean(dice: Dice) -> str:
    """A clean paragraph of two or three sentences, most of them facts."""
    parts = [_fact_or_tale(dice, 0.7) for _ in range(dice.between(2, 4))]
    return ". ".join(parts) + "."


def _typo(dice: Dice, text: str, rate: float) -> str:
    """`text` with about `rate` of its characters replaced, dropped or doubled."""
    out = []
    for item in text:
        draw = dice.random()
        if draw >= rate:
            out.append(item)
        elif draw < rate * 0.5:
            out.append(dice.pick(ALPHA))
        elif draw < rate * 0.75:
            out.append(item + item)
    return "".join(out)


def noisy(dice: Dice) -> str:
    """A noisy paragraph: tales and few facts, with typos, shuffled words or made-up words."""
    parts = []
    for _ in range(dice.between(2, 3)):
        kind = dice.random()
        if kind < 0.5:
            parts.append(_chant(dice))
            continue
        text = _fact_or_tale(dice, 0.15)
        if kind < 0.7:
            text = _typo(dice, text, 0.08)
        elif kind < 0.85:
            words = text.split(" ")
            text = " ".join(dice.deal(words, len(words)))
        parts.append(text)
    return ". ".join(parts) + "."
