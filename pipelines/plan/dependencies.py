"""What the result of each kind of stage depends on beyond the keys in its row of the table.

The table of kinds names these functions. Each takes the values of the recipe that can change a
result, and returns fields that are added to the identity or replace some of it.
"""

from __future__ import annotations

from typing import Any

from pipelines.evals.benchmarks import files_sha256
from pipelines.plan.placement import num_ranks
from pipelines.recipe.schema import (
    Config,
    max_length,
    max_prompt_length,
    micro_batch_rows,
    post_training_sections,
    sees_micro_batches,
    trained_sections,
)

Fields = dict[str, Any]
# Keys of mid_train that determine the sequences and how they are scored.
SCORE_KEYS = ("tokens", "global_batch_size", "dtype", "sources")
# Keys that determine the questions of a task.
TASK_KEYS = ("enabled", "source", "limit", "split_by")
# Keys that determine the questions of a benchmark.
BENCHMARK_KEYS = ("enabled", "task", "limit", "field")
# Keys that determine the greedy answers to the tasks.
ASKED_KEYS = (*TASK_KEYS, "max_new_tokens", "base_template", "stop")
# Keys that determine how far a training reads its sources.
READ_KEYS = (
    "tokens",
    "max_steps",
    "global_batch_size",
    "num_generations",
    "heldout_pairs",
    "sources",
)


def nothing_more(config: Config, everything: Fields, inputs: dict[str, str]) -> Fields:
    return {}


def mid_train(config: Config, everything: Fields, inputs: dict[str, str]) -> Fields:
    if not sees_micro_batches(config.mid_train):
        return {}
    rows = micro_batch_rows(config.mid_train, num_ranks(config.launch))
    return {"sequences of a micro-batch (mid_train.scope=step: of no effect)": rows}


def sft(config: Config, everything: Fields, inputs: dict[str, str]) -> Fields:
    """The length that counts, however it was set."""
    length = max_length(config.sft, config.sequence_length)
    return {"sft": everything["sft"] | {"max_length": length}}


def dpo(config: Config, everything: Fields, inputs: dict[str, str]) -> Fields:
    length = max_length(config.dpo, config.sequence_length)
    return {"dpo": everything["dpo"] | {"max_length": length}}


def rlvr(config: Config, everything: Fields, inputs: dict[str, str]) -> Fields:
    length = max_prompt_length(config.rlvr, config.sequence_length)
    return {"rlvr": everything["rlvr"] | {"max_prompt_length": length}}


def score(config: Config, everything: Fields, inputs: dict[str, str]) -> Fields:
    return {
        "mid_train": {key: everything["mid_train"][key] for key in SCORE_KEYS},
        "pool": config.mid_train.objective == "miniplm",
    }


def evaluate(config: Config, everything: Fields, inputs: dict[str, str]) -> Fields:
    if config.eval.contamination != "leave_out":
        return benchmark_files(config)
    left_out = {"eval": everything["eval"] | {"contamination": "leave_out"}}
    return left_out | benchmark_files(config)


def analyze(config: Config, everything: Fields, inputs: dict[str, str]) -> Fields:
    fields: Fields = {
        # They determine which model of a round is the next reference.
        "post_steps": [kind for kind in post_training_sections() if everything[kind]["enabled"]],
        "heldout": everything["eval"]["bits_per_byte"],
        # They do not change a training, but they change what an analysis may show.
        "shown": {
            name: [source.licence, source.publish]
            for name, source in config.mid_train.sources.items()
        },
    }
    if config.analysis.accuracy_questions:
        fields["asked"] = {
            name: {key: task[key] for key in ASKED_KEYS}
            for name, task in everything["eval"]["tasks"].items()
        }
    return fields


def contamination(config: Config, everything: Fields, inputs: dict[str, str]) -> Fields:
    settings = everything["eval"]
    return {
        "eval": {
            "tasks": {
                name: {key: task[key] for key in TASK_KEYS}
                for name, task in settings["tasks"].items()
            },
            "bits_per_byte": settings["bits_per_byte"],
            "bits_per_byte_tokens": settings["bits_per_byte_tokens"],
            "benchmarks": {
                name: {key: b[key] for key in BENCHMARK_KEYS}
                | {"publish": config.eval.benchmarks[name].publish}
                for name, b in settings["benchmarks"].items()
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
            section: {
                key: everything[section][key] for key in READ_KEYS if key in everything[section]
            }
            for section in trained_sections()
        },
        **benchmark_files(config),
    }


def benchmark_files(config: Config) -> Fields:
    """Content hashes of the local files of each benchmark."""
    return {
        f"files of benchmark {name}": files_sha256(benchmark, config.data_root)
        for name, benchmark in config.eval.benchmarks.items()
    }
