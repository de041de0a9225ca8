"""Checks of a recipe that types cannot express: bounds of numbers, keys that depend on others."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn

from pipelines.errors import UserError, did_you_mean
from pipelines.recipe.schema import (
    Config,
    MidTrainConfig,
    PretrainConfig,
    SourceConfig,
    is_endless,
    launch_sections,
    num_steps,
    trained_sections,
)

# (key, message, other keys of the rule) -> raises UserError with the place of the last of the keys.
Refuse = Callable[..., NoReturn]
# Fewer tokens hold no turn of a chat template.
LEAST_LENGTH = 8
TRACKERS = ("tensorboard", "wandb")


BOUNDS: dict[str, tuple[Callable[[float, float], bool], str]] = {
    "low": (operator.ge, "at least"),
    "above": (operator.gt, "above"),
    "high": (operator.le, "at most"),
    "below": (operator.lt, "below"),
}


def _check_bounds(section: Any, prefix: str, refuse: Refuse) -> None:
    """Check that every number is finite and within the bounds of the schema."""
    for f in fields(section):
        key, value = f"{prefix}{f.name}", getattr(section, f.name)
        if is_dataclass(value):
            _check_bounds(value, f"{key}.", refuse)
        elif isinstance(value, dict):
            for name, entry in value.items():
                if is_dataclass(entry):
                    _check_bounds(entry, f"{key}.{name}.", refuse)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            if not math.isfinite(value):
                refuse(key, f"{key} = {value} must be a finite number")
            for bound, limit in f.metadata["bounds"].items():
                holds, words = BOUNDS[bound]
                if limit is not None and not holds(value, limit):
                    refuse(key, f"{key} = {value} must be {words} {limit}")


def check_values(config: Config, refuse: Refuse) -> None:
    """Run all checks of this module."""
    _check_bounds(config, "", refuse)
    for check in (
        _check_names, _check_model, _check_sources, _check_tasks, _check_benchmarks, _check_rlvr,
        _check_lengths, _check_epochs, _check_launch,
    ):  # fmt: skip
        check(config, refuse)


def check_one_step(settings: PretrainConfig | MidTrainConfig, sequence_length: int) -> None:
    """
    Raises:
        UserError: the tokens are fewer than one step needs.
    """
    section = _section(settings)
    one_step = settings.global_batch_size * sequence_length
    if settings.tokens < one_step:
        raise UserError(
            f"{section}.tokens = {settings.tokens} is less than one step of "
            f"{settings.global_batch_size} x {sequence_length} = {one_step} tokens "
            f"({section}.global_batch_size sequences of sequence_length)."
        )


def check_points(
    settings: PretrainConfig | MidTrainConfig, sequence_length: int, key: str = ""
) -> None:
    """
    Args:
        key: key that sets the number of snapshots, if it is not the section's own.

    Raises:
        UserError: there are as many snapshots as steps, or more.
    """
    section = _section(settings)
    points = settings.snapshots
    steps = num_steps(settings, sequence_length)
    if points >= steps:
        key = key or f"{section}.snapshots"
        raise UserError(
            f"{key} = {points}: a training of {steps} step{'s' if steps > 1 else ''} has too few "
            f"steps for so many snapshots. Lower it, or raise {section}.tokens = {settings.tokens}."
        )


def _section(settings: PretrainConfig | MidTrainConfig) -> str:
    return "pretrain" if isinstance(settings, PretrainConfig) else "mid_train"


def _check_names(config: Config, refuse: Refuse) -> None:
    for tracker in config.report_to:
        if tracker not in TRACKERS:
            close = did_you_mean(tracker, list(TRACKERS))
            refuse(
                "report_to",
                f"report_to = [{tracker}]: unknown tracker; choose from "
                f"{', '.join(TRACKERS)}{close}",
            )
    name, stage_name = config.name, config.stage.name
    if "/" in name or "\0" in name or name in (".", ".."):
        refuse("name", f"name = {name!r} names a folder: it must not contain '/' or be '.' or '..'")
    if not re.fullmatch(r"[A-Za-z0-9._-]*", stage_name):
        refuse(
            "stage.name",
            f"stage.name = {stage_name!r} names a folder: use only letters, digits, '.', '_', '-'",
        )


def _check_model(config: Config, refuse: Refuse) -> None:
    shape = config.model
    if shape.hidden_size % shape.num_attention_heads:
        refuse(
            "model.num_attention_heads",
            f"model.hidden_size = {shape.hidden_size} must be a multiple of "
            f"model.num_attention_heads = {shape.num_attention_heads}",
            "model.hidden_size",
        )
    if shape.num_attention_heads % shape.num_key_value_heads:
        refuse(
            "model.num_key_value_heads",
            f"model.num_attention_heads = {shape.num_attention_heads} must be a multiple of "
            f"model.num_key_value_heads = {shape.num_key_value_heads}",
            "model.num_attention_heads",
        )


def _check_sources(config: Config, refuse: Refuse) -> None:
    for name in trained_sections():
        for source_name, source in getattr(config, name).sources.items():
            key, found = f"{name}.sources.{source_name}.hash_range", source.hash_range
            if not (len(found) == 2 and 0 <= found[0] < found[1] <= 1):
                refuse(key, f"{key} must be [from, to] with 0 <= from < to <= 1")


def _check_tasks(config: Config, refuse: Refuse) -> None:
    for name, task in config.eval.tasks.items():
        around = re.split(r"(?<!\{)\{\{ *prompt *\}\}", task.base_template)
        if len(around) < 2 or re.search(r"\{[{%#]", " ".join(around)):
            key = f"eval.tasks.{name}.base_template"
            refuse(
                key,
                f"{key} = {task.base_template!r} must contain {{{{ prompt }}}}, where the "
                "question goes, and no other expression",
            )


def _check_rlvr(config: Config, refuse: Refuse) -> None:
    rlvr = config.rlvr
    if rlvr.global_batch_size % rlvr.num_generations:
        refuse(
            "rlvr.global_batch_size",
            f"rlvr.global_batch_size = {rlvr.global_batch_size} (completions per step) must be a "
            f"multiple of rlvr.num_generations = {rlvr.num_generations}",
            "rlvr.num_generations",
        )
    if rlvr.zero_stage == 3 and not rlvr.use_vllm and rlvr.offload_optimizer:
        refuse(
            "rlvr.offload_optimizer", "rlvr: ZeRO-3 with optimizer offload needs rlvr.use_vllm=true"
        )
    by_sequence = rlvr.enabled and not rlvr.max_prompt_length
    if by_sequence and rlvr.max_completion_length + LEAST_LENGTH >= config.sequence_length:
        refuse(
            "rlvr.max_completion_length",
            f"rlvr.max_completion_length = {rlvr.max_completion_length} leaves no room for a "
            f"prompt in sequence_length = {config.sequence_length}",
            "sequence_length",
        )


def _check_epochs(config: Config, refuse: Refuse) -> None:
    """Either steps or epochs; an epoch needs sources that end and are all read alike."""
    for section, train in (("sft", config.sft), ("dpo", config.dpo)):
        steps, epochs = train.max_steps, train.num_train_epochs
        keys = (f"{section}.max_steps", f"{section}.num_train_epochs")
        if steps and epochs:
            refuse(
                keys[1],
                f"{keys[0]} = {steps} and {keys[1]} = {epochs:g} both set how long to train. "
                f"Set {keys[0]}=0 to train by epochs, or leave {keys[1]} out.",
                keys[0],
            )
        if not steps and not epochs:
            refuse(keys[0], f"{keys[0]} = 0 trains by epochs: set {keys[1]} above 0.", keys[1])
        if not steps:
            _check_passes(section, train.sources, refuse)


def _check_passes(section: str, sources: dict[str, SourceConfig], refuse: Refuse) -> None:
    used = {name: source for name, source in sources.items() if source.weight > 0}
    for name, source in used.items():
        key = f"{section}.sources.{name}"
        if is_endless(source):
            refuse(
                f"{section}.num_train_epochs",
                f"{section}.num_train_epochs: {key} is a stream of the built-in world, which never "
                f"ends. Set {key}.limit, or train by {section}.max_steps.",
                key,
            )
        if source.weight != next(iter(used.values())).weight:
            refuse(
                f"{key}.weight",
                f"{key}.weight = {source.weight:g}: an epoch reads every record of every source "
                f"once, so that weights cannot differ. Give all sources of {section} one weight, "
                f"shorten one with its limit, or train by {section}.max_steps.",
                f"{section}.num_train_epochs",
            )


def _check_lengths(config: Config, refuse: Refuse) -> None:
    for key, length in (
        ("sft.max_length", config.sft.max_length),
        ("dpo.max_length", config.dpo.max_length),
        ("rlvr.max_prompt_length", config.rlvr.max_prompt_length),
    ):
        if 0 < length < LEAST_LENGTH:
            refuse(key, f"{key} = {length} must be at least {LEAST_LENGTH}, or 0 for the default")


def _check_benchmarks(config: Config, refuse: Refuse) -> None:
    for name, benchmark in config.eval.benchmarks.items():
        key = f"eval.benchmarks.{name}"
        if not re.fullmatch(r"[A-Za-z0-9._-]+", name) or name in config.eval.tasks:
            refuse(
                key,
                f"{key} names a file and a row of the table: use only letters, digits, '.', '_', "
                "'-', and a name that eval.tasks does not use",
            )
        for path in benchmark.files.values():
            plain = path.replace("{name}", "").removesuffix(".gz")
            if "{" in plain or not plain.endswith((".jsonl", ".json", ".csv", ".parquet")):
                refuse(
                    f"{key}.files",
                    f"{key}.files: {path!r} must end in .jsonl, .json, .csv or .parquet (.gz too), "
                    "and its only placeholder is {name}",
                )


def _check_launch(config: Config, refuse: Refuse) -> None:
    for name in config.stages:
        if name not in launch_sections():
            refuse(
                f"stages.{name}",
                f"stages.{name}: unknown kind of stage; choose from {', '.join(launch_sections())}"
                + did_you_mean(name, list(launch_sections())),
            )
    for section in trained_sections():
        train = getattr(config, section)
        if train.offload_optimizer and train.zero_stage == 0:
            key = f"{section}.offload_optimizer"
            refuse(key, f"{key} needs ZeRO: set {section}.zero_stage to 1, 2 or 3")
