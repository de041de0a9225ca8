"""The reward of programs, and the reference solutions of HumanEval and MBPP through the checker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.data.records import problems
from pipelines.recipe.schema import SourceConfig
from pipelines.rewards import judge_all, sandbox
from pipelines.rewards.code import program
from tests import gold_code

pytestmark = pytest.mark.skipif(bool(sandbox.unavailable()), reason=sandbox.unavailable())
TESTS = "assert double(2) == 4\nassert double('a') == 'aa'"
RIGHT = "def double(x):\n    return x * 2\n"

COMPLETIONS = [
    (RIGHT, 1),
    (f"Like this:\n```python\n{RIGHT}```\nDone.", 1),
    (f"```py\ndef double(x): return 0\n```\nNo:\n```Python\n{RIGHT}\n```", 1),
    (f"```python\n{RIGHT}```\n```python\ndef double(x): return 0\n```", 0),
    (f"```python\n{RIGHT}```\nwhich prints\n```text\n4\n```\nor\n```\n5\n```", 1),
    (f"```\n{RIGHT}```", 1),
    (f"```python\n{RIGHT}", 1),
    ("def double(x): return x + 2", 0),
    ("double it", 0),
    ("", 0),
    ("print('passed')\nraise SystemExit(0)", 0),
]


def test_values() -> None:
    given = [(completion, TESTS) for completion, _ in COMPLETIONS]
    assert judge_all("code", given) == [float(value) for _, value in COMPLETIONS]
    assert judge_all("code", []) == []


def test_program_of_a_completion() -> None:
    assert program("x = 1") == "x = 1"
    assert program("a\n```python\nx = 1\n```\n") == "x = 1\n"


def test_rlvr_judges_each_completion_by_its_kind() -> None:
    from pipelines.stages.rlvr import verified_answer

    said = [RIGHT, "#### 7", "def double(x): pass", "#### 8"]
    completions = [[{"role": "assistant", "content": text}] for text in said]
    answers = [TESTS, "7", TESTS, "7"]
    kinds = ["code", "exact", "code", "exact"]
    assert verified_answer(completions, answers, kinds) == [1.0, 1.0, 0.0, 0.0]


def test_a_source_with_tests_as_answers(tmp_path: Path) -> None:
    record = {"text": "Double it.", "code": RIGHT, "test_list": TESTS.splitlines()}
    (tmp_path / "mine.jsonl").write_text(json.dumps(record) + "\n")
    source = SourceConfig(
        path="mine.jsonl",
        prompt="{{ text }}",
        answer="{{ test_list[0] }}\n{{ test_list[1] }}",
        reward="code",
    )
    (problem,) = problems({"mine": source}, tmp_path, 0)
    assert judge_all(problem.reward, [(RIGHT, problem.answer), ("", problem.answer)]) == [1.0, 0.0]


@pytest.mark.parametrize(("benchmark", "step"), [("humaneval", 8), ("mbpp", 40)])
def test_reference_solutions_pass_and_nothing_fails(benchmark: str, step: int) -> None:
    path = {"humaneval": gold_code.HUMANEVAL, "mbpp": gold_code.MBPP}[benchmark]
    if not (gold_code.DATA / path).exists():
        pytest.skip(f"needs {path} below REMIT_DATA")
    sample = list(getattr(gold_code, benchmark)())[::step]
    assert len(sample) >= 20 and gold_code.wrong(sample) == []
