"""Checks of a comparison's settings, made before anything is planned. Pure."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from pipelines.errors import UserError, did_you_mean
from pipelines.models.checkpoint import ModelRef
from pipelines.plan.flywheel import enabled_post_steps
from pipelines.recipe.load import override_keys
from pipelines.recipe.schema import OBJECTIVES, CompareConfig, Config, VariantConfig, objective_kind

# Arm -> mid_train.objective, in the order of tables. `sft`: ReMiT with the SFT model as reference.
# `more-rl`: plain mid-training and a longer RLVR, with the FLOPs that ReMiT's reference costs.
ARMS: dict[str, Any] = {
    **{kind.name: kind.name for kind in OBJECTIVES if kind.name != "remit"},
    "sft": "remit", "remit": "remit", "more-rl": "ntp",
}  # fmt: skip
WITHOUT_REFERENCE = [arm for arm, of in ARMS.items() if not objective_kind(of).needs_reference]
BASE = "base"
# The plain pipeline of a seed, if arm `ntp` trains on a different number of tokens.
PLAIN = "plain"
# What a variant cannot override: its `arm` sets the first, and all arms share the second.
_NOT_FOR_VARIANTS = ("mid_train.objective", "mid_train.snapshots")


def variant_of(config: Config, arm: str) -> VariantConfig:
    """The arm as a variant; a built-in arm is a variant that changes nothing."""
    found = config.compare.variants.get(arm)
    return found or VariantConfig(arm="ntp" if arm == PLAIN else arm)


def known_arms(config: Config) -> list[str]:
    return [*ARMS, *config.compare.variants]


def whole_key(override: str) -> str:
    """The full key of an override of `compare`, which may omit the section: `seeds=3`."""
    own = {field.name for field in dataclasses.fields(CompareConfig)}
    first = override.partition("=")[0].strip().partition(".")[0]
    return f"compare.{override}" if first in own else override


def check_comparison(config: Config, base: ModelRef | None, ref: ModelRef | None) -> None:
    """Raise `UserError` for an unknown arm, no task, or settings that cannot be combined."""
    given = config.compare
    if not given.arms:
        raise UserError(f"compare.arms is empty. Choose from {', '.join(ARMS)}.")
    _check_arms("compare.arms", given.arms, config)
    for name, variant in given.variants.items():
        _check_variant(name, variant, config)
    tasks = any(task.enabled for task in config.eval.tasks.values())
    benchmarks = any(benchmark.enabled for benchmark in config.eval.benchmarks.values())
    post_steps = enabled_post_steps(config)
    used = [variant_of(config, arm) for arm in given.arms]
    last_seed = config.seed + given.seeds + max(0, *(variant.ref_seed for variant in used))
    _refuse_first(
        (last_seed > 2**32,
         f"compare.seeds = {given.seeds} with seed = {config.seed}: the last seed would exceed "
         f"{2**32 - 1}, the largest possible one."),
        (not tasks and not benchmarks,
         "compare: no task or benchmark is enabled, so there is no accuracy to compare."),
        (config.mid_train.objective != "auto",
         f"mid_train.objective={config.mid_train.objective}: each arm of a comparison sets its "
         "objective. Leave it at auto, and name the arms in compare.arms."),
        (given.post_points and not given.post_train,
         "compare.post_points=true evaluates the steps of post-training: set "
         "compare.post_train=true too."),
        (given.post_train and not post_steps,
         "compare.post_train: sft, dpo and rlvr are all off. Switch one on."),
        ("more-rl" in given.arms and not (given.post_train and config.rlvr.enabled),
         "arm 'more-rl' spends its compute on RLVR: set compare.post_train=true and "
         "rlvr.enabled=true, or leave it out of compare.arms."),
        (given.base_per_seed and bool(base or ref),
         "compare.base_per_seed=true trains a base for every seed, and uses its plain "
         "post-trained model as the reference: leave --base and --ref out."),
        (given.base_per_seed and not post_steps,
         "compare.base_per_seed: sft, dpo and rlvr are all off, so no reference is trained. "
         "Switch one on."),
        (given.base_per_seed and not config.sft.enabled
         and any(variant.arm == "sft" and not variant.ref for variant in used),
         "arm 'sft' needs an SFT model, and sft.enabled is false."),
        (not given.base_per_seed and base is None,
         "compare needs --base CKPT, the base model of all arms (or compare.base_per_seed=true, "
         "which trains one for every seed)."),
    )  # fmt: skip
    own = {*WITHOUT_REFERENCE, *(["sft"] if given.sft_ref else [])}
    for name, variant in zip(given.arms, used, strict=True):
        if not (given.base_per_seed or ref or variant.ref or variant.arm in own):
            raise UserError(f"arm '{name}' needs --ref CKPT, the RL-tuned model.")


def _refuse_first(*checks: tuple[bool, str]) -> None:
    """Raise the sentence of the first condition that holds."""
    for refused, sentence in checks:
        if refused:
            raise UserError(sentence)


def arms_without_baseline(config: Config, known: set[tuple[str, int]]) -> list[str]:
    """One warning for each arm whose baseline is neither planned nor known.

    Args:
        known: arm and seed of the existing rows, of earlier comparisons or other files.
    """
    asked = config.compare.arms
    seeds = range(config.seed, config.seed + config.compare.seeds)
    return [
        f"arm '{arm}' has the baseline '{baseline}', which is neither in compare.arms nor among "
        "the existing rows, so the tables cannot show its difference yet. Add the baseline to "
        "compare.arms, or compare it later in the same run directory."
        for arm in dict.fromkeys(asked)
        if (baseline := variant_of(config, arm).against) not in (arm, *asked)
        and not any((baseline, seed) in known for seed in seeds)
    ]


def _check_arms(key: str, names: Iterable[str], config: Config) -> None:
    known = known_arms(config)
    for name in names:
        if name not in known:
            close = did_you_mean(name, known)
            raise UserError(f"{key}: unknown arm '{name}'. Choose from {', '.join(known)}{close}")


def _check_variant(name: str, variant: VariantConfig, config: Config) -> None:
    key = f"compare.variants.{name}"
    made_from = [arm for arm in ARMS if arm != "more-rl"]
    base_arm, ref_arm = (given.partition("/")[0] for given in (variant.base, variant.ref))
    _refuse_first(
        (not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name),
         f"{key}: the name becomes a folder: use only letters, digits, '.', '_', '-'."),
        (name in (*ARMS, BASE, PLAIN), f"{key}: the name '{name}' is taken; choose another."),
        (variant.arm not in made_from,
         f"{key}.arm = {variant.arm}: choose from {', '.join(made_from)}."),
        (variant.against == name,
         f"{key}.against = {name}: an arm cannot be its own baseline; name another."),
        (variant.arm in WITHOUT_REFERENCE and bool(variant.ref or variant.ref_seed),
         f"{key}.ref: an arm made from {variant.arm} has no reference."),
        (base_arm == "more-rl", f"{key}.base: no arm can depend on arm 'more-rl'."),
        (ref_arm == "more-rl", f"{key}.ref: no arm can depend on arm 'more-rl'."),
        (variant.ref_seed != 0 and ref_arm not in known_arms(config),
         f"{key}.ref_seed: set {key}.ref to the arm that the reference comes from."),
    )  # fmt: skip
    _check_arms(f"{key}.against", [variant.against], config)
    for whole in override_keys(variant.set):
        if not whole.startswith("mid_train.") or whole in _NOT_FOR_VARIANTS:
            raise UserError(
                f"{key}.set: '{whole}' cannot differ between arms. Only keys of mid_train can, "
                f"except {', '.join(_NOT_FOR_VARIANTS)}."
            )
