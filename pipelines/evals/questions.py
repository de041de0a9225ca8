"""The questions of the built-in tasks, in the same order for every model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pipelines.data import templates
from pipelines.data.chat import user
from pipelines.data.records import Problem, documents, problems
from pipelines.evals.contamination import Question
from pipelines.recipe.schema import Config, SourceConfig, TaskConfig
from pipelines.rewards import judge_all

# The same questions in the same order for every model and every seed of training.
QUESTION_ORDER_SEED = 0


def task_problems(name: str, task: TaskConfig, data_root: str) -> list[Problem]:
    """The questions of a task, at most `task.limit`."""
    source = replace(task.source, limit=task.limit) if task.limit else task.source
    return problems({name: source}, data_root, QUESTION_ORDER_SEED)


def family_of(problem: Problem, name: str, task: TaskConfig) -> str:
    """The name under which a question of task `name` is scored: its family, or the task."""
    return str(problem.record[task.split_by]) if task.split_by else name


def heldout_text(name: str, source: SourceConfig, data_root: str) -> Iterator[str]:
    """Held-out documents of a domain; files are read once, so that no text counts twice."""
    heldout = documents({name: source}, data_root, QUESTION_ORDER_SEED, repeat=False)
    return (document.text for document in heldout)


def characters_per_token(config: Config, source: SourceConfig) -> int:
    """Upper bound of the mean: 1 for the world's text in its own tokenizer, else 8 (our choice)."""
    return 1 if source.kind == config.tokenizer.kind == "world" else 8


def prompt_ids(prompt: str, task: TaskConfig, tokenizer: Any, chat: bool) -> list[int]:
    """The tokens of a question, in the chat template or in the task's own template."""
    if chat:
        turn = user(prompt)
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    else:
        text = templates.render(task.base_template, {"prompt": prompt})
    ids: list[int] = tokenizer(text, add_special_tokens=not chat).input_ids
    return ids


def right_answers(
    task: TaskConfig, answers: list[list[str]], asked: list[Problem]
) -> list[list[int]]:
    """Judge the answers: 1 for right and 0 for wrong, in the shape of `answers`."""
    pairs = [(a, p.answer) for given, p in zip(answers, asked, strict=True) for a in given]
    rewards = iter(judge_all(task.source.reward, pairs))
    return [[int(next(rewards) > 0.5) for _ in given] for given in answers]


def evaluation_questions(config: Config) -> dict[str, list[Question]]:
    """The questions of every enabled task, grouped by the name under which they are scored."""
    found: dict[str, list[Question]] = {}
    for name, task in config.eval.tasks.items():
        for problem in task_problems(name, task, config.data_root) if task.enabled else ():
            family = family_of(problem, name, task)
            asked = found.setdefault(family, [])
            asked.append(Question(f"{family}/{len(asked)}", problem.prompt, problem.answer))
    return found


def unpublished(config: Config) -> set[str]:
    """Names of the evaluations in the check whose source or benchmark has `publish: false`."""
    settings = config.eval
    found = {f"bits_per_byte.{d}" for d, s in settings.bits_per_byte.items() if not s.publish}
    found |= {name for name, benchmark in settings.benchmarks.items() if not benchmark.publish}
    for name, task in settings.tasks.items():
        if task.enabled and not task.source.publish:
            asked = task_problems(name, task, config.data_root)
            found |= {family_of(problem, name, task) for problem in asked}
    return found


def heldout_documents(config: Config) -> dict[str, list[Question]]:
    """Held-out text by `bits_per_byte.<domain>`; it covers at least the tokens that are scored."""
    found: dict[str, list[Question]] = {}
    for domain, source in config.eval.bits_per_byte.items():
        name, characters = f"bits_per_byte.{domain}", 0
        budget = config.eval.bits_per_byte_tokens * characters_per_token(config, source)
        taken = found.setdefault(name, [])
        for text in heldout_text(domain, source, config.data_root):
            taken.append(Question(f"{name}/{len(taken)}", text))
            characters += len(text)
            if characters >= budget:
                break
    return found
