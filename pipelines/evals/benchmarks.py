"""Benchmarks from local files: task files with which lm-evaluation-harness reads them.

Each of our task files includes the harness's file of the same name. It changes only where the
records come from, in which process answers are judged (`VERIFIED`), and the keys in `REPLACED`.
Prompts, few-shot examples and answer extraction stay those of the harness.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from pipelines.errors import UserError
from pipelines.evals.availability import asked_here, is_local
from pipelines.evals.contamination import Question
from pipelines.recipe.schema import BenchmarkConfig, EvalConfig

_QUESTION_FIELDS = ("question", "Question", "problem", "input", "prompt", "text")
# The loader in `datasets` for a file, by its suffix before `.gz`.
_FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


class Function(str):
    """Name of a function, written as in the harness's task files: `!function module.name`."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(Function, lambda d, name: d.represent_scalar("!function", str(name)))


def _ours(name: str) -> Function:
    return Function(f"pipelines.evals.task_functions.{name}")


def _judged(name: str, judge: str) -> dict[str, Any]:
    """Keys of a task whose programs one of our filters judges in the sandbox."""
    metric = {"metric": _ours("pass_at_1"), "aggregation": "mean", "higher_is_better": True}
    judged = {"name": name, "filter": [{"function": "custom", "filter_fn": _ours(judge)}]}
    return {"metric_list": [metric], "filter_list": [judged]}


_MATH = "algebra counting_and_prob geometry intermediate_algebra num_theory prealgebra precalc"
# Keys of upstream tasks that our files replace; task_functions.py explains why.
REPLACED: dict[str, dict[str, Any]] = {
    "humaneval": _judged("create_test", "humaneval_verdicts"),
    "mbpp": _judged("none", "mbpp_verdicts") | {
        "fewshot_config": {
            "sampler": "first_n", "split": "prompt", "process_docs": _ours("mbpp_examples"),
        },
    },
}  # fmt: skip
for _part in ("main", "diamond", "extended"):
    REPLACED[f"gpqa_{_part}_n_shot"] = {"process_docs": _ours("gpqa_choices")}
# The harness's judges, run in child processes that can be killed.
VERIFIED = {f"minerva_math_{part}": _ours("minerva_results") for part in _MATH.split()}
VERIFIED["ifeval"] = _ours("ifeval_results")


def task_manager(settings: EvalConfig, data_root: str, folder: Path) -> Any:
    """Index the harness's tasks, and write our task files for those that differ to `folder`."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import TaskIndex

    tasks = TaskManager(include_defaults=False, include_path=settings.task_folder or None)
    own = dict(tasks.task_index)
    tasks.task_index.update(_harness_tasks() | own)
    # Task files left by an earlier start may name other data files.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, benchmark in asked_here(settings, data_root).items():
        for task, entry in _leaves(benchmark.task or name, tasks):
            if changed := _changes(task, entry, benchmark, Path(data_root)):
                text = yaml.dump(changed, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
                (folder / f"{_plain_name(task, task)}.yaml").write_text(text, "utf-8")
    tasks.task_index.update(TaskIndex.build([folder]))
    return tasks


@cache
def _harness_tasks() -> dict[str, Any]:
    """The index of the harness's 13,000 task files, which takes ten seconds to read."""
    import lm_eval.tasks
    from lm_eval.tasks._index import TaskIndex

    (folder,) = lm_eval.tasks.__path__
    return dict(TaskIndex.build([Path(folder)]))


def leaves(name: str, benchmark: BenchmarkConfig, tasks: Any) -> dict[str, Any]:
    """Load the subtasks of a benchmark with their data, in the harness's order.

    Raises:
        UserError: the harness has no such task, or the task runs generated code outside the
            sandbox.
        OSError, datasets.exceptions.DatasetsError: the hub refuses the data.
    """
    task, where = benchmark.task or name, f"eval.benchmarks.{name}"
    if task not in tasks.task_index:
        raise UserError(
            f"{where}: lm-evaluation-harness has no task {task}; `lm-eval ls tasks` lists them, "
            "eval.task_folder adds your own."
        )
    for leaf, entry in _leaves(task, tasks):
        if (entry.cfg or {}).get("unsafe_code") and not (benchmark.runs_code and leaf in REPLACED):
            advice = "The sandbox supports only humaneval and mbpp; remove this benchmark."
            if leaf in REPLACED:
                advice = f"Set {where}.runs_code=true to run it in the sandbox."
            raise UserError(f"{where}: {leaf} runs generated code. {advice}")
    loaded: dict[str, Any] = tasks.load([task])["tasks"]
    return loaded


def files_sha256(benchmark: BenchmarkConfig, data_root: str) -> str:
    """SHA-256 over the contents of a benchmark's local files; empty if it has none."""
    hashes = [
        _file_sha256(path, path.stat().st_mtime_ns)
        for pattern in benchmark.files.values()
        for path in sorted(Path(data_root).glob(pattern.replace("{name}", "*")))
    ]
    return hashlib.sha256("".join(hashes).encode()).hexdigest() if hashes else ""


@lru_cache(maxsize=1024)
def _file_sha256(path: Path, _: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def questions(name: str, benchmark: BenchmarkConfig, loaded: dict[str, Any]) -> list[Question]:
    """The questions of the loaded subtasks with their right answers, in the order of the bits."""
    found: list[Question] = []
    for task in loaded.values():
        for record in islice(task.eval_docs, benchmark.limit or None):
            # Prefer the record's field: the prompt surrounds the question with other words.
            field = next((key for key in _QUESTION_FIELDS if record.get(key)), None)
            asked = str(record[field] if field else task.doc_to_text(record))
            found.append(Question(f"{name}/{len(found)}", asked, _right_answer(task, record)))
    return found


def _right_answer(task: Any, record: dict[str, Any]) -> str:
    target = task.doc_to_target(record)
    if isinstance(target, int) and task.OUTPUT_TYPE == "multiple_choice":
        target = task.doc_to_choice(record)[target]
    return target if isinstance(target, str) else ""


def _leaves(task: str, tasks: Any) -> Iterator[tuple[str, Any]]:
    """Yield the subtasks of a task or group with their index entries; none if it is unknown."""
    if (entry := tasks.task_index.get(task)) is None:
        return
    below = (entry.cfg or {}).get("task")
    if not isinstance(below, list):
        yield task, entry
        return
    for child in below:
        yield from _leaves(child if isinstance(child, str) else child["task"], tasks)


def _changes(task: str, entry: Any, benchmark: BenchmarkConfig, root: Path) -> dict[str, Any]:
    """Our task file: the upstream one with local data files and our judges; empty if equal."""
    name = _plain_name(entry.cfg.get("dataset_name") or task, task)
    paths = {split: root / path.format(name=name) for split, path in benchmark.files.items()}
    missing = [path for path in paths.values() if not path.is_file()]
    if missing and is_local() and "{name}" in "".join(benchmark.files.values()):
        raise UserError(
            f"{task}: file {missing[0]} does not exist. This benchmark needs one file for every "
            "subtask."
        )
    data: dict[str, Any] = {}
    if paths and not missing:
        kind = Path(next(iter(paths.values())).name.removesuffix(".gz")).suffix
        files = {split: str(path.resolve()) for split, path in paths.items()}
        field = {"field": benchmark.field} if benchmark.field else {}
        data = {"dataset_path": _FORMATS[kind], "dataset_name": None}
        data["dataset_kwargs"] = {"data_files": files, **field}
    if task in REPLACED:
        return {**entry.cfg, **REPLACED[task], **data}
    changed = ({"process_results": VERIFIED[task]} if task in VERIFIED else {}) | data
    return changed and {"include": str(entry.yaml_path), "task": task, **changed}


def _plain_name(name: Any, task: str) -> str:
    """Check a name from a task file that becomes part of a path."""
    if not isinstance(name, str) or "/" in name or "\0" in name or name in ("", ".", ".."):
        raise UserError(
            f"{task}: {name!r} becomes part of a file name, so it must be a plain name without "
            "'/'. Rename it in the task's file."
        )
    return name
