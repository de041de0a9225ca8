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
# A number, the number that it must be a multiple of, and what the first one counts.
MULTIPLES = (
    ("model.hidden_size", "model.num_attention_heads", ""),
    ("model.num_attention_heads", "model.num_key_value_heads", ""),
    ("rlvr.global_batch_size", "rlvr.num_generations", " (completions per step)"),
)
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
        entries = {f"{key}.": value}
        if isinstance(value, dict):
            entries = {f"{key}.{name}.": entry for name, entry in value.items()}
        for below, entry in entries.items():
            if is_dataclass(entry):
                _check_bounds(entry, below, refuse)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if not math.isfinite(value):
                refuse(key, f"{key} = {value} must be a finite number")
            for bound, limit in f.metadata["bounds"].items():
                holds, words = BOUNDS[bound]
                if not holds(value, limit):
                    refuse(key, f"{key} = {value} must be {words} {limit}")


def check_values(config: Config, refuse: Refuse) -> None:
    """Run all checks of this module."""
    _check_bounds(config, "", refuse)
    for check in (
        _check_names, _check_multiples, _check_sources, _check_tasks, _check_benchmarks,
        _check_rlvr, _check_lengths, _check_epochs, _check_launch,
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
    section, steps = _section(settings), num_steps(settings, sequence_length)
    if settings.snapshots >= steps:
        raise UserError(
            f"{key or f'{section}.snapshots'} = {settings.snapshots}: a training of {steps} "
            f"step{'s' if steps > 1 else ''} has too few steps for so many snapshots. Lower it, or "
            f"raise {section}.tokens = {settings.tokens}."
        )


def _section(settings: PretrainConfig | MidTrainConfig) -> str:
    return "pretrain" if isinstance(settings, PretrainConfig) else "mid_train"


def _check_names(config: Config, refuse: Refuse) -> None:
    for tracker in config.report_to:
        if tracker not in TRACKERS:
            choices = f"{', '.join(TRACKERS)}{did_you_mean(tracker, TRACKERS)}"
            refuse("report_to", f"report_to = [{tracker}]: unknown tracker; choose from {choices}")
    name, stage_name = config.name, config.stage.name
    if "/" in name or "\0" in name or name in (".", ".."):
        refuse("name", f"name = {name!r} names a folder: it must not contain '/' or be '.' or '..'")
    if not re.fullmatch(r"[A-Za-z0-9._-]*", stage_name):
        refuse(
            "stage.name",
            f"stage.name = {stage_name!r} names a folder: use only letters, digits, '.', '_', '-'",
        )


def _check_multiples(config: Config, refuse: Refuse) -> None:
    for key, part, counts in MULTIPLES:
        number, of = operator.attrgetter(key, part)(config)
        if number % of:
            refuse(key, f"{key} = {number}{counts} must be a multiple of {part} = {of}", part)


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
        steps, epochs = f"{section}.max_steps", f"{section}.num_train_epochs"
        if train.max_steps and train.num_train_epochs:
            refuse(
                epochs,
                f"{steps} = {train.max_steps} and {epochs} = {train.num_train_epochs:g} both set "
                f"how long to train. Set {steps}=0 to train by epochs, or leave {epochs} out.",
                steps,
            )
        if not train.max_steps:
            if not train.num_train_epochs:
                refuse(steps, f"{steps} = 0 trains by epochs: set {epochs} above 0.", epochs)
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
    for key in ("sft.max_length", "dpo.max_length", "rlvr.max_prompt_length"):
        length = operator.attrgetter(key)(config)
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
    known = launch_sections()
    for name in config.stages:
        if name not in known:
            choices = f"{', '.join(known)}{did_you_mean(name, known)}"
            key = f"stages.{name}"
            refuse(key, f"{key}: unknown kind of stage; choose from {choices}")
    for section in trained_sections():
        train = getattr(config, section)
        if train.offload_optimizer and train.zero_stage == 0:
            key = f"{section}.offload_optimizer"
            refuse(key, f"{key} needs ZeRO: set {section}.zero_stage to 1, 2 or 3")
