"""Accuracy along the annealing: every snapshot answers the first questions of each family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from pipelines.data.records import Problem
from pipelines.evals.generation import Decoding, generate_answers
from pipelines.evals.intervals import macro_average, task_score
from pipelines.evals.questions import family_of, prompt_ids, right_answers, task_problems
from pipelines.recipe.schema import Config, TaskConfig


@dataclass(frozen=True)
class Asked:
    """The questions of one task, each with the name of the family under which it is scored."""

    task: TaskConfig
    problems: list[Problem]
    families: list[str]


def first_questions(config: Config) -> list[Asked]:
    """The first `analysis.accuracy_questions` of each family of the enabled tasks."""
    most, found = config.analysis.accuracy_questions, []
    for name, task in config.eval.tasks.items():
        if not (most and task.enabled):
            continue
        asked = Asked(task, [], [])
        for problem in task_problems(name, task, config.data_root):
            family = family_of(problem, name, task)
            if asked.families.count(family) < most:
                asked.problems.append(problem)
                asked.families.append(family)
        found.append(asked)
    return found


def scores_of(
    model: Any, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Asked], batch_size: int
) -> dict[str, Any]:
    """Judge a model's greedy answers (no chat template); return scores by family and average."""
    tasks: dict[str, Any] = {}
    for each in asked:
        prompts = [prompt_ids(p.prompt, each.task, tokenizer, False) for p in each.problems]
        decoding = Decoding(each.task.max_new_tokens, stop=each.task.stop)
        answers = generate_answers(model, tokenizer, prompts, decoding, batch_size=batch_size)
        bits: dict[str, list[int]] = {}
        judged = right_answers(each.task, answers, each.problems)
        for family, (bit,) in zip(each.families, judged, strict=True):
            bits.setdefault(family, []).append(bit)
        tasks |= {family: task_score(own) for family, own in bits.items()}
    mean, half = macro_average([(t["accuracy"], t["questions"]) for t in tasks.values()])
    return {"average": mean, "average_half_interval": half, "tasks": tasks}
