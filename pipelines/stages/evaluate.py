"""Stage eval: accuracy per task and benchmark, held-out bits per byte per domain.

Whole weights on each rank; the ranks split the questions. No DeepSpeed engine.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from pipelines.data.records import Problem
from pipelines.data.tokenizer import load_tokenizer
from pipelines.errors import UserError
from pipelines.evals.availability import asked_here, nothing_asked, unavailable
from pipelines.evals.benchmarks import task_manager
from pipelines.evals.bits_per_byte import bits_per_byte
from pipelines.evals.generation import Decoding, generate_answers
from pipelines.evals.hub_refusal import loaded_or_refused
from pipelines.evals.intervals import digest_of, macro_average, task_score
from pipelines.evals.questions import family_of, heldout_text, task_problems
from pipelines.evals.sampling import entropy, sampled_scores
from pipelines.objectives.token_nll import score_tokens_in_forward
from pipelines.rewards import judge_all
from pipelines.rewards.exact import final_answer, normal_text
from pipelines.run_dir import write_text
from pipelines.schema import BenchmarkConfig, TaskConfig
from pipelines.stages import StageJob
from pipelines.stages.chat_records import user
from pipelines.stages.contamination import contaminated_bits

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def run(job: StageJob) -> dict[str, Any]:
    """Scores of one model; written to the result, with one bit per question."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        # Ranks wait for the slowest as long as it takes.
        dist.init_process_group("gloo", timeout=timedelta(days=7))
    settings = job.config.eval
    model, tokenizer = _load(job)
    tasks: dict[str, Any] = {}
    for name, task in settings.tasks.items():
        if task.enabled:
            tasks |= _task_scores(job, name, task, model, tokenizer, rank, world)
    not_asked = unavailable(settings, job.config.data_root)
    if benchmarks := asked_here(settings, job.config.data_root):
        found, refused = _benchmark_scores(job, benchmarks, model, tokenizer, rank)
        tasks |= found
        not_asked |= refused
    if not tasks and not settings.bits_per_byte:
        raise nothing_asked(not_asked)
    scores: dict[str, Any] = {"tasks": tasks, "not_asked": not_asked}
    if tasks:
        mean, half = macro_average([(t["accuracy"], t["questions"]) for t in tasks.values()])
        scores["average"], scores["average_half_interval"] = mean, half
    if rank == 0:
        scores["bits_per_byte"] = _bits_per_byte(job, model, tokenizer)
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()
    return {"chat": job.chat, "world_size": world, **scores}


def _load(job: StageJob) -> tuple[Any, Any]:
    config = job.config
    device = "cpu"
    if torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    common = {"trust_remote_code": bool(config.trust_remote_code)}
    tokenizer = load_tokenizer(job.inputs["model"], **common)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(
        job.inputs["model"],
        dtype=DTYPES[config.eval.precision],
        attn_implementation=config.model.attention,
        use_safetensors=True,
        local_files_only=True,
        **common,
    ).to(device)
    return model.eval(), tokenizer


def _task_scores(
    job: StageJob, name: str, task: TaskConfig, model: Any, tokenizer: Any, rank: int, world: int
) -> dict[str, Any]:
    """Scores by family (or by task), with the bits of all questions in their order."""
    config = job.config
    asked = task_problems(name, task, config.data_root)
    mine = asked[rank::world]
    prompts = [prompt_ids(p.prompt, task, tokenizer, job.chat) for p in mine]
    batch_size = config.eval.batch_size
    decoding = Decoding(task.max_new_tokens, stop="" if job.chat else task.stop)
    answers = generate_answers(model, tokenizer, prompts, decoding, batch_size=batch_size)
    found: list[Any] = [(*bit, None, None) for bit in right_answers(task, answers, mine)]
    families: dict[str, list[int]] = {}
    for i, problem in enumerate(asked):
        families.setdefault(family_of(problem, name, task), []).append(i)
    if task.samples:
        numbers = [i for own in families.values() for i in own[: task.sampled_questions or None]]
        places = sorted(i // world for i in numbers if i % world == rank)
        drawn = generate_answers(
            model, tokenizer, [prompts[place] for place in places],
            replace(
                decoding, num_samples=task.samples, temperature=task.temperature, top_p=task.top_p
            ),
            batch_size=batch_size, seeds=[rank + place * world for place in places],
        )  # fmt: skip
        right = right_answers(task, drawn, [mine[place] for place in places])
        for place, correct, given in zip(places, right, drawn, strict=True):
            found[place] = (found[place][0], sum(correct), _answer_entropy(given))
    gathered = [found]
    if world > 1:
        gathered = [[] for _ in range(world)]
        dist.all_gather_object(gathered, found)
    rows = {
        family: [(asked[i], *gathered[i % world][i // world]) for i in own]
        for family, own in families.items()
    }
    if "contamination" not in job.inputs:
        return {family: _score(own, task) for family, own in rows.items()}
    contaminated = contaminated_bits(job.inputs["contamination"])
    scores = {}
    for family, own in rows.items():
        kept = clean(family, own, contaminated[family])
        scores[family] = {**_score(kept, task), "left_out": len(own) - len(kept)}
    return scores


def clean(name: str, rows: list[Any], contaminated: str) -> list[Any]:
    """What belongs to questions that do not stand in training text.

    Args:
        rows: one for each question of a task or family.
        contaminated: 1 for each question that does, else 0.

    Raises:
        UserError: none is left.
    """
    kept = [row for row, found in zip(rows, contaminated, strict=True) if found == "0"]
    if not kept:
        raise UserError(
            f"every question of {name} stands in training text, so none is left to score. Set "
            "eval.contamination=report, or take the task or the source out."
        )
    return kept


def right_answers(
    task: TaskConfig, answers: list[list[str]], asked: list[Problem]
) -> list[list[int]]:
    """1 for each right answer, else 0, in the shape of the answers."""
    judged = [(a, p.answer) for given, p in zip(answers, asked, strict=True) for a in given]
    bits = iter([int(reward > 0.5) for reward in judge_all(task.source.reward, judged)])
    return [[next(bits) for _ in given] for given in answers]


def _answer_entropy(answers: list[str]) -> float:
    """Of the final answers, as the `exact` reward reads them: the way to one does not count."""
    return entropy([normal_text(final_answer(answer)[0]) for answer in answers])


def _score(rows: list[Any], task: TaskConfig) -> dict[str, Any]:
    score = task_score([bit for _, bit, _, _ in rows])
    score["questions_sha256"] = digest_of(f"{p.prompt}\n{p.answer}" for p, *_ in rows)
    drawn = [(correct, spread) for _, _, correct, spread in rows if correct is not None]
    if drawn:
        correct, entropies = (list(column) for column in zip(*drawn, strict=True))
        score["sampled"] = sampled_scores(correct, task.samples, entropies)
        score["sampled_questions"] = len(drawn)
    return score


def _benchmark_scores(
    job: StageJob,
    benchmarks: dict[str, BenchmarkConfig],
    model: Any,
    tokenizer: Any,
    rank: int,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Scores by benchmark, and those that the hub refused, with its reason.

    Each is kept in a file of its own when it is done; a start after a kill goes on with the next.
    """
    from pipelines.evals import harness

    settings = job.config.eval
    _check_lengths(benchmarks, settings.max_length or model.config.max_position_embeddings)
    folder = job.stage_dir.root / "benchmarks"
    tasks = task_manager(settings, job.config.data_root, folder / f"tasks-{rank}")
    asked_model: Any = None
    scores: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for name, benchmark in benchmarks.items():
        kept = folder / f"{name}.json"
        if kept.is_file():
            scores[name] = json.loads(kept.read_text("utf-8"))
            continue
        if asked_model is None:
            asked_model = _asked_model(job, model, tokenizer)
        _, own = loaded_or_refused(name, benchmark, tasks, settings, job.config.data_root)
        if reason := _refusal(own):
            refused[name] = reason
            continue
        scores[name] = harness.ask(asked_model, name, benchmark, tasks, chat=job.chat)
        if rank == 0:
            write_text(kept, json.dumps(scores[name]))
    if "contamination" in job.inputs:
        contaminated = contaminated_bits(job.inputs["contamination"])
        unchecked = scores.keys() - contaminated.keys()
        if unchecked:
            raise UserError(
                f"eval.contamination=leave_out: {', '.join(sorted(unchecked))} could not be asked "
                "when the check ran, and can now. Remove the folder of the check, and run again."
            )
        scores = {name: _cleaned(name, s, contaminated[name]) for name, s in scores.items()}
    return scores, refused


def _refusal(own: str) -> str:
    """What the hub told any rank: all ask a benchmark, or none."""
    reasons = [own]
    if dist.is_initialized():
        reasons = [""] * dist.get_world_size()
        dist.all_gather_object(reasons, own)
    return next(filter(None, reasons), "")


def _cleaned(name: str, score: dict[str, Any], contaminated: str) -> dict[str, Any]:
    """The score of a benchmark on the questions that do not stand in training text."""
    bits = [int(bit) for bit in score["bits"]]
    kept = clean(name, bits, contaminated)
    cleaned = {**score, **task_score(kept), "left_out": len(bits) - len(kept)}
    cleaned["questions_sha256"] = digest_of([score["questions_sha256"], contaminated])
    if "families" in score:
        start, families = 0, {}
        for family, whole in score["families"].items():
            own = range(start, start := start + whole["questions"])
            left = [bits[i] for i in own if contaminated[i] == "0"]
            accuracy = sum(left) / len(left) if left else None
            families[family] = {"accuracy": accuracy, "questions": len(left)}
        cleaned["families"] = families
    return cleaned


def _asked_model(job: StageJob, model: Any, tokenizer: Any) -> Any:
    from pipelines.evals import harness

    settings = job.config.eval
    if settings.backend == "vllm":
        return harness.vllm_model(
            job.inputs["model"], precision=settings.precision, max_length=settings.max_length
        )
    return harness.TransformersModel(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=settings.batch_size,
        max_length=settings.max_length or None,
    )


def _check_lengths(benchmarks: dict[str, BenchmarkConfig], max_length: int) -> None:
    for name, benchmark in benchmarks.items():
        if benchmark.max_new_tokens >= max_length:
            raise UserError(
                f"eval.benchmarks.{name}.max_new_tokens = {benchmark.max_new_tokens} leaves no "
                f"room for a question in the {max_length} tokens that the model takes. Lower it, "
                "or raise eval.max_length for a model that can take more."
            )


def prompt_ids(prompt: str, task: TaskConfig, tokenizer: Any, chat: bool) -> list[int]:
    """The tokens of a question, through the chat template or through the task's own."""
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
