"""Reward by mathematical equality, through math-verify.

A completion is right if its final answer (`exact` says which text that is) is the gold answer as
text or as a plain number, which also covers answers that are no mathematics, like `True`. Else
math-verify compares, in a killable child: what follows the last `####`, or without one the
expression that it finds. What the library cannot parse, or not within its limits, is wrong; a gold
answer of more than 4,000 characters is compared as text alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.rewards.exact import as_number, final_answer, normal_text
from pipelines.rewards.verifier import verdicts

# Only the end can hold the answer, and parsing time grows with the text.
_MAX_CHARACTERS = 4000


def reward(completion: str, answer: str) -> float:
    """1.0 where the completion's final answer equals the gold answer mathematically, else 0.0."""
    return rewards([(completion, answer)])[0]


def rewards(judged: Sequence[tuple[str, str]]) -> list[float]:
    """The reward of each (completion, answer); only what is not plainly equal is handed on."""
    found = [0.0] * len(judged)
    hard: dict[tuple[str, str, str], list[int]] = {}
    for at, (completion, answer) in enumerate(judged):
        text = completion[-_MAX_CHARACTERS:]
        final, _ = final_answer(text)
        if is_plainly_equal(final, answer):
            found[at] = 1.0
        elif text.strip() and answer.strip() and len(answer) <= _MAX_CHARACTERS:
            hard.setdefault((text, final, answer), []).append(at)
    if hard:
        for verdict, places in zip(verdicts("math", list(hard)), hard.values(), strict=True):
            for at in places:
                found[at] = float(bool(verdict.value))
    return found


def is_plainly_equal(final: str, answer: str) -> bool:
    """Whether two answers are equal as text or as plain numbers."""
    if final and normal_text(final) == normal_text(answer):
        return True
    value = as_number(final)
    return value is not None and value == as_number(answer)
