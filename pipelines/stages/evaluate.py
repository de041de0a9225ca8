"""Stage eval: accuracy by task and benchmark, and held-out bits per byte by domain.

Each rank loads the whole model, without a DeepSpeed engine, and the ranks split the questions.
Finished parts are cached in files, so that a killed evaluation resumes with the next part.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from pipelines.evals.availability import nothing_asked
from pipelines.evals.bits_per_byte import bits_per_byte
from pipelines.evals.cache import cache_path, cached
from pipelines.evals.intervals import macro_average
from pipelines.evals.progress import EvalProgress
from pipelines.evals.questions import heldout_text, task_problems
from pipelines.models.loading import load_frozen
from pipelines.models.tokenizer import load_tokenizer
from pipelines.objectives.token_nll import score_tokens_in_forward
from pipelines.run_dir.job import StageJob
from pipelines.run_dir.paths import remove_parts
from pipelines.stages.benchmark_scores import benchmark_scores, find_benchmarks
from pipelines.stages.task_scores import num_answers, task_scores
from pipelines.training.ranks import without_engine


def run(job: StageJob) -> dict[str, Any]:
    """Evaluate one model; the result has scores and one bit per question."""
    with without_engine() as (rank, world):
        return {"chat": job.chat, "world_size": world, **_scores(job, is_main=rank == 0)}


def _scores(job: StageJob, *, is_main: bool) -> dict[str, Any]:
    settings, root = job.config.eval, job.config.data_root
    folders = {part: job.stage_dir.root / part for part in ("tasks", "benchmarks", "bits_per_byte")}
    if is_main:
        for folder in folders.values():
            remove_parts(folder)
    asked = {n: task_problems(n, task, root) for n, task in settings.tasks.items() if task.enabled}
    benchmarks = find_benchmarks(job)
    if not asked and not benchmarks.answers and not settings.bits_per_byte:
        raise nothing_asked(benchmarks.not_asked)
    counts = {name: num_answers(name, settings.tasks[name], p) for name, p in asked.items()}
    total = sum(counts.values()) + sum(benchmarks.answers.values()) + len(settings.bits_per_byte)
    progress = EvalProgress(job.stage_dir.metrics if is_main else None, total)
    config, folder = job.config, job.inputs["model"]
    tokenizer = load_tokenizer(folder, trust_remote_code=bool(config.trust_remote_code))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = load_frozen(folder, settings.dtype, config)

    def kept(part: str, name: str, answers: int, score: Callable[..., Any], *args: Any) -> Any:
        """A score from its file, or one that is computed now."""
        path = cache_path(folders[part], name)
        if path.is_file():
            progress.skip(answers)
        make = partial(score, job, name, *args, model, tokenizer, progress)
        return cached(path, make, writes=is_main)

    tasks: dict[str, Any] = {}
    for name, problems in asked.items():
        tasks |= kept("tasks", name, counts[name], task_scores, problems)
    if benchmarks.answers:
        tasks |= benchmark_scores(job, benchmarks, model, tokenizer, progress)
    scores: dict[str, Any] = {"tasks": tasks, "not_asked": benchmarks.not_asked}
    if tasks:
        mean, half = macro_average([(t["accuracy"], t["questions"]) for t in tasks.values()])
        scores["average"], scores["average_half_interval"] = mean, half
    if is_main:
        score_tokens_in_forward(model, len(tokenizer), chunk_bytes=config.chunk_bytes)
        texts = {n: kept("bits_per_byte", n, 1, _bits_per_byte) for n in settings.bits_per_byte}
        scores["heldout_blocks"] = {name: text.pop("blocks", {}) for name, text in texts.items()}
        scores["bits_per_byte"] = texts
        progress.end()
    return scores


def _bits_per_byte(
    job: StageJob, name: str, model: Any, tokenizer: Any, progress: EvalProgress
) -> dict[str, Any]:
    config, settings = job.config, job.config.eval
    progress.begin(f"bits per byte of {name}", 1)
    return bits_per_byte(
        model, tokenizer, heldout_text(name, settings.bits_per_byte[name], config.data_root),
        named=name, sequence_length=config.sequence_length,
        max_tokens=settings.bits_per_byte_tokens, batch_size=settings.batch_size,
    )  # fmt: skip
