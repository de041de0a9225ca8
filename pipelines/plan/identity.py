"""The identity of a stage: what its result depends on, and nothing else.

identity = hash of (the config fields that can change the result, the content hashes of the
inputs, the stage's NUMERICS_VERSION). The same identity means: complete is complete, skip it.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pipelines.evals.benchmarks import files_sha256
from pipelines.plan.placement import num_ranks
from pipelines.recipe.load import result_fields
from pipelines.recipe.schema import Config, micro_batch_rows, sees_micro_batches

# Raised by hand when the mathematics of a stage changes.
NUMERICS_VERSION = {
    "pretrain": 1, "mid_train": 1, "sft": 1, "dpo": 1, "rlvr": 2, "score": 1, "evaluate": 3,
    "contamination": 1,
    "analyze": 2,
}  # fmt: skip

# Of the mid-training, what decides the sequences and how they are scored.
SCORE_KEYS = ("tokens", "global_batch", "precision", "sources")
# Of a contamination check, what decides the questions, and how far endless sources are read.
TASK_KEYS = ("enabled", "source", "limit", "split_by")
# Of an analysis, what decides the greedy answers to the tasks.
ASKED_KEYS = (*TASK_KEYS, "max_new_tokens", "base_template", "stop")
DRAW_KEYS = ("tokens", "steps", "global_batch", "num_generations", "heldout_pairs", "sources")
POST_TRAINING = ("sft", "dpo", "rlvr")
TRAINING = ("pretrain", "mid_train", *POST_TRAINING)
SHARED_KEYS = ("seed", "trust_remote_code")
STAGE_KEYS = {
    "pretrain": ("context_length", "document_mask", "model", "tokenizer", "pretrain"),
    "mid_train": ("context_length", "document_mask", "mid_train"),
    "sft": ("context_length", "sft"),
    "dpo": ("context_length", "dpo"),
    "rlvr": ("context_length", "rlvr"),
    "score": ("context_length", "document_mask", "mid_train"),
    "evaluate": ("context_length", "document_mask", "eval"),
    "contamination": (),
    "analyze": ("context_length", "document_mask", "analysis", "mid_train"),
}


def identity_fields(kind: str, config: Config, inputs: dict[str, str]) -> dict[str, Any]:
    """Everything the result of a stage of this kind depends on, as flat `key: value` pairs.

    `inputs` maps the name of an input (base, ref, model, data source) to its content hash.
    """
    # Whether code may run, not which names a model is given by: its code is part of its hash.
    everything = result_fields(config) | {"trust_remote_code": bool(config.trust_remote_code)}
    kept = {key: everything[key] for key in SHARED_KEYS + STAGE_KEYS[kind]}
    if kind == "contamination":
        kept |= _contamination_fields(config, everything)
    else:
        kept["model.attention"] = config.model.attention
    if kind == "evaluate" and config.eval.contamination == "leave_out":
        kept["eval"] = kept["eval"] | {"contamination": "leave_out"}
    if kind == "mid_train" and sees_micro_batches(config.mid_train):
        rows = micro_batch_rows(config.mid_train, num_ranks(config.launch))
        kept["sequences of a micro-batch (mid_train.scope=step: of no effect)"] = rows
    if kind == "score":
        kept["mid_train"] = {key: kept["mid_train"][key] for key in SCORE_KEYS}
        kept["pool"] = config.mid_train.objective == "miniplm"
    if kind == "analyze":
        # They decide which model of a round is the next reference.
        kept["post_steps"] = [kind for kind in POST_TRAINING if everything[kind]["enabled"]]
        kept["heldout"] = everything["eval"]["bits_per_byte"]
        if config.analysis.accuracy_questions:
            kept["asked"] = {
                name: {key: task[key] for key in ASKED_KEYS}
                for name, task in everything["eval"]["tasks"].items()
            }
        # They change no training, but they change what an analysis may show.
        kept["shown"] = {
            name: [source.licence, source.publish]
            for name, source in config.mid_train.sources.items()
        }
    if kind == "pretrain" and "base" in inputs:
        # An adopted base is not trained: nothing else can change it.
        kept = {key: kept[key] for key in ("tokenizer", "trust_remote_code")}
    fields = dict(_flatten(kept))
    if kind in ("evaluate", "contamination"):
        for name, benchmark in config.eval.benchmarks.items():
            fields[f"files of benchmark {name}"] = files_sha256(benchmark, config.data_root)
    fields.update({f"input {name}": digest for name, digest in inputs.items()})
    fields["numerics version"] = NUMERICS_VERSION[kind]
    return fields


# What decides the questions of a benchmark.
BENCHMARK_KEYS = ("enabled", "task", "limit", "field")


def _contamination_fields(config: Config, everything: dict[str, Any]) -> dict[str, Any]:
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
                key: everything[section][key] for key in DRAW_KEYS if key in everything[section]
            }
            for section in TRAINING
        },
    }


def digest(fields: dict[str, Any]) -> str:
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def differing(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`key: old -> new` for every field that differs, in a stable order."""
    missing = "(not set)"
    return [
        f"{key}: {_short(old.get(key, missing))} -> {_short(new.get(key, missing))}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, missing) != new.get(key, missing)
    ]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat += _flatten(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", value))
    return flat
