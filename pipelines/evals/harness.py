"""Run lm-evaluation-harness as a library, one benchmark at a time.

The harness builds the prompts, extracts the answers and judges them. The result has one bit per
question, as that of the built-in tasks.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import torch.distributed as dist
from lm_eval import evaluator
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.tasks import TaskManager

from pipelines.errors import UserError
from pipelines.evals.benchmarks import leaves
from pipelines.evals.cache import cache_path, cached
from pipelines.evals.intervals import digest_of, task_score
from pipelines.evals.progress import EvalProgress
from pipelines.evals.sampling import entropy
from pipelines.recipe.schema import BenchmarkConfig

# After each call the harness collects facts about the machine, which takes a second or more. A
# group makes dozens of calls, and our results do not use these facts.
evaluator.add_env_info = lambda storage: None


def check_fits(name: str, benchmark: BenchmarkConfig, loaded: dict[str, Any]) -> None:
    """Refuse a version, metric or samples that the subtasks, loaded by `leaves`, do not have."""
    where = f"eval.benchmarks.{name}"
    key, wanted = _metric(benchmark)
    for leaf, task in loaded.items():
        if benchmark.version and str(task.VERSION) != benchmark.version:
            raise UserError(
                f"{where}: the harness ({lm_eval.__version__}) has {leaf} in version "
                f"{task.VERSION}, not {benchmark.version}. Install a harness that has this "
                f"version, or change {where}.version."
            )
        metrics, filters = set(task.aggregation()), [found.name for found in task._filters]
        if key not in metrics or wanted not in filters:
            raise _no_metric(where, benchmark, {f"{m},{f}" for m in metrics for f in filters})
        if benchmark.samples and task.OUTPUT_TYPE != "generate_until":
            raise UserError(
                f"{where}.samples = {benchmark.samples}: {leaf} chooses among given answers "
                f"({task.OUTPUT_TYPE}), so answers cannot be sampled. Set it to 0."
            )


def num_answers(benchmark: BenchmarkConfig, task: Any) -> int:
    """Number of answers, greedy and sampled, to the questions of a subtask."""
    asked, sampled = _num_questions(benchmark, task)
    return asked + benchmark.samples * sampled


def _num_questions(benchmark: BenchmarkConfig, task: Any) -> tuple[int, int]:
    """Number of questions that get a greedy answer, and of those that get samples."""
    count = len(task.eval_docs)
    asked = min(count, benchmark.limit or count)
    return asked, min(asked, benchmark.sampled_questions or asked)


def ask(
    model: Any,
    name: str,
    benchmark: BenchmarkConfig,
    tasks: TaskManager,
    *,
    chat: bool,
    folder: Path | None = None,
    progress: EvalProgress | None = None,
) -> dict[str, Any]:
    """Ask a model of the harness every question of a benchmark, one subtask after the other.

    Args:
        tasks: the harness's task index, which has the benchmark's task and its data.
        chat: ask through the model's chat template.
        folder: where finished subtasks of a group are cached; None turns the cache off.

    Returns:
        `accuracy`, `interval`, `questions` and `bits` as for other tasks; `families` for a group;
        the `settings` under which the questions were asked; and, if answers are sampled, `samples`:
        for each question, the number of correct samples and their entropy.

    Raises:
        UserError: as `leaves` and `check_fits`.
    """
    progress = progress or EvalProgress(None, 0)
    # The harness seeds these before it loads a task, and some tasks shuffle their records then.
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    loaded = leaves(name, benchmark, tasks)
    check_fits(name, benchmark, loaded)
    parts = {}
    for leaf, task in loaded.items():
        path = folder and cache_path(folder, leaf)
        if path is not None and path.is_file():
            progress.skip(num_answers(benchmark, task))
        # A subtask of a group carries the settings that the group gives it.
        given = task if len(loaded) > 1 else benchmark.task or name
        asked = _Asked(model, name, benchmark, tasks, chat, given, leaf)
        answers = partial(asked.answers, progress, *_num_questions(benchmark, task))
        parts[leaf] = cached(path, answers, writes=_rank() == 0)
    return _score(benchmark, parts)


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


@dataclass(frozen=True)
class _Asked:
    """A subtask, `given` as `simple_evaluate` takes it, and how its benchmark asks it."""

    model: Any
    name: str
    benchmark: BenchmarkConfig
    tasks: TaskManager
    chat: bool
    given: Any
    leaf: str

    def answers(self, progress: EvalProgress, questions: int, sampled: int) -> dict[str, Any]:
        """Bits, question hashes and settings of the greedy answers, and the scores of samples."""
        benchmark = self.benchmark
        label = self.name if self.name == self.leaf else f"{self.name} ({self.leaf})"
        progress.begin(label, questions)
        found = self._pass(benchmark.limit, {})
        del found["answers"]
        if not benchmark.samples:
            return found
        passes = []
        decoding = {"temperature": benchmark.temperature, "top_p": benchmark.top_p}
        for number in range(benchmark.samples):
            progress.begin(f"{label}, sample {number + 1} of {benchmark.samples}", sampled)
            # Each rank samples answers to other questions.
            seed = DEFAULT_OTHER_SEED + 1 + number + 1_000_000 * _rank()
            passes.append(self._pass(sampled, {"do_sample": True, **decoding}, seed))
        found["samples"] = _by_question(passes, questions)
        found["settings"]["sampling"] = {"samples": benchmark.samples, **decoding}
        return found

    def _pass(
        self, limit: int, decoding: dict[str, Any], seed: int = DEFAULT_OTHER_SEED
    ) -> dict[str, Any]:
        """Evaluate the task once, and return what `_read` finds on every rank."""
        benchmark = self.benchmark
        if benchmark.max_new_tokens:
            decoding = {**decoding, "max_gen_toks": benchmark.max_new_tokens}
        outcome = evaluator.simple_evaluate(
            model=self.model,
            tasks=[self.given],
            num_fewshot=benchmark.shots if benchmark.shots >= 0 else None,
            limit=limit or None,
            gen_kwargs=decoding or None,
            task_manager=self.tasks,
            apply_chat_template=self.chat,
            fewshot_as_multiturn=False,
            bootstrap_iters=0,
            torch_random_seed=seed,
            # `leaves` accepts only tasks that the sandbox judges.
            confirm_run_unsafe_code=benchmark.runs_code,
        )
        # The harness returns its outcome only on the first rank of a node.
        found = [None if outcome is None else self._read(outcome)]
        if dist.is_initialized():
            dist.broadcast_object_list(found, src=0)
        assert found[0] is not None
        return found[0]

    def _read(self, outcome: dict[str, Any]) -> dict[str, Any]:
        """By question: 1 if it is right, else 0; its final answer, and the hash of its record.

        The answers are empty if the metric's filter extracts none: it returns texts or verdicts.
        """
        benchmark, where = self.benchmark, f"eval.benchmarks.{self.name}"
        key, wanted = _metric(benchmark)
        samples = outcome["samples"][self.leaf]
        own = sorted((s for s in samples if s["filter"] == wanted), key=lambda s: s["doc_id"])
        if not own or key not in own[0]:
            has = {f"{m},{s['filter']}" for s in samples for m in s["metrics"]}
            raise _no_metric(where, benchmark, has)
        if not all(s[key] in (0, 1) for s in own):
            raise UserError(
                f"{where}: metric {benchmark.metric} must be 0 or 1 for every question. Choose "
                "another."
            )
        answers = [s["filtered_resps"][0] for s in own] if wanted != "none" else []
        is_text = all(isinstance(answer, str) for answer in answers)
        return {
            "bits": [int(s[key]) for s in own],
            "answers": [answer.strip() for answer in answers] if is_text else [],
            "doc_hashes": [s["doc_hash"] for s in samples],
            "settings": self._settings(outcome),
        }

    def _settings(self, outcome: dict[str, Any]) -> dict[str, Any]:
        """How the questions were asked: two results are comparable only if these settings agree."""
        config, prompt = (
            outcome["configs"][self.leaf],
            outcome["samples"][self.leaf][0]["arguments"],
        )
        local = "data_files" in (config.get("dataset_kwargs") or {})
        return {
            "task": self.benchmark.task or self.name,
            "harness": lm_eval.__version__,
            "version": str(outcome["versions"].get(self.leaf, "")),
            "metric": self.benchmark.metric,
            "shots": outcome["n-shot"][self.leaf],
            "chat": self.chat,
            "data": self.benchmark.files if local else config["dataset_path"],
            "generation": config.get("generation_kwargs", {}),
            # The prompt of the first question of the first subtask.
            "prompt_sha256": hashlib.sha256(str(prompt[0][0]).encode()).hexdigest(),
        }


def _by_question(passes: list[dict[str, Any]], questions: int) -> list[Any]:
    """For each question, the number of correct samples and their entropy; None without samples."""
    found: list[Any] = []
    for i in range(len(passes[0]["bits"])):
        answers = [one["answers"][i] for one in passes if one["answers"]]
        spread = entropy(answers) if answers else None
        found.append([sum(one["bits"][i] for one in passes), spread])
    return found + [None] * (questions - len(found))


def _score(benchmark: BenchmarkConfig, parts: dict[str, Any]) -> dict[str, Any]:
    """The score of a benchmark, combined from its subtasks."""
    bits = {leaf: part["bits"] for leaf, part in parts.items()}
    score = task_score([bit for own in bits.values() for bit in own])
    score["questions_sha256"] = digest_of(h for part in parts.values() for h in part["doc_hashes"])
    if len(parts) > 1:
        score["families"] = {
            leaf: {"accuracy": sum(own) / len(own), "questions": len(own)}
            for leaf, own in bits.items()
        }
    if benchmark.samples:
        score["samples"] = [one for part in parts.values() for one in part["samples"]]
    score["settings"] = next(iter(parts.values()))["settings"]
    return score


def _metric(benchmark: BenchmarkConfig) -> tuple[str, str]:
    """The metric of a benchmark and its filter."""
    key, _, wanted = benchmark.metric.partition(",")
    return key, wanted or "none"


def _no_metric(where: str, benchmark: BenchmarkConfig, has: set[str]) -> UserError:
    return UserError(
        f"{where}: the task has no metric {benchmark.metric}. Choose from {', '.join(sorted(has))}."
    )
