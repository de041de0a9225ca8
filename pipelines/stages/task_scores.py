"""Tasks of the built-in runner: ranks share the questions, and judge greedy answers and samples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch.distributed as dist

from pipelines.data.records import Problem
from pipelines.errors import UserError
from pipelines.evals.generation import Decoding, generate_answers
from pipelines.evals.intervals import digest_of, task_score
from pipelines.evals.progress import EvalProgress
from pipelines.evals.questions import family_of, prompt_ids, right_answers
from pipelines.evals.sampling import entropy, sampled_scores
from pipelines.recipe.schema import TaskConfig
from pipelines.rewards.exact import final_answer, normal_text
from pipelines.run_dir.job import StageJob
from pipelines.stages.contamination import contaminated_bits
from pipelines.training.ranks import of_all_ranks


def num_answers(name: str, task: TaskConfig, asked: list[Problem]) -> int:
    """Number of answers, greedy and sampled, to a task's questions."""
    return len(asked) + task.samples * len(_sampled(task, _families(name, task, asked)))


def task_scores(
    job: StageJob, name: str, asked: list[Problem], model: Any, tokenizer: Any,
    progress: EvalProgress,
) -> dict[str, Any]:  # fmt: skip
    """Run a task; return scores by family (or by task) with the bits of all questions in order."""
    task = job.config.eval.tasks[name]
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    mine = asked[rank::world]
    prompts = [prompt_ids(p.prompt, task, tokenizer, job.chat) for p in mine]
    batch_size = job.config.eval.batch_size
    decoding = Decoding(task.max_new_tokens, stop="" if job.chat else task.stop)
    progress.begin(name, len(asked))
    answers = generate_answers(
        model, tokenizer, prompts, decoding, batch_size=batch_size, on_share=progress.reached
    )
    found: list[Any] = [(*bit, None, None) for bit in right_answers(task, answers, mine)]
    families = _families(name, task, asked)
    if task.samples:
        numbers = _sampled(task, families)
        progress.begin(f"{name}, samples", task.samples * len(numbers))
        places = sorted(i // world for i in numbers if i % world == rank)
        sampled = replace(
            decoding, num_samples=task.samples, temperature=task.temperature, top_p=task.top_p
        )
        samples = generate_answers(
            model, tokenizer, [prompts[place] for place in places], sampled, batch_size=batch_size,
            seeds=[rank + place * world for place in places], on_share=progress.reached,
        )  # fmt: skip
        right = right_answers(task, samples, [mine[place] for place in places])
        for place, correct, given in zip(places, right, samples, strict=True):
            # Final answers are extracted as the `exact` reward does, without their steps.
            spread = entropy([normal_text(final_answer(answer)[0]) for answer in given])
            found[place] = (found[place][0], sum(correct), spread)
    gathered = of_all_ranks(found)
    check = job.inputs.get("contamination")
    contaminated = contaminated_bits(check) if check else None
    scores = {}
    for family, own in families.items():
        rows = [(asked[i], *gathered[i % world][i // world]) for i in own]
        left = rows if contaminated is None else clean(family, rows, contaminated[family])
        scores[family] = _score(left, task)
        if contaminated is not None:
            scores[family]["left_out"] = len(rows) - len(left)
    return scores


def clean(name: str, rows: list[Any], contaminated: str) -> list[Any]:
    """Return the rows of a task's questions that do not occur in training text.

    Args:
        contaminated: one character per question: "1" if it occurs in training text, else "0".

    Raises:
        UserError: every question is contaminated.
    """
    left = [row for row, found in zip(rows, contaminated, strict=True) if found == "0"]
    if not left:
        raise UserError(
            f"every question of {name} occurs in training text, so none is left to score. Set "
            "eval.contamination=report, or remove the task or the source."
        )
    return left


def _families(name: str, task: TaskConfig, asked: list[Problem]) -> dict[str, list[int]]:
    """The indices of the questions of each family."""
    families: dict[str, list[int]] = {}
    for i, problem in enumerate(asked):
        families.setdefault(family_of(problem, name, task), []).append(i)
    return families


def _sampled(task: TaskConfig, families: dict[str, list[int]]) -> list[int]:
    """The indices of the questions for which answers are sampled."""
    return [i for own in families.values() for i in own[: task.sampled_questions or None]]


def _score(rows: list[Any], task: TaskConfig) -> dict[str, Any]:
    score = task_score([bit for _, bit, _, _ in rows])
    score["questions_sha256"] = digest_of(f"{p.prompt}\n{p.answer}" for p, *_ in rows)
    sampled = [(correct, spread) for _, _, correct, spread in rows if correct is not None]
    if sampled:
        correct, entropies = (list(column) for column in zip(*sampled, strict=True))
        score["sampled"] = sampled_scores(correct, task.samples, entropies)
        score["sampled_questions"] = len(sampled)
    return score
