"""Reward by comparison: 1.0 if the final answer of a completion equals the gold answer.

The final answer is found by the first rule that applies:
1. the rest of the line after the last `####`;
2. the rest of the line after the last `answer is` or `answer:` (case ignored);
3. the last line that is not blank.

If the gold answer is a number, a number in the final answer is compared by value: the first one
after a marker (rules 1 and 2), or the last one in the last line (rule 3). `$`, a percent sign and
thousands separators are ignored. Other answers are compared as text, ignoring case, white space,
surrounding quotes and a full stop.
"""

from __future__ import annotations

import re
from fractions import Fraction

_MARKERS = (re.compile(r"####"), re.compile(r"(?i)\banswer(?: is|:)"))
_NUMBER = re.compile(
    r"(?:(?<![\w)])-)?\$?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:/\d+)?"
)
_PLAIN_NUMBER = re.compile(r"[-+]?(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})(?:/\d{1,40})?")
_NOT_IN_NUMBER = str.maketrans("", "", "$,%")


def reward(completion: str, answer: str) -> float:
    """1.0 if the final answer equals the gold answer, else 0.0."""
    final, is_marked = final_answer(completion)
    gold = as_number(answer)
    if gold is None:
        return float(bool(normal_text(final)) and normal_text(final) == normal_text(answer))
    found = _NUMBER.findall(final)
    if not found:
        return 0.0
    return float(as_number(found[0 if is_marked else -1]) == gold)


def final_answer(completion: str) -> tuple[str, bool]:
    """The final answer of a completion, and whether a marker precedes it."""
    for marker in _MARKERS:
        end = max((match.end() for match in marker.finditer(completion)), default=-1)
        if end >= 0:
            return completion[end:].partition("\n")[0].strip(), True
    lines = [line for line in completion.splitlines() if line.strip()]
    return (lines[-1].strip() if lines else ""), False


def as_number(text: str) -> Fraction | None:
    """The value of an integer, decimal or simple fraction; None for other text."""
    plain = text.strip().rstrip(".").translate(_NOT_IN_NUMBER).strip()
    if not _PLAIN_NUMBER.fullmatch(plain):
        return None
    top, _, bottom = plain.partition("/")
    return Fraction(top) / int(bottom or 1) if int(bottom or 1) else None


def normal_text(text: str) -> str:
    """Normalize an answer: drop case, extra white space, quotes and a final full stop."""
    return " ".join(text.lower().split()).rstrip(".").strip("\"' ")
