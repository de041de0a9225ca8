"""Functions that our task files for lm-evaluation-harness name in the place of its own.

HumanEval and MBPP: the harness runs generated code in the process that evaluates, and loads its
judge from a hub; here the sandbox judges. GPQA: the harness (0.4.13) shuffles the choices anew
whenever it reads the records, once for the prompts and once for the key, so that right answers
count as wrong.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from pipelines.rewards.sandbox import check

# The worked examples of MBPP's prompt (Austin et al. 2021, arXiv 2108.07732, section 2.1).
MBPP_EXAMPLES = (2, 3, 4)


def pass_at_1(references: list[str], predictions: list[Any]) -> float:
    """1.0 where the program passes the tests, else 0.0.

    Args:
        references: one text of tests.
        predictions: one program, or a list of one.
    """
    program = predictions[0] if isinstance(predictions[0], str) else predictions[0][0]
    return float(check(program, references[0]).passed)


def complete_prompts(answers: list[list[str]], docs: list[dict[str, Any]]) -> list[list[str]]:
    """HumanEval: a program is the prompt, continued by the answer."""
    return [
        [doc["prompt"] + answer for answer in found]
        for found, doc in zip(answers, docs, strict=True)
    ]


def mbpp_examples(prompt_split: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The worked examples among the records of MBPP's split `prompt`."""
    return [
        {**record, "is_fewshot": True}
        for record in prompt_split
        if record["task_id"] in MBPP_EXAMPLES
    ]


def gpqa_choices(records: Any) -> Any:
    """GPQA: four choices in an order that depends on the question alone, and the right letter.

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
