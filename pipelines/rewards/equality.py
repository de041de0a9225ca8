"""Mathematical equality of two answers, through math-verify; runs in a verifier's worker alone."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from math_verify import parse, verify

_MARKER = "####"
# Words outside a LaTeX command: such an answer is prose around an expression.
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")


def equal(text: str, final: str, answer: str) -> bool:
    """Whether a completion's answer equals the gold answer.

    Args:
        text: the end of the completion.
        final: its final answer; counts alone where `text` marks one by `####`.
    """
    # No limits of the library's own: they are signals, and the worker has harder ones.
    found = _parse(final) if _MARKER in text else parse(text, parsing_timeout=None)
    return bool(verify(_parse_gold(answer), found, timeout_seconds=None))


@lru_cache(maxsize=10_000)
def _parse_gold(answer: str) -> Any:
    return _parse(answer)


def _parse(expression: str) -> Any:
    # A bare expression is read whole only inside LaTeX marks: from a bare 2x+3 the parser takes 2.
    marked = "$" in expression or "\\boxed" in expression or _WORD.search(expression)
    found = [] if marked else parse(f"${expression}$", parsing_timeout=None)
    return found or parse(expression, parsing_timeout=None)
