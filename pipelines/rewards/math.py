"""Reward by mathematical equality, through math-verify.

A completion is right if its final answer (`exact` says which text that is) is the gold answer as
text or as a plain number, which also covers answers that are no mathematics, like `True`. Else
math-verify compares: what follows the last `####`, or without one the expression that it finds.
What the library cannot parse, or not within its time limit, is wrong.
"""

from __future__ import annotations

import logging
import re
import threading
from functools import lru_cache
from typing import Any

from math_verify import parse, verify
from math_verify.errors import TimeoutException

from pipelines.rewards.exact import as_number, final_answer, normal_text

logger = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 1
# Only the end can hold the answer, and parsing time grows with the text.
_MAX_CHARACTERS = 4000
_MARKER = "####"
# Words outside a LaTeX command: such an answer is prose around an expression.
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")

_num_failures = 0


def reward(completion: str, answer: str) -> float:
    """1.0 where the completion's final answer equals the gold answer mathematically, else 0.0."""
    text = completion[-_MAX_CHARACTERS:]
    final, _ = final_answer(text)
    if final and normal_text(final) == normal_text(answer):
        return 1.0
    value = as_number(final)
    if value is not None and value == as_number(answer):
        return 1.0
    try:
        found = _parse(final) if _MARKER in text else parse(text, parsing_timeout=_timeout())
        return float(verify(_parse_gold(answer), found, timeout_seconds=_timeout()))
    except (Exception, TimeoutException) as error:  # odd input must not end a training run
        _count_failure(error)
        return 0.0


@lru_cache(maxsize=100_000)
def _parse_gold(answer: str) -> Any:
    return _parse(answer)


def _parse(expression: str) -> Any:
    # A bare expression is read whole only inside LaTeX marks: from a bare 2x+3 the parser takes 2.
    marked = "$" in expression or "\\boxed" in expression or _WORD.search(expression)
    found = [] if marked else parse(f"${expression}$", parsing_timeout=_timeout())
    return found or parse(expression, parsing_timeout=_timeout())


def _timeout() -> int | None:
    # The limits of math-verify are signals, which only the main thread can take.
    on_main = threading.current_thread() is threading.main_thread()
    return _TIMEOUT_SECONDS if on_main else None


def _count_failure(error: BaseException) -> None:
    global _num_failures
    _num_failures += 1
    if _num_failures & (_num_failures - 1) == 0:
        logger.warning(
            "math-verify failed on %d completions so far, judged as wrong; the last: %s: %s",
            _num_failures,
            type(error).__name__,
            str(error)[:200],
        )
