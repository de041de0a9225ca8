"""Mathematical equality of two answers, by math-verify; runs only in a verifier's worker."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from math_verify import parse, verify

_MARKER = "####"
# A word outside a LaTeX command: the answer is then prose around an expression.
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")


def equal(text: str, final: str, answer: str) -> bool:
    """Whether a completion's answer equals the gold answer.

    Args:
        text: the end of the completion.
        final: its final answer; used instead of `text` if `text` marks one with `####`.
    """
    # Turn off the library's timeouts: they use signals, and the worker has stricter limits.
    found = _parse(final) if _MARKER in text else parse(text, parsing_timeout=None)
    return bool(verify(_parse_gold(answer), found, timeout_seconds=None))


@lru_cache(maxsize=10_000)
def _parse_gold(answer: str) -> Any:
    return _parse(answer)


def _parse(expression: str) -> Any:
    # Put a bare expression in LaTeX marks: from 2x+3 without marks the parser reads only 2.
    marked = "$" in expression or "\\boxed" in expression or _WORD.search(expression)
    found = [] if marked else parse(f"${expression}$", parsing_timeout=None)
    return found or parse(expression, parsing_timeout=None)
