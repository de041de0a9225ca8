"""Run lm-evaluation-harness as a library, one benchmark at a time.

The harness builds the prompts, extracts the answers and judges them. The result has one bit per
question, so benchmarks get the same tables, intervals and comparisons as the built-in tasks.
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

# After each call the harness collects facts about the machine, which takes a second or more. A
# group makes dozens of calls, and our results do not use these facts.
evaluator.add_env_info = lambda storage: None


def check_fits(name: str, benchmark: BenchmarkConfig, loaded: dict[str, Any]) -> None:
    """Check the settings of a benchmark against its tasks.

    Args:
        loaded: the benchmark's subtasks, as `leaves` returns them.

    Raises:
        UserError: the harness has another version, lacks the metric, or cannot sample answers.
    """
    where = f"eval.benchmarks.{name}"
    for leaf, task in loaded.items():
        if benchmark.version and str(task.VERSION) != benchmark.version:
            raise UserError(
                f"{where}: the harness ({lm_eval.__version__}) has {leaf} in version "
                f"{task.VERSION}, not {benchmark.version}. Install a harness that has this "
                f"version, or change {where}.version."
            )
        metrics, filters = set(task.aggregation()), [found.name for found in task._filters]
        key, _, wanted = benchmark.metric.partition(",")
        if key not in metrics or (wanted or "none") not in filters:
            raise _no_metric(where, benchmark, {f"{m},{f}" for m in metrics for f in filters})
        if benchmark.samples and task.OUTPUT_TYPE != "generate_until":
            raise UserError(
                f"{where}.samples = {benchmark.samples}: {leaf} chooses among given answers "
                f"({task.OUTPUT_TYPE}), so answers cannot be sampled. Set it to 0."
            )


def num_answers(benchmark: BenchmarkConfig, task: Any) -> int:
    """Number of answers, greedy and sampled, to the questions of a subtask."""
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
    """Ask a model every question of a benchmark, one subtask after the other.

    Args:
        model: a model of the harness.
        tasks: the harness's task index, which has the benchmark's task and its data.
        chat: ask through the model's chat template.
        folder: where finished subtasks of a group are cached; None turns the cache off.
        progress: updated as answers come in.

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
        asked = _Asked(
            model, name, benchmark, tasks, chat, given, leaf, _num_asked(benchmark, task)
        )
        first = not dist.is_initialized() or dist.get_rank() == 0
        parts[leaf] = cached(path, partial(asked.answers, progress), writes=first)
    return _score(benchmark, parts)


@dataclass(frozen=True)
class _Asked:
    """A subtask with the settings under which a benchmark asks it.

    Attributes:
        given: the task in the form that `simple_evaluate` takes.
        questions: number of questions asked.
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
        """Bits, question hashes and settings of the greedy answers, and the scores of samples."""
        benchmark = self.benchmark
        label = self.name if self.name == self.leaf else f"{self.name} ({self.leaf})"
        progress.begin(label, self.questions)
        found = self._pass(self._greedy, benchmark.limit, {})
        if not benchmark.samples:
            return found
        passes = []
        decoding = {"temperature": benchmark.temperature, "top_p": benchmark.top_p}
        sampled = min(self.questions, benchmark.sampled_questions or self.questions)
        for number in range(benchmark.samples):
            progress.begin(f"{label}, sample {number + 1} of {benchmark.samples}", sampled)
            seed = DEFAULT_OTHER_SEED + 1 + number
            passes.append(self._pass(self._sampled, sampled, {"do_sample": True, **decoding}, seed))
        found["samples"] = _by_question(passes, self.questions)
        found["settings"]["sampling"] = {"samples": benchmark.samples, **decoding}
        return found

    def _pass(
        self,
        read: Callable[[dict[str, Any]], dict[str, Any]],
        limit: int,
        decoding: dict[str, Any],
        seed: int = DEFAULT_OTHER_SEED,
    ) -> dict[str, Any]:
        """Evaluate the task once, and return what `read` extracts from it on every rank."""
        benchmark = self.benchmark
        if benchmark.max_new_tokens:
            decoding = {**decoding, "max_gen_toks": benchmark.max_new_tokens}
        if decoding.get("do_sample") and dist.is_initialized():
            seed += 1_000_000 * dist.get_rank()  # each rank samples answers to other questions
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

    def _sampled(self, outcome: dict[str, Any]) -> dict[str, Any]:
        samples = outcome["samples"][self.leaf]
        where = f"eval.benchmarks.{self.name}"
        return {
            "bits": _bits(where, samples, self.benchmark),
            "answers": _final_answers(samples, self.benchmark),
        }


def _by_question(passes: list[dict[str, Any]], questions: int) -> list[Any]:
    """For each question, the number of correct samples and their entropy; None without samples."""
    found: list[Any] = []
    for i in range(len(passes[0]["bits"])):
        answers = [one["answers"][i] for one in passes if one["answers"]]
        spread = entropy(answers) if answers else None
        found.append([sum(one["bits"][i] for one in passes), spread])
    return found + [None] * (questions - len(found))


def _final_answers(samples: list[dict[str, Any]], benchmark: BenchmarkConfig) -> list[str]:
    """The answer to each question that the metric's filter extracted.

    Empty if the filter returns the whole text or a verdict, since neither is a final answer.
    """
    wanted = benchmark.metric.partition(",")[2]
    of_filter = [s for s in samples if s["filter"] == wanted and wanted != "none"]
    found = [s["filtered_resps"][0] for s in sorted(of_filter, key=lambda s: s["doc_id"])]
    return [one.strip() for one in found] if all(isinstance(one, str) for one in found) else []


def _score(benchmark: BenchmarkConfig, parts: dict[str, Any]) -> dict[str, Any]:
    """The score of a benchmark, combined from its subtasks."""
    score = task_score([bit for part in parts.values() for bit in part["bits"]])
    score["questions_sha256"] = digest_of(h for part in parts.values() for h in part["doc_hashes"])
    if len(parts) > 1:
        score["families"] = {
            leaf: {"accuracy": sum(part["bits"]) / len(part["bits"]),
                   "questions": len(part["bits"])}
            for leaf, part in parts.items()
        }  # fmt: skip
    if benchmark.samples:
        score["samples"] = [one for part in parts.values() for one in part["samples"]]
    score["settings"] = next(iter(parts.values()))["settings"]
    return score


def _settings(
    task: str, benchmark: BenchmarkConfig, outcome: dict[str, Any], chat: bool
) -> dict[str, Any]:
    """How the questions were asked: two results are comparable only if these settings agree."""
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
        # The prompt of the first question of the first subtask.
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
            f"{where}: metric {benchmark.metric} must be 0 or 1 for every question. Choose another."
        )
    return [int(value) for value in values]


def _no_metric(where: str, benchmark: BenchmarkConfig, has: set[str]) -> UserError:
    return UserError(
        f"{where}: the task has no metric {benchmark.metric}. Choose from {', '.join(sorted(has))}."
    )


def _prompt(sample: dict[str, Any]) -> str:
    return str(sample["arguments"][0][0])
