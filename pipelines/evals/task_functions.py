"""Functions that our task files for lm-evaluation-harness use in place of the harness's own.

- IFEval and MATH: the harness's judges, run in child processes that can be killed, since some
  answers make them run forever.
- HumanEval and MBPP: the harness runs generated code in the evaluating process and downloads its
  judge from a hub; here the sandbox runs and judges the code.
- GPQA: the harness (0.4.13) shuffles the choices each time it reads the records, once for the
  prompts and once for the key, so that right answers count as wrong. Here the order is fixed.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from pipelines.rewards.sandbox import check_all
from pipelines.rewards.verifier import verdicts
from pipelines.run_dir import heartbeat

# The few-shot examples of MBPP's prompt (Austin et al. 2021, arXiv 2108.07732, section 2.1).
MBPP_EXAMPLES = (2, 3, 4)


def humaneval_verdicts(answers: list[list[str]], docs: list[dict[str, Any]]) -> list[list[bool]]:
    """Whether each program (the prompt followed by the answer) passes the record's test.

    Args:
        answers: completions of each record.
    """
    programs = [
        (doc["prompt"] + answer, f"{doc['test']}\ncheck({doc['entry_point']})")
        for found, doc in zip(answers, docs, strict=True)
        for answer in found
    ]
    return _verdicts(programs, answers)


def mbpp_verdicts(answers: list[list[str]], docs: list[dict[str, Any]]) -> list[list[bool]]:
    """Whether each answer passes the three tests that its prompt shows.

    Args:
        answers: completions of each record.
    """
    programs = [
        (answer, "\n".join([doc["test_setup_code"], *doc["test_list"][:3]]))
        for found, doc in zip(answers, docs, strict=True)
        for answer in found
    ]
    return _verdicts(programs, answers)


def _verdicts(programs: list[tuple[str, str]], answers: list[list[str]]) -> list[list[bool]]:
    outcomes = check_all(programs, on_verdict=heartbeat.tick)
    passed = iter([outcome.passed for outcome in outcomes])
    return [[next(passed) for _ in found] for found in answers]


def pass_at_1(references: list[str], predictions: list[list[bool]]) -> float:
    """1.0 if the first program passed, else 0.0. The verdict has used the references already."""
    return float(predictions[0][0])


def ifeval_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """The metrics of IFEval for one answer; if judging it times out, all rules count as broken."""
    broken = [False] * len(doc["instruction_id_list"])
    return _results(
        "ifeval", doc, results,
        {
            "prompt_level_strict_acc": False, "inst_level_strict_acc": broken,
            "prompt_level_loose_acc": False, "inst_level_loose_acc": broken,
        },
    )  # fmt: skip


def minerva_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """The metrics of MATH for one answer; if judging it times out, it counts as wrong."""
    return _results("minerva", doc, results, {"exact_match": 0, "math_verify": 0})


def _results(
    kind: str, doc: dict[str, Any], results: list[str], wrong: dict[str, Any]
) -> dict[str, Any]:
    (verdict,) = verdicts(kind, [(doc, results)])
    found: dict[str, Any] = wrong if verdict.value is None else verdict.value
    return found


def mbpp_examples(prompt_split: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The few-shot examples among the records of MBPP's split `prompt`."""
    return [
        {**record, "is_fewshot": True}
        for record in prompt_split
        if record["task_id"] in MBPP_EXAMPLES
    ]


def gpqa_choices(records: Any) -> Any:
    """Give each GPQA record four choices, in an order that depends only on the question, and a key.

    Args:
        records: a data set with the columns of the published files.
    """
    return records.map(_with_choices)


def _with_choices(record: dict[str, Any]) -> dict[str, str]:
    right = _plain(record["Correct Answer"])
    choices = [right, *(_plain(record[f"Incorrect Answer {i}"]) for i in (1, 2, 3))]
    order = random.Random(record["Question"]).sample(range(4), 4)
    named = {f"choice{place + 1}": choices[i] for place, i in enumerate(order)}
    return {**named, "answer": f"({'ABCD'[order.index(0)]})"}


def _plain(text: str | None) -> str:
    return (text or " ").strip().replace(" [title]", ". ").replace("  ", " ")
