"""Keys of what is measured: tasks, benchmarks, held-out text, analysis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.recipe.schema.data import SourceConfig
from pipelines.recipe.schema.setting import setting


@dataclass
class TaskConfig:
    """One evaluation task: greedy answers to the prompts of a source, judged by its reward."""

    enabled: bool = setting(True, "ask this task")
    source: SourceConfig = setting(SourceConfig, "records with prompt and answer")
    limit: int = setting(0, "questions used; 0: all", low=0)
    max_new_tokens: int = setting(64, "answer length", low=1)
    split_by: str = setting("", "record field that splits the task into families")
    base_template: str = setting("{{ prompt }}\n", "prompt of a model without chat, as plain text")
    stop: str = setting("\n", "text that ends an answer of a model without chat; empty: EOS only")
    samples: int = setting(
        0, "answers drawn for each question besides, for pass@k, mean@n and entropy", low=0
    )
    sampled_questions: int = setting(
        0, "questions of each family with drawn answers, the first; 0: all", low=0
    )
    temperature: float = setting(1.0, "of the draws", above=0)
    top_p: float = setting(1.0, "of the draws: least set of tokens with this much mass", above=0)


@dataclass
class BenchmarkConfig:
    """A task or group of lm-evaluation-harness, scored by one right-or-wrong metric."""

    enabled: bool = setting(True, "ask this benchmark")
    task: str = setting("", "task or group of the harness; empty: the benchmark's name")
    metric: str = setting(
        "acc", "metric that counts, with its filter if it has one: exact_match,flexible-extract"
    )
    version: str = setting("", "version of the task; another is refused; empty: any")
    shots: int = setting(-1, "worked examples before each question; -1: the task's own", low=-1)
    max_new_tokens: int = setting(0, "answer length; 0: the task's own", low=0)
    limit: int = setting(0, "first questions of each task of a group; 0: all", low=0)
    samples: int = setting(
        0, "answers drawn for each question besides, for pass@k, mean@n and entropy", low=0
    )
    sampled_questions: int = setting(
        0, "questions of each task of a group with drawn answers, the first; 0: all", low=0
    )
    temperature: float = setting(1.0, "of the draws", above=0)
    top_p: float = setting(1.0, "of the draws: least set of tokens with this much mass", above=0)
    files: dict[str, str] = setting(
        dict,
        "local file of each split below data_root, used where all are there; {name}: the task's "
        "data set on the hub",
    )
    field: str = setting("", "key that holds the records of a local JSON file")
    runs_code: bool = setting(False, "runs generated programs, in the sandbox", result=False)
    publish: bool = setting(True, "its questions may be shown in a report", result=False)


@dataclass
class EvalConfig:
    dtype: Literal["fp32", "bf16"] = setting("fp32", "of the weights")
    batch_size: int = setting(256, "prompts generated together on one rank", result=False, low=1)
    tasks: dict[str, TaskConfig] = setting(dict, "tasks of the built-in runner")
    bits_per_byte: dict[str, SourceConfig] = setting(dict, "held-out text per domain")
    bits_per_byte_tokens: int = setting(
        50_000, "documents are taken to this many tokens, the last whole", low=1
    )
    suite: str = setting(
        "",
        "tasks, benchmarks and held-out text of configs/eval/NAME.yaml, or of a file",
        result=False,
    )
    benchmarks: dict[str, BenchmarkConfig] = setting(
        dict, "benchmarks of lm-evaluation-harness, by a name of your choice"
    )
    task_folder: str = setting("", "folder of task files of your own, for the harness")
    backend: Literal["transformers", "vllm"] = setting(
        "transformers", "what generates the answers to benchmarks"
    )
    max_length: int = setting(
        0, "longest prompt with its answer, in tokens, of a benchmark; 0: the model's own", low=0
    )
    contamination: Literal["report", "leave_out", "none"] = setting(
        "report",
        "questions that stand in training text: counted, left out of the scores too (this is part "
        "of the identity), or not looked for",
        result=False,
    )
    contamination_ngram: int = setting(
        13,
        "words of an n-gram of the contamination check, of whose identity it is",
        result=False,
        low=1,
    )


@dataclass
class AnalysisConfig:
    enabled: bool = setting(True, "analyze at the end of a flywheel", result=False)
    tokens: int = setting(
        200_000,
        "mid-training tokens whose weights are looked at, the first of the packed set",
        low=1,
    )
    heldout_tokens: int = setting(
        20_000, "held-out tokens for each domain of eval.bits_per_byte", low=1
    )
    accuracy_questions: int = setting(
        50,
        "first questions of each family of eval.tasks asked of the models along the annealing; "
        "0: none",
        low=0,
    )
    batch_size: int = setting(64, "sequences per forward", result=False, low=1)
