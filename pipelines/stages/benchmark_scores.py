"""Benchmarks of an evaluation: all settings are checked first, then each benchmark runs."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.evals.availability import asked_here, check_lengths, unavailable
from pipelines.evals.cache import cache_path
from pipelines.evals.intervals import digest_of, task_score
from pipelines.evals.progress import EvalProgress
from pipelines.evals.sampling import sampled_scores
from pipelines.models.checkpoint import read_model_config
from pipelines.recipe.schema import BenchmarkConfig
from pipelines.run_dir.job import StageJob
from pipelines.run_dir.paths import read_json, write_text
from pipelines.stages.contamination import contaminated_bits
from pipelines.stages.task_scores import clean
from pipelines.training.ranks import is_main_rank, of_all_ranks


@dataclass
class Benchmarks:
    """The benchmarks of an evaluation."""

    folder: Path  # of the cached scores of finished benchmarks
    not_asked: dict[str, str]  # why a benchmark cannot run
    answers: dict[str, int] = field(default_factory=dict)  # number of answers of all others
    tasks: Any = None  # the harness's task index, if a benchmark can run


def find_benchmarks(job: StageJob) -> Benchmarks:
    """Load every benchmark that is not cached yet, and check its settings against its tasks.

    Raises:
        UserError: a task, version, metric or length does not fit, or the hub cannot be reached.
    """
    settings, root = job.config.eval, job.config.data_root
    found = Benchmarks(job.stage_dir.root / "benchmarks", unavailable(settings, root))
    asked = asked_here(settings, root)
    if not asked:
        return found
    from pipelines.evals import harness
    from pipelines.evals.benchmarks import task_manager
    from pipelines.evals.hub_refusal import loaded_or_refused

    longest = read_model_config(job.inputs["model"], "--model").get("max_position_embeddings")
    check_lengths(asked, settings.max_length or longest)
    rank = os.environ.get("RANK", "0")
    found.tasks = task_manager(settings, root, found.folder / f"tasks-{rank}")
    for name, benchmark in asked.items():
        done = cache_path(found.folder, name)
        if done.is_file():
            score = read_json(done)
            sampled = sum(one is not None for one in score.get("samples", []))
            found.answers[name] = int(score["questions"]) + benchmark.samples * sampled
            continue
        loaded, own = loaded_or_refused(name, benchmark, found.tasks, settings, root)
        # The first refusal on any rank counts: either all ranks run a benchmark or none does.
        if reason := next(filter(None, of_all_ranks(own)), ""):
            found.not_asked[name] = reason
            continue
        harness.check_fits(name, benchmark, loaded)
        found.answers[name] = sum(harness.num_answers(benchmark, t) for t in loaded.values())
    return found


def benchmark_scores(
    job: StageJob, found: Benchmarks, model: Any, tokenizer: Any, progress: EvalProgress
) -> dict[str, Any]:
    """Run the benchmarks, and return their scores by name."""
    from pipelines.evals import harness

    asked_model: Any = None
    scores: dict[str, Any] = {}
    for name, answers in found.answers.items():
        benchmark, path = job.config.eval.benchmarks[name], cache_path(found.folder, name)
        if path.is_file():
            scores[name] = read_json(path)
            progress.skip(answers)
            continue
        if asked_model is None:
            asked_model = _asked_model(job, model, tokenizer, progress)
        scores[name] = harness.ask(
            asked_model, name, benchmark, found.tasks, chat=job.chat,
            folder=found.folder / path.stem, progress=progress,
        )  # fmt: skip
        if is_main_rank():
            write_text(path, json.dumps(scores[name]))
    return _finished(job, scores)


def _finished(job: StageJob, scores: dict[str, Any]) -> dict[str, Any]:
    """Leave out contaminated questions if the recipe says so, and summarize the samples."""
    if "contamination" in job.inputs:
        contaminated = contaminated_bits(job.inputs["contamination"])
        if unchecked := scores.keys() - contaminated.keys():
            raise UserError(
                f"eval.contamination=leave_out: {', '.join(sorted(unchecked))} can run now, but "
                "could not when the contamination check ran. Remove the folder of the check, and "
                "run the command again."
            )
        scores = {name: _cleaned(name, s, contaminated[name]) for name, s in scores.items()}
    return {n: with_sampled(s, job.config.eval.benchmarks[n]) for n, s in scores.items()}


def with_sampled(score: dict[str, Any], benchmark: BenchmarkConfig) -> dict[str, Any]:
    """Replace the samples of a score by their summary, as results store it.

    `samples` has for each question the number of correct ones and their entropy, or None.
    """
    score = dict(score)
    samples = [one for one in score.pop("samples", []) if one is not None]
    if samples:
        entropies = [spread for _, spread in samples if spread is not None]
        score["sampled"] = sampled_scores([c for c, _ in samples], benchmark.samples, entropies)
        score["sampled_questions"] = len(samples)
    return score


def _cleaned(name: str, score: dict[str, Any], contaminated: str) -> dict[str, Any]:
    """The score of a benchmark on the questions that do not occur in training text."""
    bits = [int(bit) for bit in score["bits"]]
    left = clean(name, bits, contaminated)
    cleaned = {**score, **task_score(left), "left_out": len(bits) - len(left)}
    cleaned["questions_sha256"] = digest_of([score["questions_sha256"], contaminated])
    if "samples" in score:
        cleaned["samples"] = clean(name, score["samples"], contaminated)
    if "families" in score:
        start, families = 0, {}
        for family, whole in score["families"].items():
            own = range(start, start := start + whole["questions"])
            clean_bits = [bits[i] for i in own if contaminated[i] == "0"]
            accuracy = sum(clean_bits) / len(clean_bits) if clean_bits else None
            families[family] = {"accuracy": accuracy, "questions": len(clean_bits)}
        cleaned["families"] = families
    return cleaned


def _asked_model(job: StageJob, model: Any, tokenizer: Any, progress: EvalProgress) -> Any:
    from pipelines.evals.harness_models import TransformersModel, vllm_model

    settings = job.config.eval
    if settings.backend == "vllm":
        return vllm_model(job.inputs["model"], dtype=settings.dtype, max_length=settings.max_length)
    found = TransformersModel(
        pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size,
        max_length=settings.max_length or None,
    )  # fmt: skip
    found.on_share = progress.reached
    return found
