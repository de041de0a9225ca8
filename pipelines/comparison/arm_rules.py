"""What a comparison cannot be: refused by name before anything is planned. Pure."""

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

# Arm -> mid_train.objective. `sft` is ReMiT with the SFT model as its reference; `more-rl` is plain
# mid-training with what ReMiT's reference costs spent on a longer RLVR.
ARMS: dict[str, Literal["ntp", "kd", "miniplm", "rho1", "remit"]] = {
    "ntp": "ntp", "kd": "kd", "miniplm": "miniplm", "rho1": "rho1", "sft": "remit",
    "remit": "remit", "more-rl": "ntp",
}  # fmt: skip
WITHOUT_REFERENCE = ("ntp", "more-rl")
BASE = "base"
# The plain pipeline of a seed where arm `ntp` has other tokens than it.
PLAIN = "plain"
# Of a variant's overrides: what its `arm` says, and what all arms share.
_NOT_OF_A_VARIANT = ("mid_train.objective", "mid_train.snapshots")


def variant_of(config: Config, arm: str) -> VariantConfig:
    """The arm as a variant: one of the table is its own, with nothing changed."""
    found = config.compare.variants.get(arm)
    return found or VariantConfig(arm="ntp" if arm == PLAIN else arm)


def kind_of(config: Config, arm: str) -> str:
    """The arm of the table that an arm is made from."""
    return variant_of(config, arm).arm


def known_arms(config: Config) -> list[str]:
    return [*ARMS, *config.compare.variants]


def whole_key(override: str) -> str:
    """An override of `compare`, which may leave its section out: `seeds=3`."""
    own = {field.name for field in dataclasses.fields(CompareConfig)}
    first = override.partition("=")[0].strip().partition(".")[0]
    return f"compare.{override}" if first in own else override


def check_comparison(config: Config, base: ModelRef | None, ref: ModelRef | None) -> None:
    """
    Raises:
        UserError: an unknown arm, no task, or settings that do not go together.
    """
    given = config.compare
    if not given.arms:
        raise UserError(f"compare.arms: no arm at all; there are {', '.join(ARMS)}.")
    _check_arms("compare.arms", given.arms, config)
    for name, variant in given.variants.items():
        _check_variant(name, variant, config)
    last = config.seed + given.seeds + max(v.ref_seed for v in [*_used(config), VariantConfig()])
    if last > 2**32:
        raise UserError(
            f"compare.seeds = {given.seeds} from seed = {config.seed} on: the last would be above "
            f"{2**32 - 1}, the largest seed there is."
        )
    tasks = any(task.enabled for task in config.eval.tasks.values())
    if not tasks and not any(b.enabled for b in config.eval.benchmarks.values()):
        raise UserError("compare: no task or benchmark is enabled, so no accuracy to compare.")
    if config.mid_train.objective != "auto":
        raise UserError(
            f"mid_train.objective={config.mid_train.objective}: the arms of a comparison have an "
            "objective each. Leave it at auto, and name the arms in compare.arms."
        )
    if given.post_points and not given.post_train:
        raise UserError(
            "compare.post_points=true evaluates along the post-training: set "
            "compare.post_train=true with it."
        )
    if given.post_train and not enabled_post_steps(config):
        raise UserError("compare.post_train: sft, dpo and rlvr are all switched off.")
    if "more-rl" in given.arms and not (given.post_train and config.rlvr.enabled):
        raise UserError(
            "arm 'more-rl' spends its compute on RLVR: set compare.post_train=true and "
            "rlvr.enabled=true, or leave it out of compare.arms."
        )
    if given.base_per_seed:
        _check_own_lineage(config, base, ref)
    else:
        _check_given(config, base, ref)


def lone_arms(config: Config, there: set[tuple[str, int]]) -> list[str]:
    """Of each arm that has nothing to be held against, a sentence.

    Args:
        there: arm and seed of the rows that are there already, of earlier blocks or other files.
    """
    asked = config.compare.arms
    seeds = range(config.seed, config.seed + config.compare.seeds)
    return [
        f"arm '{arm}' is held against '{against}', which is neither asked for nor among the rows "
        "there: the tables have no difference of it before it is. Add it to compare.arms, or "
        "compare it later in the same run directory."
        for arm in dict.fromkeys(asked)
        if (against := variant_of(config, arm).against) not in (arm, *asked)
        and not any((against, seed) in there for seed in seeds)
    ]


def _used(config: Config) -> Iterable[VariantConfig]:
    return (variant_of(config, arm) for arm in config.compare.arms)


def _check_arms(key: str, names: Iterable[str], config: Config) -> None:
    known = known_arms(config)
    for name in names:
        if name not in known:
            close = did_you_mean(name, known)
            raise UserError(f"{key}: no arm '{name}'; there are {', '.join(known)}{close}")


def _check_variant(name: str, variant: VariantConfig, config: Config) -> None:
    key = f"compare.variants.{name}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"{key}: it names a folder: letters, digits, '.', '_', '-' only.")
    if name in (*ARMS, BASE, PLAIN):
        raise UserError(f"{key}: the name '{name}' is taken; give the arm another.")
    made_from = [arm for arm in ARMS if arm != "more-rl"]
    if variant.arm not in made_from:
        raise UserError(f"{key}.arm = {variant.arm}: choose of {', '.join(made_from)}.")
    _check_arms(f"{key}.against", [variant.against], config)
    if variant.against == name:
        raise UserError(f"{key}.against = {name}: an arm less itself is 0; name another.")
    if variant.arm == "ntp" and (variant.ref or variant.ref_seed):
        raise UserError(f"{key}.ref: an arm made from ntp has no reference.")
    for role in ("base", "ref"):
        if getattr(variant, role).partition("/")[0] == "more-rl":
            raise UserError(f"{key}.{role}: arm 'more-rl' can be nothing that another arm needs.")
    if variant.ref_seed and variant.ref.partition("/")[0] not in known_arms(config):
        raise UserError(f"{key}.ref_seed: {key}.ref has to name the arm of that seed.")
    for whole in override_keys(variant.set):
        if not whole.startswith("mid_train.") or whole in _NOT_OF_A_VARIANT:
            raise UserError(
                f"{key}.set: '{whole}' cannot be changed for one arm; it takes keys of mid_train, "
                f"without {', '.join(_NOT_OF_A_VARIANT)}."
            )


def _check_own_lineage(config: Config, base: ModelRef | None, ref: ModelRef | None) -> None:
    if base or ref:
        raise UserError(
            "compare.base_per_seed=true trains a base for every seed, and its plain post-trained "
            "model is the reference: leave --base and --ref out."
        )
    if not enabled_post_steps(config):
        raise UserError("compare.base_per_seed: with sft, dpo and rlvr off there is no reference.")
    if not config.sft.enabled and any(
        variant.arm == "sft" and not variant.ref for variant in _used(config)
    ):
        raise UserError("arm 'sft' needs an SFT model, and sft.enabled is false.")


def _check_given(config: Config, base: ModelRef | None, ref: ModelRef | None) -> None:
    if base is None:
        raise UserError(
            "compare needs --base CKPT, the base of all arms (or compare.base_per_seed=true, "
            "which trains one for every seed)."
        )
    own = {*WITHOUT_REFERENCE, *(["sft"] if config.compare.sft_ref else [])}
    for name in config.compare.arms:
        variant = variant_of(config, name)
        if ref is None and not variant.ref and variant.arm not in own:
            raise UserError(f"arm '{name}' needs --ref CKPT, the RL-tuned model.")
