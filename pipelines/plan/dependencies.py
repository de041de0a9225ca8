"""What the result of each kind of stage depends on beyond the keys in its row of the table.

The table of kinds names these functions. Each takes the config and those of its values that can
change a result, and returns fields that are added to the identity or replace some of it.
"""

from __future__ import annotations

from typing import Any

from pipelines.evals.benchmarks import files_sha256
from pipelines.plan.placement import num_ranks
from pipelines.recipe import schema
from pipelines.recipe.schema import Config

Fields = dict[str, Any]
# Keys of mid_train that determine the sequences and how they are scored.
SCORE_KEYS = ("tokens", "global_batch_size", "dtype", "sources")
# Keys that determine the questions of a task, and of a benchmark.
TASK_KEYS = ("enabled", "source", "limit", "split_by")
BENCHMARK_KEYS = ("enabled", "task", "limit", "field")
# Keys that determine the greedy answers to the tasks.
ASKED_KEYS = (*TASK_KEYS, "max_new_tokens", "base_template", "stop")
# Keys that determine how far a training reads its sources.
READ_KEYS = (
    "tokens", "max_steps", "global_batch_size", "num_generations", "heldout_pairs", "sources",
)  # fmt: skip


def nothing_more(config: Config, everything: Fields) -> Fields:
    return {}


def _picked(values: Fields, keys: tuple[str, ...]) -> Fields:
    return {key: values[key] for key in keys}


def mid_train(config: Config, everything: Fields) -> Fields:
    fields = _of_one_objective(config, everything)
    if schema.sees_micro_batches(config.mid_train):
        rows = schema.micro_batch_rows(config.mid_train, num_ranks(config.launch))
        fields["sequences of a micro-batch (mid_train.scope=step: of no effect)"] = rows
    return fields


def _of_one_objective(config: Config, everything: Fields) -> Fields:
    """The section mid_train without the settings of objectives that are not the stage's."""
    objective = config.mid_train.objective
    others = {kind.section for kind in schema.OBJECTIVES if kind.name != objective}
    kept = {key: value for key, value in everything["mid_train"].items() if key not in others}
    return {"mid_train": kept}


def sft(config: Config, everything: Fields) -> Fields:
    """The length that counts, however it was set."""
    length = schema.max_length(config.sft, config.sequence_length)
    return {"sft": everything["sft"] | {"max_length": length}}


def dpo(config: Config, everything: Fields) -> Fields:
    length = schema.max_length(config.dpo, config.sequence_length)
    return {"dpo": everything["dpo"] | {"max_length": length}}


def rlvr(config: Config, everything: Fields) -> Fields:
    length = schema.max_prompt_length(config.rlvr, config.sequence_length)
    return {"rlvr": everything["rlvr"] | {"max_prompt_length": length}}


def score(config: Config, everything: Fields) -> Fields:
    pool = config.mid_train.objective == "miniplm"
    return {"mid_train": _picked(everything["mid_train"], SCORE_KEYS), "pool": pool}


def evaluate(config: Config, everything: Fields) -> Fields:
    fields = _benchmark_files(config)
    if config.eval.contamination == "leave_out":
        fields["eval"] = everything["eval"] | {"contamination": "leave_out"}
    return fields


def analyze(config: Config, everything: Fields) -> Fields:
    steps = schema.post_training_sections()
    fields: Fields = {
        **_of_one_objective(config, everything),
        # They determine which model of a round is the next reference.
        "post_steps": [kind for kind in steps if everything[kind]["enabled"]],
        "heldout": everything["eval"]["bits_per_byte"],
        # They do not change a training, but they change what an analysis may show.
        "shown": {
            name: [source.licence, source.publish]
            for name, source in config.mid_train.sources.items()
        },
    }
    if config.analysis.accuracy_questions:
        tasks = everything["eval"]["tasks"].items()
        fields["asked"] = {name: _picked(task, ASKED_KEYS) for name, task in tasks}
    return fields


def contamination(config: Config, everything: Fields) -> Fields:
    settings = everything["eval"]
    tasks, benchmarks = settings["tasks"].items(), settings["benchmarks"].items()
    return {
        "eval": {
            "tasks": {name: _picked(task, TASK_KEYS) for name, task in tasks},
            **_picked(settings, ("bits_per_byte", "bits_per_byte_tokens")),
            "benchmarks": {
                name: _picked(benchmark, BENCHMARK_KEYS)
                | {"publish": config.eval.benchmarks[name].publish}
                for name, benchmark in benchmarks
            },
            "task_folder": settings["task_folder"],
            "contamination_ngram": config.eval.contamination_ngram,
            "publish": {
                **{name: task.source.publish for name, task in config.eval.tasks.items()},
                **{name: source.publish for name, source in config.eval.bits_per_byte.items()},
            },
        },
        "tokenizer.kind": config.tokenizer.kind,
        **{
            section: {key: given[key] for key in READ_KEYS if key in given}
            for section, given in _picked(everything, schema.trained_sections()).items()
        },
        **_benchmark_files(config),
    }


def _benchmark_files(config: Config) -> Fields:
    """Content hashes of the local files of each benchmark."""
    return {
        f"files of benchmark {name}": files_sha256(benchmark, config.data_root)
        for name, benchmark in config.eval.benchmarks.items()
    }
