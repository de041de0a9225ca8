"""Rewards by value."""

from __future__ import annotations

import subprocess
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import world
from pipelines.errors import UserError
from pipelines.rewards import judge_all, sandbox

EXACT = [
    ("so 24\n#### 72", "72", 1),
    ("#### 72\nand 5 more", "72", 1),
    ("#### 1 #### 72", "72", 1),
    ("#### $1,234.00", "1234", 1),
    ("#### 1234", "$1,234", 1),
    ("#### 24", "72", 0),
    ("The answer is: 72 clips, not 24.", "72", 1),
    ("the ANSWER IS 0.50", "1/2", 1),
    ("She sold 24 + 48 = 72 clips.", "72", 1),
    ("72\nso there were 24", "72", 0),
    ("10-5", "-5", 0),
    ("#### -$5", "-5", 1),
    ("#### 5", "-5", 0),
    ("#### 172", "72", 0),
    ("#### 72.5", "72", 0),
    ("#### 1/0", "72", 0),
    ("  Yes. ", "yes", 1),
    ("no\n\nyes", "no", 0),
    ("The answer is 'blue'", "Blue", 1),
    ("", "72", 0),
    ("", "", 0),
    ("#### ", "72", 0),
]

MATH = [
    ("so 24\n#### 72", "72", 1),
    ("#### 72\nand 5 more", "72", 1),
    ("#### $1,234.00", "1234", 1),
    (r"hence \boxed{\frac12}", r"\frac{1}{2}", 1),
    (r"hence \boxed{\frac12}", "0.5", 1),
    (r"hence \boxed{\frac13}", "0.5", 0),
    ("$3+2x$", "2x+3", 1),
    ("#### 3 + 2x", "2x+3", 1),
    ("$2x+4$", "2x+3", 0),
    ("the answer is 7", "7", 1),
    ("$(1, 2)$", "(1,2)", 1),
    ("#### 5", "-5", 0),
    ("", "3", 0),
    ("3", "", 0),
    ("2x+3", "3", 0),
    ("The answer is True.", "True", 1),
    ("#### b", "B", 1),
    ("#### False", "True", 0),
]


def judged(kind: str, completion: str, answer: str) -> float:
    return judge_all(kind, [(completion, answer)])[0]


@pytest.mark.parametrize(("completion", "answer", "value"), EXACT)
def test_exact(completion: str, answer: str, value: float) -> None:
    assert judged("exact", completion, answer) == value


@pytest.mark.parametrize(("completion", "answer", "value"), MATH)
def test_math(completion: str, answer: str, value: float) -> None:
    assert judged("math", completion, answer) == value


@settings(max_examples=50, deadline=None)
@given(
    st.text(max_size=30, alphabet="0123456789\\{}$^_+-*/=()#., abfrcx!\n"),
    st.sampled_from(["3", r"\pi"]),
)
def test_odd_text_is_judged_without_error(completion: str, answer: str) -> None:
    assert judged("exact", completion, answer) in (0.0, 1.0)
    assert judged("math", completion, answer) in (0.0, 1.0)


@pytest.mark.parametrize(
    "completion",
    ["{" * 500, r"\frac" * 300, "1" * 5000, "$" + "(" * 50, "\x00", r"$\begin{matrix}$", "#### $"],
)
def test_odd_mathematics_is_wrong(completion: str) -> None:
    assert judged("math", completion, "3") == 0.0


def test_endless_mathematics_is_cut_off() -> None:
    start = time.monotonic()
    assert judged("math", "$9^{9^{9^{9}}}$", "3") == 0.0
    assert time.monotonic() - start < 10


def test_math_works_beside_the_main_thread() -> None:
    found: list[float] = []
    completions = (r"\boxed{\frac24}", r"\boxed{\frac25}")
    thread = threading.Thread(
        target=lambda: found.extend(judged("math", c, r"\frac{1}{2}") for c in completions)
    )
    thread.start()
    thread.join()
    assert found == [1.0, 0.0]


def test_world_follows_the_worlds_rule() -> None:
    for record, _ in zip(world.records("eval", 0), range(50), strict=False):
        assert judged("world", record["response"], record["answer"]) == 1.0
        assert judged("world", "", record["answer"]) == 0.0


def test_unknown_kind() -> None:
    with pytest.raises(UserError, match="choose world, math, exact or code"):
        judge_all("maths", [])


def test_where_the_kernel_has_namespaces_the_sandbox_starts() -> None:
    probe = ["unshare", "--user", "--map-root-user", "--pid", "--mount", "--net", "--fork", "true"]
    tried = subprocess.run(probe, capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no namespaces here: {tried.stderr.strip()}")
    assert sandbox.unavailable() == "", "a fault of ours, which would skip every other test of it"
