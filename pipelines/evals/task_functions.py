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
from collections.abc import Callable, Iterable
from typing import Any

from pipelines.rewards.sandbox import check_all
from pipelines.rewards.verifier import verdicts
from pipelines.run_dir import heartbeat

# The few-shot examples of MBPP's prompt (Austin et al. 2021, arXiv 2108.07732, section 2.1).
MBPP_EXAMPLES = (2, 3, 4)

Record = dict[str, Any]


def humaneval_verdicts(answers: list[list[str]], docs: list[Record]) -> list[list[bool]]:
    """Whether each program (the prompt followed by an answer) passes its record's test."""
    return _verdicts(
        answers, docs, lambda doc: (doc["prompt"], f"{doc['test']}\ncheck({doc['entry_point']})")
    )


def mbpp_verdicts(answers: list[list[str]], docs: list[Record]) -> list[list[bool]]:
    """Whether each answer passes the three tests that its prompt shows."""
    return _verdicts(
        answers, docs, lambda doc: ("", "\n".join([doc["test_setup_code"], *doc["test_list"][:3]]))
    )


def _verdicts(
    answers: list[list[str]],
    docs: list[Record],
    start_and_test: Callable[[Record], tuple[str, str]],
) -> list[list[bool]]:
    programs: list[tuple[str, str]] = []
    for found, doc in zip(answers, docs, strict=True):
        start, test = start_and_test(doc)
        programs += [(start + answer, test) for answer in found]
    outcomes = check_all(programs, on_verdict=heartbeat.tick)
    passed = iter([outcome.passed for outcome in outcomes])
    return [[next(passed) for _ in found] for found in answers]


def pass_at_1(references: list[str], predictions: list[list[bool]]) -> float:
    """1.0 if the first program passed, else 0.0. The verdict has used the references already."""
    return float(predictions[0][0])


def ifeval_results(doc: Record, results: list[str]) -> Record:
    """The metrics of IFEval for one answer; if judging it times out, all rules count as broken."""
    broken = [False] * len(doc["instruction_id_list"])
    wrong = {
        "prompt_level_strict_acc": False, "inst_level_strict_acc": broken,
        "prompt_level_loose_acc": False, "inst_level_loose_acc": broken,
    }  # fmt: skip
    return _results("ifeval", doc, results, wrong)


def minerva_results(doc: Record, results: list[str]) -> Record:
    """The metrics of MATH for one answer; if judging it times out, it counts as wrong."""
    return _results("minerva", doc, results, {"exact_match": 0, "math_verify": 0})


def _results(kind: str, doc: Record, results: list[str], wrong: Record) -> Record:
    (verdict,) = verdicts(kind, [(doc, results)])
    found: Record = wrong if verdict.value is None else verdict.value
    return found


def mbpp_examples(prompt_split: Iterable[Record]) -> list[Record]:
    """The few-shot examples among the records of MBPP's split `prompt`."""
    return [{**r, "is_fewshot": True} for r in prompt_split if r["task_id"] in MBPP_EXAMPLES]


def gpqa_choices(records: Any) -> Any:
    """Give each GPQA record a key and four choices, whose order depends only on the question."""
    return records.map(_with_choices)


def _with_choices(record: Record) -> dict[str, str]:
    right = _plain(record["Correct Answer"])
    choices = [right, *(_plain(record[f"Incorrect Answer {i}"]) for i in (1, 2, 3))]
    order = random.Random(record["Question"]).sample(range(4), 4)
    named = {f"choice{place + 1}": choices[i] for place, i in enumerate(order)}
    return {**named, "answer": f"({'ABCD'[order.index(0)]})"}


def _plain(text: str | None) -> str:
    return (text or " ").strip().replace(" [title]", ". ").replace("  ", " ")
