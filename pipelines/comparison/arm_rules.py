"""Checks of a comparison's settings, made before anything is planned. Pure."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Literal

from pipelines.errors import UserError, did_you_mean
from pipelines.models.checkpoint import ModelRef
from pipelines.plan.flywheel import enabled_post_steps
from pipelines.recipe.load import override_keys
from pipelines.recipe.schema import CompareConfig, Config, VariantConfig

# Arm -> mid_train.objective. `sft` is ReMiT with the SFT model as its reference. `more-rl` is plain
# mid-training with a longer RLVR, which spends the FLOPs that ReMiT's reference costs.
ARMS: dict[str, Literal["ntp", "kd", "miniplm", "rho1", "remit"]] = {
    "ntp": "ntp", "kd": "kd", "miniplm": "miniplm", "rho1": "rho1", "sft": "remit",
    "remit": "remit", "more-rl": "ntp",
}  # fmt: skip
WITHOUT_REFERENCE = ("ntp", "more-rl")
BASE = "base"
# The plain pipeline of a seed, if arm `ntp` trains on a different number of tokens.
PLAIN = "plain"
# What a variant cannot override: its `arm` sets the first, and all arms share the second.
_NOT_FOR_VARIANTS = ("mid_train.objective", "mid_train.snapshots")


def variant_of(config: Config, arm: str) -> VariantConfig:
    """The arm as a variant; a built-in arm is a variant that changes nothing."""
    found = config.compare.variants.get(arm)
    return found or VariantConfig(arm="ntp" if arm == PLAIN else arm)


def kind_of(config: Config, arm: str) -> str:
    """The built-in arm that an arm is made from."""
    return variant_of(config, arm).arm


def known_arms(config: Config) -> list[str]:
    return [*ARMS, *config.compare.variants]


def whole_key(override: str) -> str:
    """The full key of an override of `compare`, which may omit the section: `seeds=3`."""
    own = {field.name for field in dataclasses.fields(CompareConfig)}
    first = override.partition("=")[0].strip().partition(".")[0]
    return f"compare.{override}" if first in own else override


def check_comparison(config: Config, base: ModelRef | None, ref: ModelRef | None) -> None:
    """
    Raises:
        UserError: an unknown arm, no task, or settings that cannot be combined.
    """
    given = config.compare
    if not given.arms:
        raise UserError(f"compare.arms is empty. Choose from {', '.join(ARMS)}.")
    _check_arms("compare.arms", given.arms, config)
    for name, variant in given.variants.items():
        _check_variant(name, variant, config)
    last = config.seed + given.seeds + max(v.ref_seed for v in [*_used(config), VariantConfig()])
    if last > 2**32:
        raise UserError(
            f"compare.seeds = {given.seeds} with seed = {config.seed}: the last seed would exceed "
            f"{2**32 - 1}, the largest possible one."
        )
    tasks = any(task.enabled for task in config.eval.tasks.values())
    if not tasks and not any(b.enabled for b in config.eval.benchmarks.values()):
        raise UserError(
            "compare: no task or benchmark is enabled, so there is no accuracy to compare."
        )
    if config.mid_train.objective != "auto":
        raise UserError(
            f"mid_train.objective={config.mid_train.objective}: each arm of a comparison sets its "
            "objective. Leave it at auto, and name the arms in compare.arms."
        )
    if given.post_points and not given.post_train:
        raise UserError(
            "compare.post_points=true evaluates the steps of post-training: set "
            "compare.post_train=true too."
        )
    if given.post_train and not enabled_post_steps(config):
        raise UserError("compare.post_train: sft, dpo and rlvr are all off. Switch one on.")
    if "more-rl" in given.arms and not (given.post_train and config.rlvr.enabled):
        raise UserError(
            "arm 'more-rl' spends its compute on RLVR: set compare.post_train=true and "
            "rlvr.enabled=true, or leave it out of compare.arms."
        )
    if given.base_per_seed:
        _check_own_lineage(config, base, ref)
    else:
        _check_given(config, base, ref)


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


def _used(config: Config) -> Iterable[VariantConfig]:
    return (variant_of(config, arm) for arm in config.compare.arms)


def _check_arms(key: str, names: Iterable[str], config: Config) -> None:
    known = known_arms(config)
    for name in names:
        if name not in known:
            close = did_you_mean(name, known)
            raise UserError(f"{key}: unknown arm '{name}'. Choose from {', '.join(known)}{close}")


def _check_variant(name: str, variant: VariantConfig, config: Config) -> None:
    key = f"compare.variants.{name}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(
            f"{key}: the name becomes a folder: use only letters, digits, '.', '_', '-'."
        )
    if name in (*ARMS, BASE, PLAIN):
        raise UserError(f"{key}: the name '{name}' is taken; choose another.")
    made_from = [arm for arm in ARMS if arm != "more-rl"]
    if variant.arm not in made_from:
        raise UserError(f"{key}.arm = {variant.arm}: choose from {', '.join(made_from)}.")
    _check_arms(f"{key}.against", [variant.against], config)
    if variant.against == name:
        raise UserError(f"{key}.against = {name}: an arm cannot be its own baseline; name another.")
    if variant.arm == "ntp" and (variant.ref or variant.ref_seed):
        raise UserError(f"{key}.ref: an arm made from ntp has no reference.")
    for role in ("base", "ref"):
        if getattr(variant, role).partition("/")[0] == "more-rl":
            raise UserError(f"{key}.{role}: no arm can depend on arm 'more-rl'.")
    if variant.ref_seed and variant.ref.partition("/")[0] not in known_arms(config):
        raise UserError(f"{key}.ref_seed: set {key}.ref to the arm that the reference comes from.")
    for whole in override_keys(variant.set):
        if not whole.startswith("mid_train.") or whole in _NOT_FOR_VARIANTS:
            raise UserError(
                f"{key}.set: '{whole}' cannot differ between arms. Only keys of mid_train can, "
                f"except {', '.join(_NOT_FOR_VARIANTS)}."
            )


def _check_own_lineage(config: Config, base: ModelRef | None, ref: ModelRef | None) -> None:
    if base or ref:
        raise UserError(
            "compare.base_per_seed=true trains a base for every seed, and uses its plain "
            "post-trained model as the reference: leave --base and --ref out."
        )
    if not enabled_post_steps(config):
        raise UserError(
            "compare.base_per_seed: sft, dpo and rlvr are all off, so no reference is trained. "
            "Switch one on."
        )
    if not config.sft.enabled and any(
        variant.arm == "sft" and not variant.ref for variant in _used(config)
    ):
        raise UserError("arm 'sft' needs an SFT model, and sft.enabled is false.")


def _check_given(config: Config, base: ModelRef | None, ref: ModelRef | None) -> None:
    if base is None:
        raise UserError(
            "compare needs --base CKPT, the base model of all arms (or compare.base_per_seed=true, "
            "which trains one for every seed)."
        )
    own = {*WITHOUT_REFERENCE, *(["sft"] if config.compare.sft_ref else [])}
    for name in config.compare.arms:
        variant = variant_of(config, name)
        if ref is None and not variant.ref and variant.arm not in own:
            raise UserError(f"arm '{name}' needs --ref CKPT, the RL-tuned model.")
