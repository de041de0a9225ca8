"""Reward by mathematical equality, with math-verify.

A completion is right if its final answer (extracted as in `exact`) equals the gold answer as text
or as a plain number; this also covers answers that are not mathematics, like `True`. Otherwise
math-verify compares them, in a child process that can be killed. It reads what follows the last
`####` or, without one, the expression that it finds. An answer that it cannot parse within its
limits is wrong. A gold answer of more than 4,000 characters is compared only as text.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.rewards.exact import as_number, final_answer, normal_text
from pipelines.rewards.verifier import verdicts

# The answer is at the end of a completion, and parsing time grows with the text.
_MAX_CHARACTERS = 4000


def rewards(judged: Sequence[tuple[str, str]]) -> list[float]:
    """Compute the reward of each (completion, answer); math-verify runs only if texts differ."""
    found = [0.0] * len(judged)
    hard: dict[tuple[str, str, str], list[int]] = {}
    for at, (completion, answer) in enumerate(judged):
        text = completion[-_MAX_CHARACTERS:]
        final, _ = final_answer(text)
        if _is_plainly_equal(final, answer):
            found[at] = 1.0
        elif text.strip() and answer.strip() and len(answer) <= _MAX_CHARACTERS:
            hard.setdefault((text, final, answer), []).append(at)
    if hard:
        for verdict, places in zip(verdicts("math", list(hard)), hard.values(), strict=True):
            for at in places:
                found[at] = float(bool(verdict.value))
    return found


def _is_plainly_equal(final: str, answer: str) -> bool:
    """Whether two answers are equal as text or as plain numbers."""
    if final and normal_text(final) == normal_text(answer):
        return True
    value = as_number(final)
    return value is not None and value == as_number(answer)
