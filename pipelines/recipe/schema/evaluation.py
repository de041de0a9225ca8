"""Keys of evaluation and analysis: tasks, benchmarks, held-out text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.recipe.schema.data import SourceConfig
from pipelines.recipe.schema.setting import runtime_setting, setting


@dataclass
class TaskConfig:
    """An evaluation task: greedy answers to the prompts of a source, judged by its reward."""

    enabled: bool = setting(True, "run this task")
    source: SourceConfig = setting(SourceConfig, "records with prompt and answer")
    limit: int = setting(0, "maximum number of questions; 0: all", low=0)
    max_new_tokens: int = setting(64, "maximum length of an answer, in tokens", low=1)
    split_by: str = setting("", "field that splits the task into families, each with an accuracy")
    base_template: str = setting("{{ prompt }}\n", "prompt of a model without chat template")
    stop: str = setting("\n", "text that ends an answer without chat template; empty: EOS only")
    samples: int = setting(0, "samples per question, for pass@k, mean@n and entropy", low=0)
    sampled_questions: int = setting(
        0, "sample only the first questions of each family, this many; 0: all", low=0
    )
    temperature: float = setting(1.0, "temperature of the samples", above=0)
    top_p: float = setting(1.0, "top-p of the samples", above=0)


@dataclass
class BenchmarkConfig:
    """A task or group of lm-evaluation-harness, scored by one metric that is right or wrong."""

    enabled: bool = setting(True, "run this benchmark")
    task: str = setting("", "task or group of the harness; empty: the benchmark's name")
    metric: str = setting(
        "acc", "metric to report, with its filter if it has one: exact_match,flexible-extract"
    )
    version: str = setting("", "version of the task; any other is refused; empty: any")
    shots: int = setting(-1, "few-shot examples per question; -1: as the task defines", low=-1)
    max_new_tokens: int = setting(0, "maximum tokens of an answer; 0: as the task defines", low=0)
    limit: int = setting(
        0, "maximum number of questions of each task of a group, the first ones; 0: all", low=0
    )
    samples: int = setting(0, "samples per question, for pass@k, mean@n and entropy", low=0)
    sampled_questions: int = setting(
        0, "sample only the first questions of each task of a group, this many; 0: all", low=0
    )
    temperature: float = setting(1.0, "temperature of the samples", above=0)
    top_p: float = setting(1.0, "top-p of the samples", above=0)
    files: dict[str, str] = setting(
        dict,
        "local file of each split, below data_root; used if all of them exist. {name}: the task's "
        "data set on the hub",
    )
    field: str = setting("", "key of the list of records in a local JSON file")
    runs_code: bool = runtime_setting(False, "the benchmark runs generated programs in the sandbox")
    publish: bool = runtime_setting(True, "allow its questions in a report")


@dataclass
class EvalConfig:
    dtype: Literal["fp32", "bf16"] = setting("fp32", "dtype of the weights")
    batch_size: int = runtime_setting(256, "prompts per generation batch on one rank", low=1)
    tasks: dict[str, TaskConfig] = setting(dict, "tasks of the built-in runner")
    bits_per_byte: dict[str, SourceConfig] = setting(dict, "held-out text per domain")
    bits_per_byte_tokens: int = setting(
        50_000,
        "tokens of held-out text per domain: whole documents, until there are this many",
        low=1,
    )
    suite: str = runtime_setting(
        "",
        "evaluation suite: NAME of configs/eval/NAME.yaml, or a file with tasks, benchmarks and "
        "held-out text",
    )
    benchmarks: dict[str, BenchmarkConfig] = setting(
        dict, "benchmarks of lm-evaluation-harness, each under a name that you choose"
    )
    task_folder: str = setting("", "folder of custom task files for the harness")
    backend: Literal["transformers", "vllm"] = setting(
        "transformers", "engine that generates the answers to benchmarks"
    )
    max_length: int = setting(
        0, "maximum tokens of prompt and answer in a benchmark; 0: the context of the model", low=0
    )
    contamination: Literal["report", "leave_out", "none"] = runtime_setting(
        "report",
        "questions found in training text: report counts them, leave_out also leaves them out of "
        "the scores (and changes the identity), none does not look for them",
    )
    contamination_ngram: int = runtime_setting(
        13,
        "words per n-gram of the contamination check; part of the identity of that stage only",
        low=1,
    )


@dataclass
class AnalysisConfig:
    enabled: bool = runtime_setting(True, "run the analysis at the end of a flywheel")
    tokens: int = setting(
        200_000,
        "mid-training tokens whose weights are analyzed, from the start of the packed set",
        low=1,
    )
    heldout_tokens: int = setting(20_000, "held-out tokens per domain of eval.bits_per_byte", low=1)
    accuracy_questions: int = setting(
        50,
        "questions per family of eval.tasks, the first ones, for the accuracy of the snapshots "
        "during annealing; 0: none",
        low=0,
    )
    batch_size: int = runtime_setting(64, "sequences per forward", low=1)
