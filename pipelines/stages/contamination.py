"""Stage contamination: find evaluation questions in the text of the training stages.

It reads only data sources, loads no model, and runs on the first rank.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.evals.availability import asked_here, unavailable
from pipelines.evals.benchmarks import questions, task_manager
from pipelines.evals.contamination import Passage, Question, check
from pipelines.evals.hub_refusal import loaded_or_refused
from pipelines.evals.questions import evaluation_questions, heldout_documents, unpublished
from pipelines.evals.training_text import training_passages, training_source
from pipelines.run_dir import heartbeat
from pipelines.run_dir.job import StageJob
from pipelines.run_dir.paths import read_json


def run(job: StageJob) -> dict[str, Any]:
    """Report the questions found, by evaluation and training source, with one bit per question."""
    if int(os.environ.get("RANK", "0")):
        return {}
    settings = job.config.eval
    asked, not_checked = _benchmark_questions(job)
    evals = evaluation_questions(job.config) | asked
    tasks, texts = list(evals), heldout_documents(job.config)
    # The launcher passes the sources to check: those of the plan, or of the recipe.
    keys = [key for key in job.data_sha256 if not key.startswith("eval.")]
    sources = {
        key: {"passages": 0, "bytes": 0}
        for key in keys
        if training_source(job.config, key).weight > 0
    }
    read = {k: _counted(training_passages(job.config, k), count) for k, count in sources.items()}
    started, n = time.monotonic(), settings.contamination_ngram
    found = check(evals | texts, read, n=n, unpublished=unpublished(job.config))
    seconds = time.monotonic() - started
    for name, value in found.items():
        value["kind"] = "text" if name in texts else "task"
        print(f"{name}: {value['contaminated']} of {value['questions']} contaminated", flush=True)
    bits = {name: found[name]["bits"] for name in tasks}
    num_bytes = sum(count["bytes"] for count in sources.values())
    return {
        "ngram": n,
        "questions": sum(found[name]["questions"] for name in tasks),
        "contaminated": sum(found[name]["contaminated"] for name in tasks),
        "sources": sources,
        "megabytes_per_second": round(num_bytes / 1e6 / max(seconds, 1e-9), 2),
        "not_checked": not_checked,
        "bits_sha256": hashlib.sha256(json.dumps(bits, sort_keys=True).encode()).hexdigest(),
        "evals": found,
    }


def _benchmark_questions(job: StageJob) -> tuple[dict[str, list[Question]], dict[str, str]]:
    """The questions by benchmark, and the benchmarks that cannot be loaded, with the reason."""
    settings, root = job.config.eval, job.config.data_root
    found: dict[str, list[Question]] = {}
    reasons = unavailable(settings, root)
    if asked := asked_here(settings, root):
        tasks = task_manager(settings, root, job.stage_dir.root / "tasks")
        for name, benchmark in asked.items():
            loaded, reason = loaded_or_refused(name, benchmark, tasks, settings, root)
            if reason:
                reasons[name] = reason
            else:
                found[name] = questions(name, benchmark, loaded)
    return found, reasons


def contaminated_bits(result: Path) -> dict[str, str]:
    """By evaluation, the bits of a finished check: one per question, 1 if it is contaminated."""
    return {name: value["bits"] for name, value in read_json(result)["evals"].items()}


def _counted(passages: Iterator[Passage], count: dict[str, int]) -> Iterator[Passage]:
    """The same passages; they and their UTF-8 bytes are counted."""
    for passage in passages:
        count["passages"] += 1
        count["bytes"] += len(passage.text.encode())
        heartbeat.tick()
        yield passage
