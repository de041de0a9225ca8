"""lm-evaluation-harness as a library, one benchmark at a time.

The harness builds the prompts, extracts the answers and judges them. One bit is kept for each
question, so that benchmarks have the tables, intervals and comparisons of any other task.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
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

# After each call the harness describes the machine, which takes it a second or more; a group makes
# dozens of calls, and results of ours have what they need of it.
evaluator.add_env_info = lambda storage: None


def check_fits(name: str, benchmark: BenchmarkConfig, loaded: dict[str, Any]) -> None:
    """Compare the settings of a benchmark with its tasks.

    Args:
        loaded: its single tasks, as `leaves` gives them.

    Raises:
        UserError: the harness has no such version or metric, or answers cannot be drawn.
    """
    where = f"eval.benchmarks.{name}"
    for leaf, task in loaded.items():
        if benchmark.version and str(task.VERSION) != benchmark.version:
            raise UserError(
                f"{where}: the harness ({lm_eval.__version__}) has {leaf} in version "
                f"{task.VERSION}, not {benchmark.version}. Install the version that has it, or set "
                f"{where}.version."
            )
        metrics, filters = set(task.aggregation()), [found.name for found in task._filters]
        key, _, wanted = benchmark.metric.partition(",")
        if key not in metrics or (wanted or "none") not in filters:
            raise _no_metric(where, benchmark, {f"{m},{f}" for m in metrics for f in filters})
        if benchmark.samples and task.OUTPUT_TYPE != "generate_until":
            raise UserError(
                f"{where}.samples = {benchmark.samples}: {leaf} chooses among given answers "
                f"({task.OUTPUT_TYPE}), so that none can be drawn. Set it to 0."
            )


def num_answers(benchmark: BenchmarkConfig, task: Any) -> int:
    """Greedy and drawn answers to the questions of a single task."""
    asked = _num_asked(benchmark, task)
    return asked + benchmark.samples * min(asked, benchmark.sampled_questions or asked)


def _num_asked(benchmark: BenchmarkConfig, task: Any) -> int:
    count = len(task.eval_docs)
    return min(count, benchmark.limit or count)


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
    """Ask a model every question of a benchmark, one single task after the other.

    Args:
        model: a model of the harness.
        tasks: knows the benchmark's task, with its data.
        chat: ask through the model's chat template.
        folder: where each single task of a group is kept when it is done; None: nowhere.
        progress: told how far the answers are.

    Returns:
        accuracy, interval, questions and bits as for other tasks; `families` for a group;
        `settings` that the numbers belong to; `drawn`, where answers are drawn, for each question
        the right ones among them and their entropy.

    Raises:
        UserError: as `leaves` and `check_fits`.
    """
    progress = progress or EvalProgress(None, 0)
    # As the harness does before it loads a task: some shuffle their records then.
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    loaded = leaves(name, benchmark, tasks)
    check_fits(name, benchmark, loaded)
    parts = {}
    for leaf, task in loaded.items():
        path = folder and cache_path(folder, leaf)
        if path is not None and path.is_file():
            progress.skip(num_answers(benchmark, task))
        # A task of a group has what the group sets for it.
        given = task if len(loaded) > 1 else benchmark.task or name
        asked = _Asked(
            model, name, benchmark, tasks, chat, given, leaf, _num_asked(benchmark, task)
        )
        first = not dist.is_initialized() or dist.get_rank() == 0
        parts[leaf] = cached(path, partial(asked.answers, progress), writes=first)
    return _score(benchmark, parts)


@dataclass(frozen=True)
class _Asked:
    """A single task, as a benchmark asks it.

    Attributes:
        given: the task as `simple_evaluate` takes it.
        questions: how many are asked.
    """

    model: Any
    name: str
    benchmark: BenchmarkConfig
    tasks: TaskManager
    chat: bool
    given: Any
    leaf: str
    questions: int

    def answers(self, progress: EvalProgress) -> dict[str, Any]:
        """Bits, hashes of the questions and settings of the greedy answers, and what was drawn."""
        benchmark = self.benchmark
        label = self.name if self.name == self.leaf else f"{self.name} ({self.leaf})"
        progress.begin(label, self.questions)
        found = self._pass(self._greedy, benchmark.limit, {})
        if not benchmark.samples:
            return found
        draws = []
        decoding = {"temperature": benchmark.temperature, "top_p": benchmark.top_p}
        sampled = min(self.questions, benchmark.sampled_questions or self.questions)
        for number in range(benchmark.samples):
            progress.begin(f"{label}, draw {number + 1} of {benchmark.samples}", sampled)
            seed = DEFAULT_OTHER_SEED + 1 + number
            draws.append(self._pass(self._drawn, sampled, {"do_sample": True, **decoding}, seed))
        found["drawn"] = _by_question(draws, self.questions)
        found["settings"]["drawn"] = {"samples": benchmark.samples, **decoding}
        return found

    def _pass(
        self,
        read: Callable[[dict[str, Any]], dict[str, Any]],
        limit: int,
        decoding: dict[str, Any],
        seed: int = DEFAULT_OTHER_SEED,
    ) -> dict[str, Any]:
        """What `read` finds in one evaluation of the task, on every rank."""
        benchmark = self.benchmark
        if benchmark.max_new_tokens:
            decoding = {**decoding, "max_gen_toks": benchmark.max_new_tokens}
        if decoding.get("do_sample") and dist.is_initialized():
            seed += 1_000_000 * dist.get_rank()  # ranks draw to different questions
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
            # `leaves` lets through only what the sandbox judges.
            confirm_run_unsafe_code=benchmark.runs_code,
        )
        # The harness gives its outcome to the first rank of a machine alone.
        found = [None if outcome is None else read(outcome)]
        if dist.is_initialized():
            dist.broadcast_object_list(found, src=0)
        assert found[0] is not None
        return found[0]

    def _greedy(self, outcome: dict[str, Any]) -> dict[str, Any]:
        samples = outcome["samples"][self.leaf]
        where = f"eval.benchmarks.{self.name}"
        return {
            "bits": _bits(where, samples, self.benchmark),
            "doc_hashes": [sample["doc_hash"] for sample in samples],
            "settings": _settings(self.benchmark.task or self.name, self.benchmark, outcome,
                                  self.chat),
        }  # fmt: skip

    def _drawn(self, outcome: dict[str, Any]) -> dict[str, Any]:
        samples = outcome["samples"][self.leaf]
        where = f"eval.benchmarks.{self.name}"
        return {
            "bits": _bits(where, samples, self.benchmark),
            "answers": _final_answers(samples, self.benchmark),
        }


def _by_question(draws: list[dict[str, Any]], questions: int) -> list[Any]:
    """Of each question the right answers among the draws and their entropy; None for no draws."""
    found: list[Any] = []
    for i in range(len(draws[0]["bits"])):
        answers = [draw["answers"][i] for draw in draws if draw["answers"]]
        spread = entropy(answers) if answers else None
        found.append([sum(draw["bits"][i] for draw in draws), spread])
    return found + [None] * (questions - len(found))


def _final_answers(samples: list[dict[str, Any]], benchmark: BenchmarkConfig) -> list[str]:
    """What the metric's filter takes for the answer to each question.

    Empty where it takes the whole text, or gives a verdict on it: neither is an answer.
    """
    wanted = benchmark.metric.partition(",")[2]
    of_filter = [s for s in samples if s["filter"] == wanted and wanted != "none"]
    found = [s["filtered_resps"][0] for s in sorted(of_filter, key=lambda s: s["doc_id"])]
    return [one.strip() for one in found] if all(isinstance(one, str) for one in found) else []


def _score(benchmark: BenchmarkConfig, parts: dict[str, Any]) -> dict[str, Any]:
    """The score of a benchmark of what its single tasks gave."""
    score = task_score([bit for part in parts.values() for bit in part["bits"]])
    score["questions_sha256"] = digest_of(h for part in parts.values() for h in part["doc_hashes"])
    if len(parts) > 1:
        score["families"] = {
            leaf: {"accuracy": sum(part["bits"]) / len(part["bits"]),
                   "questions": len(part["bits"])}
            for leaf, part in parts.items()
        }  # fmt: skip
    if benchmark.samples:
        score["drawn"] = [one for part in parts.values() for one in part["drawn"]]
    score["settings"] = next(iter(parts.values()))["settings"]
    return score


def _settings(
    task: str, benchmark: BenchmarkConfig, outcome: dict[str, Any], chat: bool
) -> dict[str, Any]:
    """How the questions were asked: what two results must share to be compared."""
    leaf, samples = next(iter(outcome["samples"].items()))
    config = outcome["configs"][leaf]
    return {
        "task": task,
        "harness": lm_eval.__version__,
        "version": str(outcome["versions"].get(leaf, "")),
        "metric": benchmark.metric,
        "shots": outcome["n-shot"][leaf],
        "chat": chat,
        "data": benchmark.files if _reads_files(config) else config["dataset_path"],
        "generation": config.get("generation_kwargs", {}),
        # Of the first question of the first task.
        "prompt_sha256": hashlib.sha256(_prompt(samples[0]).encode()).hexdigest(),
    }


def _reads_files(config: dict[str, Any]) -> bool:
    """Whether a task reads the local files of its benchmark."""
    return "data_files" in (config.get("dataset_kwargs") or {})


def _bits(where: str, samples: list[dict[str, Any]], benchmark: BenchmarkConfig) -> list[int]:
    """1 for right and 0 for wrong, in the order of the questions."""
    key, _, wanted = benchmark.metric.partition(",")
    of_filter = [s for s in samples if s["filter"] == (wanted or "none")]
    if not of_filter or key not in of_filter[0]:
        has = {f"{m},{s['filter']}" for s in samples for m in s["metrics"]}
        raise _no_metric(where, benchmark, has)
    values = [s[key] for s in sorted(of_filter, key=lambda s: s["doc_id"])]
    if not all(value in (0, 1) for value in values):
        raise UserError(
            f"{where}: metric {benchmark.metric} is not right or wrong for each question"
        )
    return [int(value) for value in values]


def _no_metric(where: str, benchmark: BenchmarkConfig, has: set[str]) -> UserError:
    return UserError(
        f"{where}: no metric {benchmark.metric}; the task has {', '.join(sorted(has))}"
    )


def _prompt(sample: dict[str, Any]) -> str:
    return str(sample["arguments"][0][0])
