"""Stage eval: greedy accuracy per task, held-out bits per byte per domain, lm-eval tasks.

Whole weights on each rank; the ranks split the questions. No DeepSpeed engine.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from pipelines.data.tokenizer import load_tokenizer
from pipelines.errors import UserError
from pipelines.evals.bits_per_byte import bits_per_byte
from pipelines.evals.generation import greedy_answers
from pipelines.evals.intervals import macro_average, wilson
from pipelines.evals.questions import family_of, heldout_text, task_problems
from pipelines.objectives.token_nll import score_tokens_in_forward
from pipelines.rewards import judge
from pipelines.schema import TaskConfig
from pipelines.stages import StageJob
from pipelines.stages.chat_records import user
from pipelines.stages.contamination import contaminated_bits

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def run(job: StageJob) -> dict[str, Any]:
    """Scores of one model; written to the result, with one bit per question."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        # The main rank alone runs lm-eval; the others wait for it as long as it takes.
        dist.init_process_group("gloo", timeout=timedelta(days=7))
    config, settings = job.config, job.config.eval
    model, tokenizer = _load(job)
    tasks: dict[str, Any] = {}
    for name, task in settings.tasks.items():
        if task.enabled:
            tasks |= _task_scores(job, name, task, model, tokenizer, rank, world)
    scores: dict[str, Any] = {"tasks": tasks}
    if tasks:
        mean, half = macro_average([(t["accuracy"], t["questions"]) for t in tasks.values()])
        scores["average"], scores["average_half_interval"] = mean, half
    if rank == 0:
        scores["bits_per_byte"] = _bits_per_byte(job, model, tokenizer)
        if settings.lm_eval_tasks:
            from pipelines.evals.harness import lm_eval_scores

            scores["lm_eval"] = lm_eval_scores(
                job.inputs["model"],
                settings,
                context_length=config.context_length,
                chat=job.chat,
            )
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()
    return {"chat": job.chat, "world_size": world, **scores}


def _load(job: StageJob) -> tuple[Any, Any]:
    config = job.config
    device = "cpu"
    if torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    common = {"trust_remote_code": config.trust_remote_code}
    tokenizer = load_tokenizer(job.inputs["model"], **common)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(
        job.inputs["model"],
        dtype=DTYPES[config.eval.precision],
        attn_implementation=config.model.attention,
        **common,
    ).to(device)
    return model.eval(), tokenizer


def _task_scores(
    job: StageJob, name: str, task: TaskConfig, model: Any, tokenizer: Any, rank: int, world: int
) -> dict[str, Any]:
    """Accuracy by family (or by task), with the bits of all questions in their order."""
    config = job.config
    asked = task_problems(name, task, config.data_root)
    mine = asked[rank::world]
    answers = greedy_answers(
        model,
        tokenizer,
        [_prompt_ids(p.prompt, task, tokenizer, job.chat) for p in mine],
        max_new_tokens=task.max_new_tokens,
        batch_size=config.eval.batch_size,
        stop="" if job.chat else task.stop,
    )
    reward = judge(task.source.reward)
    bits = [int(reward(a, p.answer) > 0.5) for a, p in zip(answers, mine, strict=True)]
    gathered: list[list[int]] = [bits]
    if world > 1:
        gathered = [[] for _ in range(world)]
        dist.all_gather_object(gathered, bits)
    families: dict[str, list[int]] = {}
    for i, problem in enumerate(asked):
        family = family_of(problem, name, task)
        families.setdefault(family, []).append(gathered[i % world][i // world])
    if "contamination" not in job.inputs:
        return {family: _score(found) for family, found in families.items()}
    left_out = contaminated_bits(job.inputs["contamination"])
    return {
        family: clean_score(family, found, left_out[family]) for family, found in families.items()
    }


def clean_score(name: str, bits: list[int], contaminated: str) -> dict[str, Any]:
    """The score of the questions that are not contaminated, and how many are left out.

    Raises:
        UserError: none is left.
    """
    kept = [bit for bit, found in zip(bits, contaminated, strict=True) if found == "0"]
    if not kept:
        raise UserError(
            f"every question of {name} stands in training text, so none is left to score. Set "
            "eval.contamination=report, or take the task or the source out."
        )
    return {**_score(kept), "left_out": len(bits) - len(kept)}


def _score(bits: list[int]) -> dict[str, Any]:
    return {
        "accuracy": sum(bits) / len(bits),
        "interval": wilson(sum(bits), len(bits)),
        "questions": len(bits),
        "bits": "".join(map(str, bits)),
    }


def _prompt_ids(prompt: str, task: TaskConfig, tokenizer: Any, chat: bool) -> list[int]:
    if chat:
        text = tokenizer.apply_chat_template(
            user(prompt), tokenize=False, add_generation_prompt=True
        )
    else:
        text = task.base_template.replace("{prompt}", prompt)
    ids: list[int] = tokenizer(text, add_special_tokens=not chat).input_ids
    return ids


def _bits_per_byte(job: StageJob, model: Any, tokenizer: Any) -> dict[str, Any]:
    config, settings = job.config, job.config.eval
    score_tokens_in_forward(model, len(tokenizer), chunk_bytes=config.chunk_bytes)
    return {
        name: bits_per_byte(
            model,
            tokenizer,
            heldout_text(name, source, config.data_root),
            context_length=config.context_length,
            max_tokens=settings.bits_per_byte_tokens,
            batch_size=settings.batch_size,
        )
        for name, source in settings.bits_per_byte.items()
    }
